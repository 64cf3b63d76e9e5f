"""Pins, scripts and profiles: what a fresh clone is made from."""

import pkgutil
import re
import subprocess
import tomllib
from pathlib import Path

import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_project import write_files

import tsae
from lab.measures.families import check_options
from lab.measures.unlearning.config import UnlearnConfig
from lab.pipeline import plan
from lab.pipeline.fingerprint import imports, trees
from lab.pipeline.run import check_input
from tsae import saes

ROOT = Path(__file__).resolve().parents[1]
PROFILES = sorted(ROOT.glob("workflow/profiles/*.yaml"))
UNLEARNING = ("gates", "edits", "strengths", "n_latents", "retain_thresholds", "n_facts")
OWN_MODEL = {"model": "tests"}  # any path will do for a plan


LOCKED = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line[0] != "#"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_lock_pins_exactly_and_once_and_meets_every_requirement_of_the_project():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in LOCKED)
    pins = dict(line.split("==") for line in LOCKED)
    assert list(pins) == sorted(pins) and len(pins) == len(LOCKED)
    assert {"torch==2.13.0", "transformer-lens==4.3.0"} <= set(LOCKED)
    assert "torchvision" not in pins
    extras = PROJECT["optional-dependencies"]
    for text in PROJECT["dependencies"] + extras["lab"] + extras["dev"]:
        needed = Requirement(text)
        assert pins[canonicalize_name(needed.name)] in needed.specifier, text


def test_conda_environment_equals_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = {"pip": [*LOCKED, "--editable ."]}
    assert environment["dependencies"] == ["python=3.11", "pip", pip]
    assert environment["channels"][0] == "conda-forge"


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == citation["version"] == tsae.__version__
    assert PROJECT["license"] == citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


@pytest.mark.parametrize("script", ["run_all.sh", "run_tests.sh", ".ci/run", "workflow/setup.sh"])
def test_script_is_bash_and_can_be_called(script):
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert script == "workflow/setup.sh" or (ROOT / script).stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize(
    "command, words",
    [
        (["run_all.sh", "--profile", "nothing"], "no profile 'nothing'; choose one of: "),
        (["run_all.sh", "--speed"], "unknown option '--speed'"),
        (["run_all.sh", "--cores"], "option --cores needs a value"),
        (["run_tests.sh", "--fast"], "takes no options"),
    ],
)
def test_wrong_option_is_one_line_before_any_set_up(tmp_path, command, words):
    command = [ROOT / command[0], *command[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_help_names_every_profile():
    told = subprocess.check_output([ROOT / "run_all.sh", "--help"], text=True)
    assert f"what to run: {', '.join(path.stem for path in PROFILES)} (" in told


PIP = """#!/bin/bash
if [ "$1 $2" = "-m pip" ]; then
    echo "$@" >>asked
    [ ! -e offline ]
    exit
fi
exec python3 "$@"
"""


def test_set_up_installs_torch_first_goes_on_after_a_failure_and_repeats_for_free(tmp_path):
    """On the set-up's files, with a Python that records what pip is asked."""
    files = ("requirements.lock", "pyproject.toml", "workflow/setup.sh")
    write_files(tmp_path, {name: (ROOT / name).read_text() for name in files})
    write_files(tmp_path, {".venv/bin/python": PIP, "offline": ""})
    (tmp_path / ".venv/bin/python").chmod(0o755)

    def setup() -> tuple:
        script = ["bash", "-c", ". workflow/setup.sh; setup_python"]
        (tmp_path / "asked").write_text("")
        done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
        asked = (tmp_path / "asked").read_text().splitlines()
        asked = [line.partition("--no-compile ")[2] for line in asked]
        return done.returncode, done.stdout, done.stderr, asked

    status, _, told, _ = setup()
    assert status == 2 and told.count("\n") == 1
    assert "pip could not install torch==2.13.0" in told
    assert not (tmp_path / ".venv/stamp").exists()
    (tmp_path / "offline").unlink()
    wanted = ["torch==2.13.0", "-r requirements.lock", "--no-deps --editable ."]
    assert setup()[::3] == (0, wanted)
    assert setup() == (0, "", "", [])
    with open(tmp_path / "requirements.lock", "a") as lock:
        lock.write("# changed\n")
    assert setup()[::3] == (0, wanted)


@pytest.fixture(scope="module", params=PROFILES, ids=lambda path: path.stem)
def stages(request):
    return plan(request.param, ROOT, OWN_MODEL if request.param.stem == "local" else {})


def test_profile_leaves_nothing_at_a_notebooks_smoke_size(stages):
    for stage in stages:
        known = papermill.inspect_notebook(str(ROOT / stage.notebook))
        no_size = ("[]", "{}", '""', "True", "False", "0")
        empty = {name for name, it in known.items() if it["default"] in no_size}
        given = stage.parameters
        families = given.get("families") or ("splice", "context")
        idle = {"splice_tokens"} if "splice" not in families else set()
        idle |= {"n_context_sequences"} if "context" not in families else set()
        idle |= {"null_window"} if given.get("nulls") is False else set()
        assert set(given) <= set(known), stage.name
        assert set(known) - set(given) <= empty | idle, stage.name


def test_profile_can_be_run(stages):
    """Every stage's notebook knows its parameters; every world and SAE of the grid exists."""
    check_input(stages, ROOT)
    for stage in stages:
        given = stage.parameters
        for family in given.get("families", ()):
            check_options(family, given.get("family_options", {}).get(family, {}))
        if stage.name.startswith("unlearn"):
            UnlearnConfig(**{name: given[name] for name in UNLEARNING}, **given.get("settings", {}))
        for run in [given, *given.get("grid", [])]:
            if "variant" in run:
                asked = {key: run[key] for key in ("act", "k") if run[key] is not None}
                options = {"d_in": 8, "d_sae": run["d_sae"], **asked, **run["options"]}
                assert saes.build(run["variant"], **options).cfg.k == run["k"]


def test_exactly_one_profile_is_canonical():
    canonical = [p.stem for p in PROFILES if yaml.safe_load(p.read_text()).get("canonical")]
    assert canonical == ["laptop"]
    named = "gemma-2-2b gpt2 laptop local smoke study"
    assert [path.stem for path in PROFILES] == named.split()


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/**/*.ipynb")), ids=lambda p: p.stem)
def test_what_a_notebook_imports_is_there(path):
    """A renamed function shows here in a second, where the notebook takes a minute."""
    for dotted in {name for tree in trees(path) for name in imports(tree)}:
        if dotted.partition(".")[0] in ("tsae", "lab"):
            pkgutil.resolve_name(dotted)
