"""Which stages are made again when a line of the code changes, on a copy of the whole house."""

import shutil
from pathlib import Path

import pytest
from tiny_project import write_files

from lab.pipeline import plan
from lab.pipeline.fingerprint import reached
from lab.pipeline.profile import leaves

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / "workflow" / "profiles" / "study.yaml"
LAST = {"figures"}


@pytest.fixture(scope="module")
def made_again(tmp_path_factory):
    """Gives a function: the stages that an edit of a file re-makes, and the plan before it; in a
    copy of both rooms."""
    house = tmp_path_factory.mktemp("house")
    for room in ("tsae", "lab"):
        shutil.copytree(ROOT / room, house / room, ignore=shutil.ignore_patterns("__pycache__"))
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
    ("name", "stages"),
    [
        ("lab/paper/topics/time.py", LAST),
        ("lab/paper/tables.py", LAST),
        ("lab/results/tidy.py", LAST),
        ("lab/pipeline/run.py", set()),
        ("lab/runs/smoke.py", set()),
    ],
)
def test_drawing_makes_the_last_notebook_anew_and_what_shapes_no_result_nothing(
    made_again, name, stages
):
    assert made_again(name)[0] == stages


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("tsae/saes/glta.py", "glta"),
        ("tsae/saes/lstm.py", "lstm"),
        ("lab/measures/concepts/autointerp.py", "autointerp"),
        ("lab/measures/time/effects.py", "effects"),
        ("lab/measures/time/order.py", "order"),
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
    assert {s.name for s in stages if not s.name.startswith("worlds-")} <= changed


def test_a_registry_is_read_without_being_imported(tmp_path):
    files = {
        "tsae/open/__init__.py": "import pkgutil\n",
        "tsae/open/x.py": "from tsae.open import base\n@register('x', 1)\nclass X:\n    pass\n",
        "tsae/open/y.py": "WORLDS = ('y', 'z')\n",
        "tsae/open/base.py": "",
        "tsae/open/lone.py": "",
    }
    write_files(tmp_path, files)

    def stems(*uses):
        found = reached(["tsae.open"], tmp_path, frozenset(uses))
        return {path.stem for path in found} - {"__init__"}

    assert stems() == {"x", "base", "y", "lone"}
    assert stems("x") == {"x", "base"} and stems("z", "other") == {"y"} and stems("other") == set()
