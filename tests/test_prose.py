"""Articles as documents: markup, topics, sections, excerpts, splits; from a dump written here."""

import gzip
import hashlib
import json
import re
import tarfile
from collections import Counter

import pytest

from lab.worlds import fetching, prose, prose_classes, wikitext
from tsae.errors import WorldError
from tsae.sequences import SPLITS

MARKUP = """\
{{Infobox|name={{nested|x}}}}
[[Image:a.jpg|thumb|A [[picture]] of it]]
'''Tin''' is a ''[[chemical element|metal]]'' &amp; soft&lt;ref name="a"/&gt;.&lt;ref&gt;Smith
1990&lt;/ref&gt; It melts ( [http://a.org/b here] ) at &lt;math&gt;x^2&lt;/math&gt;, they say .
&lt;!-- a note
--&gt;
{| class="wikitable"
| a || b
|}

== History ==
Known [[since|for]] ages ( ).
=== Bronze ===
* mixed with [[copper]]
# cast

== See also ==
* [[Lead]]
[[de:Zinn]] [[Category:Metals]] [[Category:Chemical elements| Tin]]
"""


def test_markup_becomes_what_a_reader_sees():
    text = MARKUP.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert wikitext.paragraphs(text) == [
        ("", "Tin is a metal & soft. It melts ( here) at, they say."),
        ("History", "Known for ages."),
        ("History", "- mixed with copper\n- cast"),
        ("See also", "- Lead"),
    ]


def test_unclosed_and_hostile_markup_ends_soon():
    for text in ("{{" * 5000, "[[" * 5000, "{|" * 5000, "<ref>" * 2000, "'" * 20000, "= " * 5000):
        wikitext.paragraphs(text)


@pytest.mark.parametrize(
    ("categories", "topic", "biography"),
    [
        (["Chemical elements", "Metals"], "physical science", False),
        (["1879 births", "1955 deaths", "German physicists"], "physical science", True),
        (["Cities in Bavaria", "Living people"], "places", True),
        (["Programming languages"], "mathematics and computing", False),
        (["Romance languages"], "language and literature", False),
        (["Norse gods", "Rivers"], None, False),  # one vote each
        (["1879 births"], None, True),
        ([], None, False),
    ],
)
def test_topics_of_categories(categories, topic, biography):
    assert prose_classes.topic(categories) == topic
    assert prose_classes.is_biography(categories) == biography


def test_sections_of_headings_and_titles_of_lists():
    headings = [
        "",
        "Early history",
        "Discography",
        "Climate",
        "See also",
        "External links",
        "Zebra",
    ]
    assert [prose_classes.section(h) for h in headings] == [
        *("lead", "history", "works", "geography", "end", "end", "other")
    ]
    titles = ["1914", "1990s", "5th century", "July 4", "List of kings", "Julius", "May"]
    assert [wikitext.is_list(title) for title in titles] == [True] * 5 + [False] * 2


SENTENCES = " ".join(["A sentence of exactly forty characters.."] * 10)  # 409 characters


def page(title, category, paragraphs=9):
    said = f"{title}. {SENTENCES}"
    body = f"\n\n{said}\n\n== History ==\n\n" + f"{said}\n\n" * (paragraphs - 1)
    end = "== See also ==\n* [[One]]\n* [[Two]]\n* [[Three]]\n"
    text = f"{body}{end}[[Category:{category}]]"
    return (
        f'<page>\n<title>{title}</title><revision><text xml:space="preserve">{text}</text></page>'
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache whose dump has 40 articles of two topics, and pages that are none."""
    articles = [page(f"Town {i}", "Towns in Ruritania") for i in range(20)]
    articles += [page(f"Metal {i}", "Metals") for i in range(20)]
    others = [page("List of towns", "Towns"), page("Short", "Metals", 3), page("Odd", "Things")]
    others += [page("Talk:Metal", "Metals"), page("1914", "Metals")]
    others.append('<page><title>A</title><text xml:space="preserve">#REDIRECT [[B]]</text></page>')
    dump = "\n".join(articles + others).encode()
    monkeypatch.setattr(prose, "SHA256", hashlib.sha256(dump).hexdigest())
    monkeypatch.setattr(prose, "HELD_OUT", 4)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "enwik8.gz").write_bytes(gzip.compress(dump))
    return tmp_path / "cache"


def test_articles_are_split_and_cut_into_excerpts(cache):
    source = prose.Prose(cache)
    texts = {split: list(source.texts(split, 0)) for split in SPLITS}
    names = list(prose_classes.TOPICS)
    places, science = names.index("places"), names.index("physical science")
    seen: set[str] = set()
    for split, n in (("test", 4), ("validation", 4), ("train", 12)):
        # An article has 9 paragraphs of about 417 characters, and three are a document.
        count = Counter(t.labels["topic"] for t in texts[split])
        assert count == {places: 3 * n, science: 3 * n}
        titles = [re.search(r"(?:Town|Metal) \d+", t.text)[0] for t in texts[split]]
        assert len(set(titles[: 2 * n])) == len(set(titles)) == 2 * n  # first, one of each article
        assert not seen & set(titles)
        seen |= set(titles)
    assert len(seen) == 40
    assert [t.text for t in source.texts("train", 0)] == [t.text for t in texts["train"]]
    assert [t.text for t in source.texts("train", 1)] != [t.text for t in texts["train"]]


def test_an_excerpt_knows_its_sections(cache):
    source = prose.Prose(cache)
    lead = next(t for t in source.texts("train", 0) if t.spans["section"][0][1] == 0)
    sections = [prose_classes.SECTION_CLASSES[place] for _, place in lead.spans["section"]]
    assert sections == ["lead", "history"]
    at = lead.spans["section"][1][0]
    assert lead.text[at:].startswith(("History\n\nTown", "History\n\nMetal"))
    assert 1200 <= len(lead.text) < 1700 and lead.labels["biography"] == 0


def test_the_dump_is_parsed_once_and_then_not_needed(cache):
    first = prose.Prose(cache)
    (cache / "enwik8.gz").unlink()
    again = prose.Prose(cache)
    assert first.stamp() == again.stamp() and next(again.texts("test", 0)) == next(
        first.texts("test", 0)
    )
    rows = [json.loads(line) for line in first.path.read_text().splitlines()]
    assert len(rows) == 40 and {row["title"][:4] for row in rows} == {"Town", "Meta"}


def test_the_dump_comes_out_of_the_package(cache, tmp_path, monkeypatch):
    dump = (cache / "enwik8.gz").read_bytes()
    (cache / "enwik8.gz").unlink()
    asked = []

    def package(requirement, directory, kind, what, instead):
        asked.append((requirement, kind))
        archive = directory / "x_transformers-2.16.1.tar.gz"
        (tmp_path / "enwik8.gz").write_bytes(dump)
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(tmp_path / "enwik8.gz", prose.MEMBER)
        return archive

    monkeypatch.setattr(fetching, "package", package)
    assert prose.Prose(cache).path.exists() and (cache / "enwik8.gz").read_bytes() == dump
    assert asked == [("x-transformers==2.16.1", "--no-binary=x-transformers")]


def test_a_wrong_dump_gives_one_line(cache, monkeypatch):
    (cache / "enwik8.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(WorldError, match=r"enwik8.gz has a wrong checksum; remove it and run this"):
        prose.Prose(cache)
    (cache / "enwik8.gz").unlink()
    monkeypatch.setattr(fetching.sys, "executable", "/bin/false")
    with pytest.raises(
        WorldError, match=r"could not be fetched .*, or put a copy of enwik8.gz at .*"
    ):
        prose.Prose(cache)
    assert {path.name for path in cache.iterdir()} == {"prose.lock", "enwik8.lock"}
