"""What docstrings and README refer to is there."""

import ast
import importlib
import operator
import pkgutil
import re
from pathlib import Path

from lab.paper import readme
from tsae import errors

ROOT = Path(__file__).parent.parent
MODULES = [file for room in ("tsae", "lab") for file in sorted((ROOT / room).rglob("*.py"))]
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
    if name.startswith(("tsae.", "lab.")):
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


README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_results_in_the_readme_are_those_of_the_committed_tables():
    assert readme.with_table(README, readme.from_committed(ROOT)) == README, (
        "run .venv/bin/python -m lab.pipeline readme"
    )


def test_every_file_that_a_page_links_to_is_there():
    links = [
        page.parent / path
        for page in PAGES
        for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 20 and [path for path in links if not path.exists()] == []


def test_the_readme_is_read_in_five_minutes():
    assert len(README.split()) <= 1000


def test_every_message_in_the_docs_is_one_that_the_code_gives():
    files = [*MODULES, *ROOT.glob("workflow/*.sh")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    joined = re.sub(r'"\s*f?"', "", source)  # a message runs over several literals
    said = re.sub(r"\{[^{}]*\}", "…", joined)
    page = (ROOT / "docs" / "MESSAGES.md").read_text(encoding="utf-8")
    table = page[page.index("| message |") :].split("\n\n")[0].strip().split("\n")[2:]
    messages = [line.split("`")[1] for line in table]
    assert len(messages) >= 8 and [text for text in messages if text not in said] == []
