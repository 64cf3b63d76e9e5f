"""The two rooms of the house: the library stands alone, and the study stands on it."""

import ast
import re
import subprocess
import sys
import tomllib
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


def test_the_library_needs_its_own_dependencies_alone():
    """What ``pip install .`` brings is all that ``tsae`` imports; a wheel's name is its module's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = {re.split("[<>=]", text)[0] for text in project["dependencies"]}
    names = {n.split(".")[0] for f in (ROOT / "tsae").rglob("*.py") for n in imported(f)}
    assert names - set(sys.stdlib_module_names) - brought == {"tsae"}


def test_importing_the_saes_brings_no_drawing_and_no_engine():
    code = "import sys; from tsae import saes; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    heavy = {"matplotlib", "snakemake", "papermill", "pandas", "sklearn", "transformer_lens"}
    assert done.returncode == 0 and not heavy & set(done.stdout.split())


def test_no_file_is_longer_than_a_reader_likes():
    files = [f for room in ("tsae", "lab") for f in sorted((ROOT / room).rglob("*.py"))]
    assert [f for f in files if len(f.read_text(encoding="utf-8").splitlines()) > 300] == []
