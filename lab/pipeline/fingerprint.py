"""What a stage's result depends on, as a hash, found without importing anything.

fingerprint = SHA-256(notebook code cells, source of the modules they reach, parameters).
Directories of input stages are parameters and end in their own fingerprints, so a change anywhere
upstream shows. Comments, docstrings and prose cells do not count, and neither does

* what makes no result: the pipeline, smoke-size inputs, and, but for the last notebook, drawing;
* of a registry, what the stage does not name. A registry is a dictionary of a module's top level
  whose keys are words and whose values are imported names or dotted paths, or a folder whose files
  say ``@register("name")`` or ``WORLDS = ("name",)`` and are found at run time: the file of
  ``glta`` counts where a parameter says ``glta``.
"""

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tsae.errors import UserError

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
DOTTED = re.compile(r"\w+(\.\w+)+")


class Module(NamedTuple):
    """What a file says about its dependencies."""

    imports: tuple[str, ...]
    """Dotted names; ``from a import b`` gives both ``a`` and ``a.b``, since b may be a module."""
    keyed: tuple[tuple[str, str], ...]
    """(key, dotted name) of what only a registry's entry uses."""
    registers: frozenset[str]
    """Names in ``@register("name")`` and ``WORLDS``."""
    finds: bool
    """Whether it imports modules that are found at run time."""
    text: str
    """The tree as text without docstrings, comments and layout."""


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


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING``, which only a type checker reads."""
    yield tree
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield from running(node)


def imports(tree: ast.AST, package: str = "") -> Iterator[tuple[str, str, str]]:
    """(local name, module, dotted name) of every import; ``package``: where relative ones start."""
    for node in running(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield alias.asname or alias.name, base, f"{base}.{alias.name}"


def registries(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """(key, value) of the dictionaries at the top level whose keys are words."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value, value


@cache
def parsed(path: Path, package: str) -> Module:
    """What the module at ``path`` of ``package`` depends on, and its code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    entries = [(key, node) for key, value in registries(tree) for node in ast.walk(value)]
    keys: dict[str, set[str]] = {}
    for key, node in entries:
        if isinstance(node, ast.Name):
            keys.setdefault(node.id, set()).add(key)
    inside = Counter(node.id for _, node in entries if isinstance(node, ast.Name))
    everywhere = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    plain, keyed = [], []
    for local, base, dotted in imports(tree, package):
        if local in keys and inside[local] == everywhere[local]:
            keyed += [(key, name) for key in keys[local] for name in (base, dotted)]
        else:
            plain += [base, dotted]
    words = [(k, node.value) for k, node in entries if isinstance(node, ast.Constant)]
    paths = [(k, w) for k, w in words if isinstance(w, str) and DOTTED.fullmatch(w)]
    keyed += [(k, place) for k, w in paths for place in (w, f"{package}.{w}")]
    registers = {name for node in tree.body for name in worlds(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            calls = [d for d in node.decorator_list if isinstance(d, ast.Call) and d.args]
            named = [d.args[0] for d in calls if getattr(d.func, "id", "") == "register"]
            registers |= {str(name.value) for name in named if isinstance(name, ast.Constant)}
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                if isinstance(first.value.value, str):
                    node.body = node.body[1:]
    finds = bool({"pkgutil", "importlib.import_module"} & set(plain))
    return Module(tuple(plain), tuple(keyed), frozenset(registers), finds, ast.dump(tree))


def worlds(node: ast.stmt) -> tuple[str, ...]:
    """The names in ``WORLDS = ("name",)``."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
        if getattr(node.targets[0], "id", "") == "WORLDS":
            return ast.literal_eval(node.value)
    return ()


def inside(path: Path, house: Path) -> str:
    """Dotted name of the package that the module at ``path`` belongs to."""
    return ".".join(path.parent.relative_to(house).parts)


def below(name: str, rooms: Iterable[str]) -> bool:
    """Whether the module ``name`` is one of ``rooms`` or inside one."""
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


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


def reached(trees: Iterable[ast.AST], house: Path, uses: frozenset[str] | None = None) -> set[Path]:
    """Files of the rooms in ``house`` that ``trees`` import, directly or through one another.

    ``uses``: the names that a stage's parameters hold, by which entries of registries count; None:
    all of them do, and drawing too. Of a folder whose modules are found at run time those count
    that register one of the names, or all where none registers any. Data files beside a reached
    module count.
    """
    apart = NO_RESULT if uses is None else NO_RESULT + DRAWING
    found: set[Path] = set()
    seen: set[str] = set()
    todo = [name for tree in trees for _, *names in imports(tree) for name in names]
    while todo:
        name = todo.pop()
        if name in seen or below(name, apart):
            continue
        seen.add(name)
        for path in files_of(name, house):
            if path in found:
                continue
            found.add(path)
            here = inside(path, house)
            module = parsed(path, here)
            todo += module.imports
            todo += [dotted for key, dotted in module.keyed if uses is None or key in uses]
            if module.finds:
                files = {
                    f: parsed(f, inside(f, house)).registers for f in path.parent.rglob("*.py")
                }
                whole = uses is None or not any(files.values())
                named = [f for f in files if whole or files[f] & (uses or set())]
                todo += [f"{inside(f, house)}.{f.stem}" for f in named]
    for folder in {path.parent for path in found}:
        found |= {file for file in folder.iterdir() if file.is_file() and file.suffix != ".py"}
    return found


@cache
def code_fingerprint(notebook: Path, house: Path, uses: frozenset[str] | None = None) -> str:
    """SHA-256 of a notebook's code and of the code and data of the house that it reaches."""
    cells = code_cells(notebook)
    trees = [python_of(cell, notebook) for cell in cells]
    digest = hashlib.sha256(json.dumps(cells).encode())
    for path in sorted(reached(trees, house, uses)):
        if path.suffix == ".py":
            content = parsed(path, inside(path, house)).text.encode()
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
    files_of.cache_clear()
    parsed.cache_clear()
    code_fingerprint.cache_clear()
