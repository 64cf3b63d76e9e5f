"""``prose``: articles of the English Wikipedia of 2006, with topics that a language model knows.

The text is enwik8, the first 10⁸ bytes of the dump of 3 March 2006 (GFDL; http://mattmahoney.net/dc),
which lies in the source archive of the package x-transformers (MIT). It is fetched once, parsed
once into the user's cache (20 s) and read from there; nothing of it is part of this project.
"""

import gzip
import hashlib
import json
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.worlds import fetching, prose_classes, wikitext
from lab.worlds.annotate import TOKEN_LABEL, Text
from lab.worlds.text import balanced, digest
from tsae.errors import WorldError
from tsae.sequences import LabelSpec

REQUIREMENT = "x-transformers==2.16.1"
MEMBER = "x_transformers-2.16.1/data/enwik8.gz"
SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
"""Of the unpacked 10⁸ bytes."""
VERSION = 2
"""Of the way in which the markup is read: one more whenever other text comes of it."""
SHORTEST = 3000
"""Characters of an article; shorter ones are left out."""
EXCERPT = 1200
"""Characters of a document, 330 tokens with what its last paragraph has beyond them."""
HELD_OUT = 66
"""Articles of a topic in the test split, or a fifth where that is more; as many in validation."""
_LIST_LINE = 60  # a list whose items are shorter on the average is not prose


class Prose:
    """Excerpts of the articles that have a topic, in an order that the seed decides.

    Labels: ``topic`` and ``biography`` (document), ``section`` (section), ``token`` (token). Articles,
    not excerpts, are split. A sample is balanced over topics (:func:`lab.worlds.text.balanced`); a
    topic gives one excerpt of each of its articles before a second one of any.
    """

    min_tokens = 40

    def __init__(self, cache_dir: Path) -> None:
        self.path = _articles(cache_dir)
        self.label_specs = {
            "topic": LabelSpec("topic", "document", tuple(prose_classes.TOPICS)),
            "biography": LabelSpec("biography", "document", ("no", "yes")),
            "section": LabelSpec("section", "section", prose_classes.SECTION_CLASSES),
            "token": TOKEN_LABEL,
        }

    def stamp(self) -> dict[str, Any]:
        """The name of the parsed text, which holds the checksum of all that shapes it."""
        return {"articles": self.path.name}

    def texts(self, split: str, seed: int) -> Iterator[Text]:
        """The excerpts of ``split``."""
        by_topic: dict[str, list[dict[str, Any]]] = {topic: [] for topic in prose_classes.TOPICS}
        with open(self.path, encoding="utf-8") as lines:
            for article in map(json.loads, lines):
                by_topic[article["topic"]].append(article)
        streams = {
            topic: _excerpts(_in_split(articles, split, seed), seed)
            for topic, articles in by_topic.items()
        }
        return balanced(streams, "topic")


def _in_split(articles: list[dict], split: str, seed: int) -> list[dict]:
    """The articles of one topic that are in ``split``, in the order of the seed."""
    articles = sorted(articles, key=lambda article: digest(seed, article["title"]))
    n = max(HELD_OUT, len(articles) // 5)
    parts = {"test": articles[:n], "validation": articles[n : 2 * n], "train": articles[2 * n :]}
    return parts[split]


def _excerpts(articles: list[dict], seed: int) -> Iterator[Text]:
    """One excerpt of each article, then another one, until none is left."""
    turns: dict[int, list[Text]] = defaultdict(list)
    for article in articles:
        parts = sorted(_cut(article), key=lambda part: digest(seed, article["title"], part.text))
        for turn, part in enumerate(parts):
            turns[turn].append(part)
    yield from (part for turn in sorted(turns) for part in turns[turn])


def _cut(article: dict) -> Iterator[Text]:
    """The article's excerpts; one that is less than half as long as it should be goes."""
    text = ""
    spans: list[tuple[int, int]] = []
    for heading, section, paragraph in [*article["paragraphs"], ("", 0, "")]:
        if not paragraph or len(text) >= EXCERPT:
            if len(text) >= EXCERPT // 2:
                labels = {"biography": int(article["biography"])}
                yield Text(text.rstrip(), labels, {"section": spans})
            text, spans = "", []
        if heading or not spans or spans[-1][1] != section:
            spans.append((len(text), section))
        text += (f"{heading}\n\n" if heading else "") + paragraph + "\n\n"


def _articles(cache_dir: Path) -> Path:
    """The parsed articles under ``cache_dir``, one JSON object a line; made where they are missing."""

    def make(unfinished: Path) -> None:
        dump = _dump(cache_dir)
        with open(unfinished, "w", encoding="utf-8") as out:
            for article in filter(None, map(describe, wikitext.pages(dump))):
                out.write(json.dumps(article) + "\n")

    maps = (prose_classes.TOPICS, prose_classes.SECTIONS)
    rules = [[(name, rule.pattern) for name, rule in rules.items()] for rules in maps]
    shaped = json.dumps([VERSION, SHA256, SHORTEST, _LIST_LINE, rules])
    name = f"prose-{hashlib.sha256(shaped.encode()).hexdigest()[:12]}.jsonl"
    return fetching.made_once(cache_dir / name, "prose.lock", make)


def describe(page: wikitext.Page) -> dict[str, Any] | None:
    """What is kept of ``page``; None where it is no article with a topic, a list, or too short.

    A list of short items is kept at the article's end alone ("see also"). A paragraph is (its
    heading where it is the first below it, the class of its section, its text).
    """
    topic = prose_classes.topic(page.categories)
    if topic is None or wikitext.is_list(page.title):
        return None
    kept, last = [], ""
    for heading, paragraph in page.paragraphs:
        section = prose_classes.section(heading)
        lines = paragraph.split("\n")
        is_list = all(line.startswith("- ") for line in lines)
        if is_list and len(paragraph) < _LIST_LINE * len(lines) and section != "end":
            continue
        place = prose_classes.SECTION_CLASSES.index(section)
        kept.append((heading if heading != last else "", place, paragraph))
        last = heading
    if sum(len(paragraph) for *_, paragraph in kept) < SHORTEST:
        return None
    return {
        "title": page.title,
        "topic": topic,
        "biography": prose_classes.is_biography(page.categories),
        "paragraphs": kept,
    }


def _dump(cache_dir: Path) -> str:
    """The text of enwik8, from its copy in the cache or out of the package. Raises
    :class:`WorldError` where neither can be had or the bytes are others."""
    kept = cache_dir / "enwik8.gz"

    def make(unfinished: Path) -> None:
        print(f"Text prose: fetching {REQUIREMENT} (39 MB, once).", file=sys.stderr)
        source = ("--no-binary=x-transformers", "Text prose", f"put a copy of enwik8.gz at {kept}")
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f"{kept.name}.tmp-") as scratch:
            with tarfile.open(fetching.package(REQUIREMENT, Path(scratch), *source)) as packed:
                member = packed.extractfile(MEMBER)
                assert member is not None
                unfinished.write_bytes(member.read())

    fetching.made_once(kept, "enwik8.lock", make)
    try:
        raw = gzip.decompress(kept.read_bytes())
    except (OSError, EOFError):
        raw = b""
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise WorldError(f"Text prose: {kept} has a wrong checksum; remove it and run this again.")
    return raw.decode("utf-8", "replace")
