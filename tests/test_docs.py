"""What docstrings and README refer to is there."""

import ast
import importlib
import operator
import pkgutil
import re
from pathlib import Path

from tsae import errors

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "tsae").rglob("*.py"))
ROLE = re.compile(r":(?:class|func|meth|mod|data|exc|attr):`([^`]+)`")


def references(path):
    """Pairs (class the docstring stands in, or "", and the name it refers to)."""

    def below(node, inside):
        if isinstance(node, ast.ClassDef):
            inside = node.name
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for name in ROLE.findall(ast.get_docstring(node) or ""):
                yield inside, name
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            for name in ROLE.findall(str(node.value.value)):  # what describes a constant or a field
                yield inside, name
        for child in ast.iter_child_nodes(node):
            yield from below(child, inside)

    return sorted(set(below(ast.parse(path.read_text(encoding="utf-8")), "")))


def resolves(name, module, inside):
    """Whether ``name`` is in the class, in its module, an error, or a dotted path of the package."""
    if name.startswith("tsae."):
        try:
            pkgutil.resolve_name(name)
            return True
        except (ImportError, AttributeError):
            return False
    for start in (*([getattr(module, inside)] if inside else []), module, errors):
        try:
            operator.attrgetter(name)(start)
            return True
        except AttributeError:
            continue
    return False


def test_every_reference_in_a_docstring_resolves():
    missing = {}
    for path in MODULES:
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        module = importlib.import_module(dotted)
        found = {name for inside, name in references(path) if not resolves(name, module, inside)}
        missing |= {dotted: found} if found else {}
    assert missing == {}
