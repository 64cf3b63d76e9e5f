"""What a stage's result depends on, as a hash, found without importing anything.

fingerprint = SHA-256(notebook code cells, source of the package modules they reach, parameters).
Directories of input stages are parameters and end in their own fingerprints, so a change anywhere
upstream shows. Comments, docstrings and prose cells do not count.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tsae.errors import UserError

ROOMS = ("tsae", "lab")
ENGINE_ROOM = ("lab", "pipeline")


def code_cells(notebook: Path) -> list[str]:
    """Sources of the notebook's code cells. Raises :class:`UserError` if it cannot be read."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except FileNotFoundError:
        raise UserError(f"There is no notebook {notebook}; restore it with git.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{notebook} is not a whole notebook; restore it with git.") from None


def python_of(source: str, notebook: Path) -> ast.Module:
    """The cell's syntax tree without magics (% and ! lines); a %%-cell is empty.

    Raises :class:`UserError` when what is left is not Python.
    """
    lines = (line for line in source.split("\n") if not line.lstrip().startswith(("%", "!")))
    try:
        return ast.parse("" if source.startswith("%%") else "\n".join(lines))
    except SyntaxError as error:
        raise UserError(f"{notebook}: {error.msg} in the cell line {error.text!r}.") from None


def imports(tree: ast.AST, package: str = "") -> Iterator[str]:
    """Dotted names that ``tree`` imports; ``package`` is what relative imports start from.

    ``from a import b`` gives both ``a`` and ``a.b``, since b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def parsed(path: Path, package: str) -> tuple[tuple[str, ...], str]:
    """(names that a module imports, its tree as text without docstrings, comments and layout)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                if isinstance(first.value.value, str):
                    node.body = node.body[1:]
    return tuple(imports(tree, package)), ast.dump(tree)


def inside(path: Path, house: Path) -> str:
    """Dotted name of the package that the module at ``path`` belongs to."""
    return ".".join(path.parent.relative_to(house).parts)


def reached(trees: Iterable[ast.AST], house: Path) -> set[Path]:
    """Files of the rooms in ``house`` that ``trees`` import, directly or through one another.

    A package that finds its modules at run time (importlib, pkgutil) counts whole, and data files
    beside a reached module count too. The engine's own room does not count: a new progress
    line must not retrain anything.
    """
    found: set[Path] = set()
    todo = [name for tree in trees for name in imports(tree)]
    while todo:
        name = todo.pop()
        parts = name.split(".")
        if parts[0] not in ROOMS or tuple(parts[:2]) == ENGINE_ROOM:
            continue
        wanted = [house / parts[0] / "__init__.py"]
        for depth in range(1, len(parts)):
            stem = house.joinpath(*parts[: depth + 1])
            wanted += [stem / "__init__.py", stem.with_suffix(".py")]
        for path in wanted:
            if path in found or not path.is_file():
                continue
            found.add(path)
            names = parsed(path, inside(path, house))[0]
            todo += names
            finds = any(n.partition(".")[0] in ("importlib", "pkgutil") for n in names)
            if finds and path.name == "__init__.py":
                here = inside(path, house)
                todo += [f"{here}.{file.stem}" for file in path.parent.glob("*.py")]
    for folder in {path.parent for path in found}:
        found |= {file for file in folder.iterdir() if file.is_file() and file.suffix != ".py"}
    return found


@cache
def code_fingerprint(notebook: Path, house: Path) -> str:
    """SHA-256 of a notebook's code and of the package code and data that it reaches."""
    cells = code_cells(notebook)
    trees = [python_of(cell, notebook) for cell in cells]
    digest = hashlib.sha256(json.dumps(cells).encode())
    for path in sorted(reached(trees, house)):
        if path.suffix == ".py":
            content = parsed(path, inside(path, house))[1].encode()
        else:
            content = path.read_bytes()
        digest.update(f"\0{path.relative_to(house)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def path_fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's names and sizes and times.

    Raises :class:`UserError` when nothing is there.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        seen = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from None


def of_parameters(*parts: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def forget() -> None:
    """Read the code anew next time; it may have changed while a stage was running."""
    parsed.cache_clear()
    code_fingerprint.cache_clear()
