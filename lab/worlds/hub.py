"""``gpt2``, ``pythia-70m``, ``gemma-2-2b``, ``gemma-2-2b-it``: published models and corpora by name.

What a world needs is taken from the Hugging Face hub once: the model into the hub's own cache, the
text as a .jsonl file into ``cache_dir``. From then on the world is ``local`` with those two, and no
hub is asked. ``model=PATH`` and ``text=PATH`` stand in where no hub can be reached.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from lab.worlds import fetching, local
from lab.worlds.base import Given
from lab.worlds.text import LocalText, digest, field
from tsae.errors import WorldError

WORLDS = ("gpt2", "pythia-70m", "gemma-2-2b", "gemma-2-2b-it")
FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
_ARTICLE = re.compile(r"\s*= (?!= )(.*[^=\s]) =\s*")
_HEADING = re.compile(r"\s*(?:= )+(.*?)(?: =)+\s*")


class Published(NamedTuple):
    """A model on the hub: its repository, and the layer to read by default."""

    repository: str
    layer: int


class Corpus(NamedTuple):
    """A corpus on the hub, and whether its rows are lines of articles rather than documents."""

    repository: str
    config: str | None = None
    revision: str | None = None
    lines: bool = False


MODELS = {
    "gpt2": Published("openai-community/gpt2", 8),
    "pythia-70m": Published("EleutherAI/pythia-70m", 3),
    "gemma-2-2b": Published("google/gemma-2-2b", 12),
    "gemma-2-2b-it": Published("google/gemma-2-2b-it", 12),
}
CORPORA = {
    # The repository still holds a script, which datasets no longer runs; the branch has its rows.
    "openwebtext": Corpus("Skylion007/openwebtext", revision="refs/convert/parquet"),
    "wikitext-103": Corpus("Salesforce/wikitext", "wikitext-103-raw-v1", lines=True),
    "pile": Corpus("NeelNanda/pile-10k"),
}

load = local.LocalWorld


def build(
    directory: Path,
    given: Given,
    *,
    model: str | Path | None = None,
    text: str | Path | dict[str, str] = "openwebtext",
    megabytes: float = 32.0,
    **options: Any,
) -> local.LocalWorld:
    """The published model ``name`` over a published corpus; further options: those of ``local``.

    ``text``: openwebtext, wikitext-103, pile (a 10,000-document sample), prose or pydocs; a path, as
    for ``local``; ``CORPUS=PATH`` for rows of that corpus in .parquet, .jsonl or .arrow files; or
    several of these by name, which becomes the document label ``source``. ``megabytes`` of each
    corpus are fetched. ``model``: a folder with the model, in place of the hub. ``layer``: by
    default that of :data:`MODELS`, or the middle one of another folder with fewer layers.

    Raises :class:`WorldError`, in one sentence, where the hub cannot be reached or wants its terms
    accepted first.
    """
    if isinstance(megabytes, bool) or not isinstance(megabytes, int | float) or megabytes <= 0:
        raise ValueError(f"megabytes is {megabytes!r}; allowed is a number above 0")
    cache = given.cache_dir or fetching.default_cache()

    def local_text(text: str | Path) -> str:
        corpus, _, copy = str(text).partition("=")
        if corpus not in CORPORA:
            return str(text)
        return str(fetch(corpus, cache, megabytes, copy or None, given.progress))

    if isinstance(text, dict):
        options["text"] = {key: local_text(value) for key, value in text.items()}
    else:
        options["text"] = local_text(text)
    if model is None:
        model = model_folder(given.name, given.progress)
        options = {"layer": MODELS[given.name].layer, **options}
    return local.build(directory, given, model=model, **options)


def model_folder(name: str, progress: bool) -> str:
    """The folder of the published model ``name`` in the hub's cache, fetched where it is missing."""
    from huggingface_hub import snapshot_download, utils
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = MODELS[name].repository
    try:
        folder = snapshot_download(repository, allow_patterns=FILES, local_files_only=True)
        if any(Path(folder).glob("*.safetensors")):
            return folder
    except LocalEntryNotFoundError:
        pass
    if not progress:
        utils.disable_progress_bars()
    with fetching.hub_is_clear(f"World {name}", repository, "model=PATH of a copy"):
        return snapshot_download(repository, allow_patterns=FILES)


def fetch(corpus: str, cache: Path, megabytes: float, copy: str | None, progress: bool) -> Path:
    """The first ``megabytes`` of ``corpus``, or of its copy at the path ``copy``, as a .jsonl file
    under ``cache``, made if missing.

    From then on no hub is asked. Documents are whole; a corpus that ends earlier is taken whole.
    Raises :class:`WorldError` where the hub cannot be reached or rows have no text.
    """
    source = None if copy is None else LocalText(copy)
    mark = "" if source is None else f"-{digest(copy, sorted(source.stamp().items())):016x}"
    file = cache / f"{corpus}-{megabytes:g}mb{mark}.jsonl"
    repository = CORPORA[corpus].repository

    def make(unfinished: Path) -> None:
        bar = tqdm(total=megabytes, unit="MB", desc=f"fetching {corpus}", disable=not progress)
        written = 0
        with bar, open(unfinished, "w", encoding="utf-8") as out:
            for text in documents(corpus, _stream(corpus) if source is None else source.raw()):
                if text.strip():
                    out.write(json.dumps({"text": text}) + "\n")
                    bar.update(len(text) / 1e6)
                    written += len(text)
                if written >= megabytes * 1e6:
                    return
        if not written:
            raise WorldError(
                f"Text {corpus}: {copy or repository} has no text; give text=PATH instead."
            )

    with fetching.hub_is_clear(f"Text {corpus}", repository, "text=PATH of a text of your own"):
        return fetching.made_once(file, f"{file.name}.lock", make)


def _stream(corpus: str) -> Iterator[str]:
    """The text of every row of ``corpus`` on the hub."""
    from datasets import load_dataset

    repository, config, revision, _ = CORPORA[corpus]
    options = {"revision": revision} if revision else {}
    for row in load_dataset(repository, config, split="train", streaming=True, **options):
        yield field(row, f"A row of {repository}")


def documents(corpus: str, rows: Iterable[str]) -> Iterator[str]:
    """Rows as they are; of a corpus of lines, articles.

    An article of WikiText begins at a heading of one ``=``. Headings stand alone between blank
    lines, so that they open a section.
    """
    if not CORPORA[corpus].lines:
        yield from rows
        return
    article: list[str] = []
    for line in rows:
        if _ARTICLE.fullmatch(line) and article:
            yield "\n".join(article).strip()
            article = []
        if heading := _HEADING.fullmatch(line):
            article += ["", heading[1], ""]
        elif line.strip():
            article.append(line.strip())
    yield "\n".join(article).strip()
