"""The two rooms of the house: the library stands alone, and the study stands on it."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_library_never_imports_the_lab():
    files = sorted((ROOT / "tsae").rglob("*.py"))
    assert len(files) > 40
    assert [f for f in files if any(name.split(".")[0] == "lab" for name in imported(f))] == []
