"""What a stage's result depends on, as a hash, found without importing anything.

fingerprint = SHA-256(notebook code cells, source of the modules they reach, parameters).
Directories of input stages are parameters and end in their own fingerprints, so a change anywhere
upstream shows. Comments, docstrings and prose cells do not count, and neither does

* what makes no result: the pipeline, smoke-size inputs, and, but for the last notebook, drawing;
* of a folder whose modules are found at run time, the files that register another name than the
  stage's parameters hold (``@register("name")`` or ``WORLDS = ("name",)``): ``glta.py`` counts
  where a parameter says ``glta``.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tsae.errors import UserError
from tsae.files import sha256

ROOMS = ("tsae", "lab")
NO_RESULT = ("lab.pipeline", "lab.runs.smoke")
DRAWING = (
    "lab.paper",
    "lab.browser",
    "lab.results.tidy",
    "lab.results.metrics",
    "lab.results.systems",
)
"""How results look: the last notebook alone depends on it."""


class Module(NamedTuple):
    """What a file says about its dependencies."""

    imports: frozenset[str]
    """Dotted names of modules and of what is imported from them."""
    registers: frozenset[str]
    """Names in ``@register("name")`` and ``WORLDS``."""
    text: str
    """The tree as text without docstrings, comments and layout."""


def code_cells(notebook: Path) -> list[str]:
    """Sources of the notebook's code cells. Raises :class:`UserError` if it cannot be read."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{notebook} is not a whole notebook; restore it with git.") from None


def trees(notebook: Path) -> list[ast.Module]:
    """The syntax trees of its code cells, without magics (% and ! lines); :class:`UserError` for
    another error than those."""
    try:
        return [ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", cell)) for cell in code_cells(notebook)]
    except SyntaxError as error:
        raise UserError(f"{notebook}: {error.msg} in the cell line {error.text!r}.") from None


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, but for type checkers, and every name with its module's."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield from imports(node)


@cache
def parsed(path: Path) -> Module:
    """What the module at ``path`` depends on and registers, and its code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    registers: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            if getattr(node.targets[0], "id", "") == "WORLDS":
                registers |= set(ast.literal_eval(node.value))
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register":
                registers.add(ast.literal_eval(call.args[0]))
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not is_prose(line)]  # type: ignore[attr-defined]
    return Module(frozenset(imports(tree)), frozenset(registers), ast.dump(tree))


def is_prose(line: ast.stmt) -> bool:
    """Whether the statement is a text alone: the docstring of a module, class, function, field."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


@cache
def files_of(name: str, house: Path) -> list[Path]:
    """The files that importing ``name`` runs: the module, or the one it is a name of, and the
    packages around it."""
    parts = name.split(".")
    if parts[0] not in ROOMS:
        return []
    stems = [house.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    files = [file for stem in stems for file in (stem / "__init__.py", stem.with_suffix(".py"))]
    return [file for file in files if file.is_file()]


def reached(names: Iterable[str], house: Path, uses: frozenset[str] = frozenset()) -> set[Path]:
    """Files of the rooms in ``house`` that importing ``names`` runs, directly or through others.

    ``uses``: the names by which registered files count; none: all of them do, and drawing too.
    Data files beside a module count.
    """
    apart = NO_RESULT + DRAWING if uses else NO_RESULT
    found: set[Path] = set()
    seen: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in seen or any(f"{name}.".startswith(f"{room}.") for room in apart):
            continue
        seen.add(name)
        for path in set(files_of(name, house)) - found:
            found.add(path)
            module = parsed(path)
            todo += module.imports
            if {"pkgutil", "importlib.import_module"} & module.imports:  # it finds some at run time
                beside = {file: parsed(file).registers for file in path.parent.rglob("*.py")}
                whole = not uses or not any(beside.values())
                taken = [file for file in beside if whole or beside[file] & uses]
                todo += [".".join(f.relative_to(house).with_suffix("").parts) for f in taken]
    for folder in {path.parent for path in found}:
        found |= {file for file in folder.iterdir() if file.is_file() and file.suffix != ".py"}
    return found


@cache
def of_code(notebook: Path, house: Path, uses: frozenset[str]) -> str:
    """SHA-256 of a notebook's code and of the code and data of the house that it reaches."""
    digest = hashlib.sha256(json.dumps(code_cells(notebook)).encode())
    names = [name for tree in trees(notebook) for name in imports(tree)]
    for path in sorted(reached(names, house, uses)):
        content = parsed(path).text.encode() if path.suffix == ".py" else path.read_bytes()
        digest.update(f"\0{path.relative_to(house)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def of_path(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's names and sizes and times; :class:`UserError`
    when it cannot be read."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        seen = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    try:
        return sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from None


def forget() -> None:
    """Read the code anew next time; it may have changed while a stage was running."""
    for function in (files_of, parsed, of_code):
        function.cache_clear()
