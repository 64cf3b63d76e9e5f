"""``pydocs``: the docstrings of installed libraries, real technical English on every machine.

Sources are read with ``ast`` and never imported. Sections are recognised in the numpy style (a
title underlined with dashes), the Google style (a title with a colon above an indented block) and
the Sphinx style (``:param x:``).
"""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab.worlds.annotate import TOKEN_LABEL, Text
from lab.worlds.text import balanced, digest
from tsae.errors import WorldError
from tsae.sequences import LabelSpec

# Import name → distribution; each has about 1 MB of docstrings or more.
_SAME = "matplotlib networkx numpy pandas scipy sklearn sympy torch transformers".split()
LIBRARIES = {name: name for name in _SAME} | {"sklearn": "scikit-learn"}
SECTIONS = (
    "description parameters returns raises attributes methods see_also notes examples references other"
).split()
_TITLES = {
    "parameters": "parameters|other parameters|params|args|arguments|keyword args|inputs"
    "|keyword arguments",
    "returns": "returns|return|yields|outputs",
    "raises": "raises|warns|warnings",
    "attributes": "attributes|variables",
    "methods": "methods",
    "see_also": "see also",
    "notes": "notes|note|explanation|algorithm",
    "examples": "examples|example|usage",
    "references": "references|reference",
    "other": "shape",
}
_CLASS = {t: SECTIONS.index(name) for name, titles in _TITLES.items() for t in titles.split("|")}
_FIELDS = {"param": 1, "type": 1, "parameter": 1, "return": 2, "returns": 2, "rtype": 2}
_FIELDS |= {"raises": 3, "raise": 3}
_DESCRIPTION, _OTHER = 0, SECTIONS.index("other")
_UNDERLINE = re.compile(r"(-{3,}|={3,})$")
_GOOGLE = re.compile(r"([A-Z][A-Za-z ]*?)::?$")
_FIELD = re.compile(r":(\w+)\b[^:\n]*:")
_ENTRY = re.compile(r"\*{0,2}\w[\w, *.]* : \S|\*{0,2}`?\w+`? ?\([^)]*\): ?\S|\w+: \S")
_MIN_CHARACTERS, _MAX_CHARACTERS = 120, 8192
_FILES_AT_ONCE = 32
_NOT_LETTERS = re.compile(r"[^a-z]+")


def sections(text: str) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    """((first character, section class), …) and the characters where entries of a list start.

    Text before the first title, and what follows a Google-style block at its title's indent, is
    ``description``; a numpy-style title that is not known is ``other``.
    """
    spans = {0: _DESCRIPTION}
    section, entries, start = _DESCRIPTION, [], 0
    lines = text.split("\n")
    google_indent = -1  # of the open Google-style title; −1 when none is open
    for i, line in enumerate(lines):
        title, indent = line.strip(), len(line) - len(line.lstrip())
        at, start, was = start + indent, start + len(line) + 1, section
        after = lines[i + 1].strip() if i + 1 < len(lines) else ""
        google, field = _GOOGLE.match(title), _FIELD.match(title)
        if not title:
            continue
        if _UNDERLINE.match(after) and not _UNDERLINE.match(title):
            spans[at] = section = _CLASS.get(title.lower(), _OTHER)
            google_indent = -1
        elif google and google[1].lower() in _CLASS and _indented(lines[i + 1 :], indent):
            spans[at] = section = _CLASS[google[1].lower()]
            google_indent = indent
        elif field and field[1] in _FIELDS:
            section = _FIELDS[field[1]]
            if section != was:
                spans[at] = section
            entries.append(at)
        elif indent <= google_indent:
            spans[at] = section = _DESCRIPTION
            google_indent = -1
        elif section in (1, 2, 3, 4) and _ENTRY.match(title):
            entries.append(at)
    return sorted(spans.items()), tuple(entries)


def _indented(lines: list[str], indent: int) -> bool:
    """Whether the first of ``lines`` with text is indented deeper than ``indent``."""
    first = next((line for line in lines if line.strip()), "")
    return len(first) - len(first.lstrip()) > indent


def docstrings(source: bytes) -> Iterator[str]:
    """Docstrings of a module's source, dedented; none if it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            raw = ast.get_docstring(node, clean=False)
            if raw and len(raw) >= _MIN_CHARACTERS:
                yield _capped(inspect.cleandoc(raw).encode("utf-8", "replace").decode("utf-8"))


def _capped(text: str) -> str:
    """At most ``_MAX_CHARACTERS``, cut at the end of a line."""
    if len(text) <= _MAX_CHARACTERS:
        return text
    return text[: text.rfind("\n", 0, _MAX_CHARACTERS) + 1 or _MAX_CHARACTERS].rstrip()


def family(text: str) -> str:
    """The first 200 letters in lower case: equal for repeats and for 1-d and 2-d of one thing."""
    return _NOT_LETTERS.sub("", text[:800].lower())[:200]


def split_of(key: int) -> str:
    """Where a family with this hash belongs."""
    return ("test", "validation", *["train"] * 8)[key % 100 // 10]


class Pydocs:
    """Docstrings of the installed ones of :data:`LIBRARIES`, each family (see :func:`family`) once.

    Labels: ``library`` (document), ``section`` (section), ``token`` (token). The next document
    always comes from the library that has given the fewest characters so far, so a small sample is
    balanced; only as many files are read as asked for. A seeded hash of the family decides the
    split (10% test, 10% validation). Raises :class:`WorldError` when no library is installed.
    """

    min_tokens = 40

    def __init__(self) -> None:
        self._roots = {
            name: Path(spec.submodule_search_locations[0])
            for name in LIBRARIES
            if (spec := find_spec(name)) and spec.submodule_search_locations
        }
        if not self._roots:
            raise WorldError(
                f"None of {', '.join(LIBRARIES)} is installed; install one or give text=PATH."
            )
        self.label_specs = {
            "library": LabelSpec("library", "document", tuple(self._roots)),
            "section": LabelSpec("section", "section", tuple(SECTIONS)),
            "token": TOKEN_LABEL,
        }

    def stamp(self) -> dict[str, Any]:
        """Version of each library read."""
        return {name: metadata.version(LIBRARIES[name]) for name in self._roots}

    def texts(self, split: str, seed: int) -> Iterator[Text]:
        """The docstrings of ``split`` in an order that the seed alone decides."""
        seen: set[int] = set()
        streams = {name: self._library(name, split, seed, seen) for name in self._roots}
        return balanced(streams, "library")

    def _library(self, name: str, split: str, seed: int, seen: set[int]) -> Iterator[Text]:
        root = self._roots[name]
        files = [path.relative_to(root).as_posix() for path in root.rglob("*.py")]
        files = [file for file in files if not {"test", "tests"} & set(file.split("/"))]
        files.sort(key=lambda file: digest(seed, name, file))
        for i in range(0, len(files), _FILES_AT_ONCE):
            chunk = files[i : i + _FILES_AT_ONCE]
            texts = [text for file in chunk for text in docstrings((root / file).read_bytes())]
            # Shuffled, or the documents of one file would follow one another.
            for text in sorted(texts, key=lambda text: digest(seed, text)):
                key = digest(seed, family(text))
                if key not in seen and split_of(key) == split:
                    seen.add(key)
                    spans, entries = sections(text)
                    yield Text(text, {}, {"section": spans}, entries)
