"""Corpora of the Hugging Face hub, streamed once into a local file that everything else reads."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from tqdm.auto import tqdm

from lab.worlds.text import LocalText, digest
from tsae.errors import UserError, WorldError
from tsae.files import atomic

_ARTICLE = re.compile(r"\s*= (?!= )(.*[^=\s]) =\s*")
_HEADING = re.compile(r"\s*(?:= )+(.*?)(?: =)+\s*")


class Corpus(NamedTuple):
    """Where a corpus lies on the hub, and how its rows become documents."""

    repository: str
    config: str | None
    revision: str | None
    documents: Callable[[Iterable[Any]], Iterator[str]]


def rows_as_documents(rows: Iterable[Any]) -> Iterator[str]:
    """One document a row; the field is ``text``."""
    for row in rows:
        yield _text(row)


def lines_as_articles(rows: Iterable[Any]) -> Iterator[str]:
    """WikiText: a row is a line, and an article begins at a heading of one ``=``.

    Headings stand alone between blank lines, so that they open a section.
    """
    article: list[str] = []
    for row in rows:
        line = _text(row).rstrip("\n")
        if _ARTICLE.fullmatch(line) and article:
            yield "\n".join(article).strip()
            article = []
        heading = _HEADING.fullmatch(line)
        if heading:
            article += ["", heading[1], ""]
        elif line.strip():
            article.append(line.strip())
    if article:
        yield "\n".join(article).strip()


def _text(row: Any) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise WorldError(
            f'A row of the corpus has no "text" but {", ".join(map(str, row))}; give another copy.'
        )
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no token


CORPORA = {
    # The repository still holds a script, which datasets no longer runs; the branch has its rows.
    "openwebtext": Corpus(
        "Skylion007/openwebtext", None, "refs/convert/parquet", rows_as_documents
    ),
    "wikitext-103": Corpus("Salesforce/wikitext", "wikitext-103-raw-v1", None, lines_as_articles),
    "pile": Corpus("NeelNanda/pile-10k", None, None, rows_as_documents),
}


@contextmanager
def hub_is_clear(
    what: str, repository: str, instead: str, copy: str | None = None
) -> Iterator[None]:
    """Turn whatever a missing hub or a closed gate raises into one :class:`WorldError`.

    ``what`` needs ``repository``; the user may give ``instead``. With ``copy``, what could not be
    read is that local copy. A full disk and an interrupt pass.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # httpx, huggingface_hub, datasets and fsspec each have their own
        causes: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None and cause not in causes:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        if any(type(cause).__name__ == "GatedRepoError" for cause in causes):
            raise WorldError(
                f"{what} needs {repository}, which is gated: accept its terms at "
                f"https://huggingface.co/{repository} and run `hf auth login`, or give {instead}."
            ) from error
        if any(getattr(cause, "errno", None) == 28 for cause in causes):
            raise
        reason = " ".join(str(error).split())[:120].rstrip(".")
        if copy is not None:
            raise WorldError(
                f"{what}: {copy} cannot be read ({reason}); copy it again, or give {instead}."
            ) from error
        offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE")
        raise WorldError(
            f"{what} needs {repository} from the Hugging Face hub, which could not be fetched "
            f"({type(error).__name__}: {reason}); connect to the hub"
            f"{' and unset HF_HUB_OFFLINE' if offline else ''}, or give {instead}."
        ) from error


def rows(name: str, source: str | None = None) -> Iterator[Any]:
    """The rows of corpus ``name``, streamed from the hub, or of a copy at the path ``source``.

    A copy is a folder or a file of .parquet, .jsonl or .arrow rows, or a folder saved to disk.
    """
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    corpus = CORPORA[name]
    if source is None:
        options = {"revision": corpus.revision} if corpus.revision else {}
        found = load_dataset(
            corpus.repository, corpus.config, split="train", streaming=True, **options
        )
        return iter(found)
    path = Path(source)
    if any((path / file).exists() for file in ("state.json", "dataset_dict.json")):
        saved: Dataset | DatasetDict = load_from_disk(source)
        return iter(saved["train"] if isinstance(saved, DatasetDict) else saved)
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    for kind, ends in {
        "parquet": (".parquet",),
        "json": (".jsonl", ".json", ".jsonl.gz"),
        "arrow": (".arrow",),
    }.items():
        chosen = [str(file) for file in files if file.name.endswith(ends)]
        if chosen:
            return iter(load_dataset(kind, data_files=chosen, split="train", streaming=True))
    raise WorldError(f"{source} holds no .parquet, .jsonl or .arrow rows; give a copy of {name}.")


def fetch(
    name: str,
    cache: Path,
    megabytes: float,
    source: str | None = None,
    progress: bool = True,
) -> Path:
    """The first ``megabytes`` of corpus ``name`` as a .jsonl file under ``cache``, made if missing.

    From then on no hub is asked. Documents are whole; a corpus that ends earlier is taken whole.
    Raises ValueError for an unknown corpus, :class:`WorldError` where the hub cannot be reached or
    rows have no text, :class:`UserError` on a full disk.
    """
    if name not in CORPORA:
        raise ValueError(f"corpus {name!r} is unknown; allowed are {', '.join(CORPORA)}")
    copy = ""
    if source is not None:
        if not Path(source).exists():
            raise WorldError(f"{source} does not exist; give the path of a copy of {name}.")
        copy = f"-{digest(source, sorted(LocalText(source).stamp().items())):016x}"
    file = cache / f"{name}-{megabytes:g}mb{copy}.jsonl"
    what, limit = f"Text {name}", megabytes * 1e6
    repository = source or CORPORA[name].repository
    cache.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(cache / f"{file.name}.lock"),
        hub_is_clear(what, repository, "text=PATH of a text of your own", source),
    ):
        if file.exists():
            return file
        bar = tqdm(total=megabytes, unit="MB", desc=f"fetching {name}", disable=not progress)
        with atomic(file) as unfinished, bar, open(unfinished, "w", encoding="utf-8") as out:
            written = 0.0
            for text in CORPORA[name].documents(rows(name, source)):
                if not text.strip():
                    continue
                out.write(json.dumps({"text": text}) + "\n")
                bar.update(len(text) / 1e6)
                written += len(text)
                if written >= limit:
                    break
            if not written:
                raise WorldError(f"{what}: {repository} has no text; give text=PATH instead.")
    return file
