"""Which stages are made again when a line of the code changes, on a copy of the whole house."""

import ast
import shutil
from pathlib import Path

import pytest

from lab.measures import DEFAULT
from lab.pipeline import plan
from lab.pipeline.fingerprint import reached
from lab.pipeline.planner import FAMILIES
from lab.pipeline.profile import leaves
from lab.runs.evaluation import ABLATION_FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / "workflow" / "profiles" / "study.yaml"
LAST = {"figures/all", "paper"}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of both rooms."""
    copy = tmp_path_factory.mktemp("house")
    for room in ("tsae", "lab"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def made_again(house):
    """Gives a function: the stages that an edit of a file re-makes, and the plan before it."""
    before = plan(PROFILE, ROOT, house=house)

    def edit(name):
        file = house / name
        old = file.read_text(encoding="utf-8")
        file.write_text(f"{old}\nADDED = 1\n", encoding="utf-8")
        after = {stage.name: stage.directory for stage in plan(PROFILE, ROOT, house=house)}
        file.write_text(old, encoding="utf-8")
        return {s.name for s in before if after[s.name] != s.directory}, before

    return edit


def naming(stages, word):
    """The stages whose parameters hold ``word``, or a directory of such a stage, and the last."""
    found = set()
    for stage in stages:
        given = {value for _, value in leaves(stage.parameters)}
        if given & set(word.split("|")) or found & set(stage.inputs):
            found.add(stage.name)
    return found | LAST


@pytest.mark.parametrize(
    "name", ["lab/paper/topics/time.py", "lab/paper/tables.py", "lab/results/tidy.py"]
)
def test_drawing_and_words_make_the_last_notebook_anew(made_again, name):
    assert made_again(name)[0] == LAST


@pytest.mark.parametrize("name", ["lab/pipeline/engine.py", "lab/runs/smoke.py"])
def test_what_shapes_no_result_makes_nothing_anew(made_again, name):
    assert made_again(name)[0] == set()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("tsae/saes/glta.py", "glta"),
        ("tsae/saes/lstm.py", "lstm"),
        ("lab/measures/concepts/autointerp.py", "autointerp"),
        ("lab/measures/time/lifetimes.py", "lifetimes"),
        ("lab/measures/truth/gates.py", "gates"),
        ("lab/worlds/pydocs.py", "smollm2|pydocs"),
    ],
)
def test_a_registered_file_makes_anew_what_names_it(made_again, name, word):
    changed, stages = made_again(name)
    assert changed == naming(stages, word)
    assert len(changed) < len(stages) - 5


@pytest.mark.parametrize("name", ["tsae/saes/base.py", "tsae/training/train.py", "tsae/files.py"])
def test_the_base_makes_every_sae_anew(made_again, name):
    changed, stages = made_again(name)
    assert {s.name for s in stages if not s.name.startswith("worlds/")} <= changed


def test_a_registry_is_read_without_being_imported(tmp_path):
    """One module a form: a dictionary of functions, of paths, a folder of ``register``; and a
    name that is used outside of its dictionary too."""
    files = {
        "tsae/__init__.py": "",
        "lab/__init__.py": "",
        "lab/a.py": "",
        "lab/b.py": "",
        "lab/c.py": "",
        "lab/d.py": "",
        "lab/table.py": "from lab import a, b\nfrom lab.d import f\n"
        "TABLE = {'a': a.run, 'b': b.run, 'c': 'lab.c', 'd': f}\nb.run()\n",
        "tsae/open/__init__.py": "import pkgutil\n",
        "tsae/open/x.py": "from tsae.open import base\n@register('x', 1)\nclass X:\n    pass\n",
        "tsae/open/y.py": "@register('y', 1)\nclass Y:\n    pass\n",
        "tsae/open/base.py": "",
        "tsae/open/lone.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    tree = ast.parse("import lab.table, tsae.open")

    def stems(*uses):
        found = reached([tree], tmp_path, frozenset(uses) if uses else None)
        return {path.stem for path in found} - {"__init__", "table", "base", "b"}

    assert stems() == {"a", "c", "d", "x", "y", "lone"}
    assert stems("a", "x") == {"a", "x"}
    assert stems("c", "d") == {"c", "d"}
    assert stems("other") == set()


def test_families_that_nobody_names_are_those_that_are_measured():
    assert FAMILIES == {"04_evaluate": DEFAULT, "06_ablate": ABLATION_FAMILIES}
