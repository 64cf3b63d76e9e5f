"""Local text as documents: plain files and folders, JSONL, Parquet, ``datasets`` folders."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from lab.worlds.annotate import TOKEN_LABEL, Text, paragraph_starts, sentence_starts
from tsae.errors import WorldError
from tsae.sequences import SPLITS, LabelSpec

PLAIN, ROWS = (".txt", ".md"), (".jsonl", ".jsonl.gz", ".parquet", ".arrow")
ABOUT = ("README", "LICENSE", "LICENCE", "NOTICE", "CITATION")
PIECE = 2000
"""Fewest characters of a document where one long file is cut."""
_SEPARATOR = re.compile(r"^(?:<\|endoftext\|>|\f)[ \t]*$", re.MULTILINE)
_BLOCK = 10  # one document in so many is in the test split, and one in validation


def digest(*parts: object) -> int:
    """A 64-bit number that depends on ``parts`` alone, not on the process."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def balanced(streams: Mapping[str, Iterator[Text]], label: str) -> Iterator[Text]:
    """Texts of all streams, the next always from the one that has given the fewest characters.

    ``label`` becomes the place of a text's stream among ``streams``.
    """
    places, given = list(streams), dict.fromkeys(streams, 0)
    while given:
        name = min(given, key=given.__getitem__)
        text = next(streams[name], None)
        if text is None:
            del given[name]
            continue
        given[name] += len(text.text)
        yield text._replace(labels={**text.labels, label: places.index(name)})


class LocalText:
    """The documents of ``path``: one a file (.txt, .md), a line (.jsonl), or a row (.parquet, .arrow,
    or a ``datasets`` folder saved to disk).

    A line ``<|endoftext|>`` or a form feed splits a plain file into documents; a single file without
    any is cut at blank lines (else at line ends, else between sentences) into documents of at least
    :data:`PIECE` characters. In a folder, hidden files are passed over, and beside files of rows so
    are its README and LICENSE. Line ends become \\n; a byte-order mark goes. Repeated documents are
    read once.

    Of each ten documents in a row, the seed picks one for the test split and one for validation (of
    the first ten, two of the first three, so that three documents are enough for all splits). Raises
    :class:`WorldError` when the path is missing, empty, not UTF-8, or has no "text" field.
    """

    min_tokens = 1

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.label_specs: dict[str, LabelSpec] = {"token": TOKEN_LABEL}
        if not self.path.exists():
            raise WorldError(
                f"Text {self.path} does not exist; give text=PATH of a .txt, .md, .jsonl or .parquet "
                "file, a folder of them, or a datasets folder saved to disk."
            )
        saved = ("state.json", "dataset_dict.json")
        self._is_saved = any((self.path / file).exists() for file in saved)

    def _files(self) -> list[Path]:
        """The files that are read, in order."""
        if self.path.is_file():
            return [self.path]
        names = sorted(file.relative_to(self.path) for file in self.path.rglob("*"))
        shown = (name for name in names if not any(part.startswith(".") for part in name.parts))
        files = [self.path / name for name in shown if (self.path / name).is_file()]
        if self._is_saved:
            return files
        rows = [file for file in files if _ends(file, ROWS)]
        about = [file for file in files if rows and file.stem.upper() in ABOUT]
        return [f for f in files if f in rows or (_ends(f, PLAIN) and f not in about)]

    def stamp(self) -> dict[str, Any]:
        """What identifies the text: files and bytes, so that a later change is noticed."""
        sizes = [file.stat().st_size for file in self._files()]
        return {"files": len(sizes), "bytes": sum(sizes)}

    def texts(self, split: str, seed: int) -> Iterator[Text]:
        """The documents of ``split``, in the order in which they lie on disk."""
        seen: set[int] = set()
        for text in self.raw():
            key = digest(text)
            if not text.strip() or key in seen:
                continue
            block, place = divmod(len(seen), _BLOCK)
            seen.add(key)
            n = _BLOCK if block else len(SPLITS)
            test = digest(seed, block) % n
            validation = (test + 1 + digest(seed, block, "validation") % (n - 1)) % n
            if {test: "test", validation: "validation"}.get(place, "train") == split:
                yield Text(text)

    def raw(self) -> Iterator[str]:
        """All documents, repeated ones too, in the order in which they lie on disk."""
        if self._is_saved:
            yield from _saved_dataset(self.path)
            return
        if not (files := self._files()):
            raise WorldError(
                f"Folder {self.path} holds no .txt, .md, .jsonl or .parquet file; add some text."
            )
        if not self.path.is_file():
            yield from (text for file in files for text in _file(file))
            return
        documents = _file(self.path)
        if (first := next(documents, None)) is None:
            raise WorldError(f"{self.path} holds no text; put some in it or give another file.")
        if _ends(self.path, PLAIN):
            yield from _pieces([first, *documents])
        else:
            yield first
            yield from documents


class MixedText:
    """Several texts at once, each a class of the document label ``source``.

    A sample is balanced (:func:`balanced`); each text keeps its own split. Errors are those of
    :class:`LocalText`.
    """

    min_tokens = 1

    def __init__(self, parts: Mapping[str, str]) -> None:
        self.parts = {name: LocalText(path) for name, path in parts.items()}
        source = LabelSpec("source", "document", tuple(parts))
        self.label_specs: dict[str, LabelSpec] = {"source": source, "token": TOKEN_LABEL}

    def stamp(self) -> dict[str, Any]:
        """The stamp of each text."""
        return {name: part.stamp() for name, part in self.parts.items()}

    def texts(self, split: str, seed: int) -> Iterator[Text]:
        """The documents of ``split``, each labelled with its source."""
        parts = self.parts.items()
        return balanced({name: part.texts(split, seed) for name, part in parts}, "source")


def _ends(path: Path, ends: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(ends)


def _pieces(documents: list[str]) -> Iterator[str]:
    """One long document in pieces of :data:`PIECE` characters or a little more, none torn; several
    documents as they are."""
    if len(documents) > 1:
        yield from documents
        return
    text, cuts = documents[0], [0]
    for starts in (paragraph_starts, _line_starts, sentence_starts):
        cuts = [0]
        for at in starts(text):
            if min(at - cuts[-1], len(text) - at) >= PIECE:
                cuts.append(at)
        if max(b - a for a, b in pairwise([*cuts, len(text)])) < 4 * PIECE:
            break
    for a, b in pairwise([*cuts, len(text)]):
        yield text[a:b].strip("\n")


def _line_starts(text: str) -> list[int]:
    return [match.end() for match in re.finditer("\n", text)]


def _clean(text: str) -> str:
    """Line ends as \\n, no byte-order mark, and no lone surrogate, which has no token."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return text.encode("utf-8", "replace").decode("utf-8")


def field(row: Any, where: str) -> str:
    """The text of a row of ``where``. Raises :class:`WorldError` where it has none."""
    if not isinstance(row, dict) or "text" not in row:
        has = f"but {', '.join(map(str, row))}" if isinstance(row, dict) and row else "at all"
        raise WorldError(f'{where} has no "text" field {has}; rename the field with the text.')
    if not isinstance(row["text"], str):
        what = "null" if row["text"] is None else f"of type {type(row['text']).__name__}"
        raise WorldError(
            f'{where} has a "text" that is {what}; remove the row or give it a string.'
        )
    return _clean(row["text"])


def _file(path: Path) -> Iterator[str]:
    """The documents of ``path``."""
    read = _plain if _ends(path, PLAIN) else _arrow if _ends(path, ROWS[2:]) else _jsonl
    if not _ends(path, PLAIN + ROWS):
        raise WorldError(
            f"{path} is not .txt, .md, .jsonl, .jsonl.gz or .parquet; convert it to one of them."
        )
    try:
        yield from read(path)
    except UnicodeDecodeError as error:
        raise WorldError(f"{path} is not UTF-8 ({error.reason}); convert it to UTF-8.") from error
    except (EOFError, OSError, ValueError) as error:  # of gzip and of Arrow
        raise WorldError(f"{path} is not whole ({_reason(error)}); copy it again.") from error


def _plain(path: Path) -> Iterator[str]:
    text = _clean(path.read_text(encoding="utf-8"))
    yield from (part.strip("\n") for part in _SEPARATOR.split(text) if part.strip())


def _jsonl(path: Path) -> Iterator[str]:
    opener = gzip.open if _ends(path, (".gz",)) else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                raise WorldError(
                    f"{path}, line {number}, is not JSON; put one JSON object on each line."
                ) from None
            yield field(row, f"{path}, line {number},")


def _arrow(path: Path) -> Iterator[str]:
    from datasets import Dataset
    from pyarrow import parquet

    if _ends(path, (".arrow",)):
        data = Dataset.from_file(str(path))
        yield from _rows(data.column_names, data, path)
        return
    file = parquet.ParquetFile(path)
    batches = file.iter_batches(batch_size=256, columns=["text"])
    rows = (row for batch in batches for row in batch.to_pylist())
    yield from _rows(file.schema_arrow.names, rows, path)


def _rows(columns: list[str], rows: Iterable[Any], path: Path) -> Iterator[str]:
    if "text" not in columns:
        raise WorldError(
            f'{path} has no "text" column but {", ".join(columns)}; rename the column with the text.'
        )
    for number, row in enumerate(rows, 1):
        yield field(row, f"{path}, row {number},")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _saved_dataset(path: Path) -> Iterator[str]:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # pyarrow, JSON and missing-file errors alike
        raise WorldError(
            f"The datasets folder {path} cannot be read ({_reason(error)}); save it again."
        ) from error
    for name, part in loaded.items() if isinstance(loaded, DatasetDict) else [("", loaded)]:
        yield from _rows(part.column_names, part, path / name)
