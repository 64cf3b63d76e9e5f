"""Local text as documents: plain files and folders, JSONL, ``datasets`` folders saved to disk."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lab.worlds.annotate import TOKEN_LABEL, Text
from tsae.errors import WorldError
from tsae.sequences import LabelSpec

PLAIN = (".txt", ".md")
_SEPARATOR = re.compile(r"^(?:<\|endoftext\|>|\f)[ \t]*$", re.MULTILINE)
_BLOCK = 10  # one document in so many is held out


def digest(*parts: object) -> int:
    """A 64-bit number that depends on ``parts`` alone, not on the process."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


class LocalText:
    """The documents of ``path``: one a file (.txt, .md), a line (.jsonl), or a row (``datasets``).

    A line ``<|endoftext|>`` or a form feed splits a plain file into documents. Repeated documents
    are read once. Of each ten documents in a row, one that the seed picks is in the test split (of
    the first ten, one of the first two, so that two documents are enough for both splits). Raises
    :class:`WorldError` when the path is missing, empty, not UTF-8, or has no "text" field.
    """

    min_tokens = 1

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.label_specs: dict[str, LabelSpec] = {"token": TOKEN_LABEL}
        if not self.path.exists():
            raise WorldError(
                f"Text {self.path} does not exist; give text=PATH of a .txt, .md or .jsonl file, "
                "a folder of them, or a datasets folder saved to disk."
            )

    def stamp(self) -> dict[str, Any]:
        """What identifies the text: files and bytes, so that a later change is noticed."""
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*"))
        sizes = [file.stat().st_size for file in files if file.is_file()]
        return {"files": len(sizes), "bytes": sum(sizes)}

    def texts(self, split: str, seed: int) -> Iterator[Text]:
        """The documents of ``split``, in the order in which they lie on disk."""
        seen: set[int] = set()
        for text in self._raw():
            key = digest(text)
            if not text.strip() or key in seen:
                continue
            block, place = divmod(len(seen), _BLOCK)
            seen.add(key)
            held_out = place == digest(seed, block) % (_BLOCK if block else 2)
            if held_out == (split == "test"):
                yield Text(text)

    def _raw(self) -> Iterator[str]:
        if self.path.is_file():
            yield from _file(self.path)
        elif any((self.path / f).exists() for f in ("state.json", "dataset_dict.json")):
            yield from _saved_dataset(self.path)
        else:
            files = [f for f in sorted(self.path.rglob("*")) if f.is_file() and _known(f)]
            if not files:
                raise WorldError(
                    f"Folder {self.path} holds no .txt, .md or .jsonl file; add some text."
                )
            for file in files:
                yield from _file(file)


class MixedText:
    """Several texts at once, each a class of the document label ``source``.

    The next document always comes from the text that has given the fewest characters so far, so
    that a sample is balanced; each text keeps its own split. Errors are those of :class:`LocalText`.
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
        streams = {name: part.texts(split, seed) for name, part in self.parts.items()}
        given = dict.fromkeys(streams, 0)
        classes = list(self.parts)
        while given:
            name = min(given, key=given.__getitem__)
            text = next(streams[name], None)
            if text is None:
                del given[name]
                continue
            given[name] += len(text.text)
            yield text._replace(labels={"source": classes.index(name)})


def _known(path: Path) -> bool:
    return path.name.endswith((*PLAIN, ".jsonl", ".jsonl.gz"))


def _file(path: Path) -> Iterator[str]:
    if not _known(path):
        raise WorldError(
            f"{path} is not .txt, .md, .jsonl or .jsonl.gz; convert it to one of them."
        )
    if path.stat().st_size == 0:
        raise WorldError(f"{path} is empty; put text in it or remove it.")
    try:
        yield from _plain(path) if path.name.endswith(PLAIN) else _jsonl(path)
    except UnicodeDecodeError as error:
        raise WorldError(f"{path} is not UTF-8 ({error.reason}); convert it to UTF-8.") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise WorldError(f"{path} is not a whole gzip file; copy it again.") from error


def _plain(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise WorldError(f"{path} holds only blank space; put text in it or remove it.")
    yield from (part.strip("\n") for part in _SEPARATOR.split(text))


def _jsonl(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                raise WorldError(
                    f"{path}, line {number}, is not JSON; put one JSON object on each line."
                ) from None
            yield _field(row, f"{path}, line {number},")


def _field(row: Any, where: str) -> str:
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise WorldError(
            f'{where} has no "text" field that is a string; rename the field with the text.'
        )
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no token


def _saved_dataset(path: Path) -> Iterator[str]:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # pyarrow, JSON and missing-file errors alike
        reason = " ".join(str(error).split())[:160]
        raise WorldError(
            f"The datasets folder {path} cannot be read ({reason}); save it again."
        ) from error
    for part in loaded.values() if isinstance(loaded, DatasetDict) else [loaded]:
        if "text" not in part.column_names:
            raise WorldError(
                f'The datasets folder {path} has no "text" column but '
                f"{', '.join(part.column_names)}; rename the column with the text."
            )
        for row in part.select_columns("text"):
            yield _field(row, f"A row of {path}")
