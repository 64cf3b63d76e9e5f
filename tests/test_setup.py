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

import tsae
from lab.measures.families import check_options
from lab.measures.unlearning.config import UnlearnConfig
from lab.pipeline import plan
from lab.pipeline.fingerprint import code_cells, imports, python_of
from lab.pipeline.run import check_input
from tsae import saes

ROOT = Path(__file__).resolve().parents[1]
PROFILES = sorted(ROOT.glob("workflow/profiles/*.yaml"))
UNLEARNING = ("gates", "edits", "strengths", "n_latents", "retain_thresholds", "n_facts")
OWN_MODEL = {"model": "tests"}  # any path will do for a plan


def locked() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_lock_pins_exactly_and_once():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in locked())
    names = [line.partition("==")[0] for line in locked()]
    assert names == sorted(set(names))
    assert {"torch==2.13.0", "transformer-lens==4.3.0"} <= set(locked())
    assert "torchvision" not in names


def test_lock_meets_every_requirement_of_the_project():
    pins = dict(line.split("==") for line in locked())
    extras = project()["optional-dependencies"]
    for text in project()["dependencies"] + extras["lab"] + extras["dev"]:
        needed = Requirement(text)
        assert pins[canonicalize_name(needed.name)] in needed.specifier, text


def test_conda_environment_equals_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert environment["channels"][0] == "conda-forge"
    assert pip == {"pip": [*locked(), "--editable ."]}


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project()["version"] == citation["version"] == tsae.__version__
    assert project()["license"] == citation["license"] == "MIT"
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
    done = subprocess.run([ROOT / "run_all.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert f"what to run: {', '.join(path.stem for path in PROFILES)} (" in done.stdout


@pytest.fixture
def bare_copy(tmp_path):
    """The set-up's files without an environment, and a Python that records what pip is asked."""
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow" / "setup.sh").write_bytes((ROOT / "workflow/setup.sh").read_bytes())
    venv = tmp_path / ".venv" / "bin"
    venv.mkdir(parents=True)
    python = venv / "python"
    python.write_text(
        '#!/bin/bash\nif [ "$1 $2" = "-m pip" ]; then\n'
        '    echo "$@" >>asked\n    [ ! -e offline ]\n    exit\nfi\nexec python3 "$@"\n'
    )
    python.chmod(0o755)

    def setup() -> subprocess.CompletedProcess:
        script = ". workflow/setup.sh; setup_python"
        return subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)

    return tmp_path, setup


def asked(directory: Path) -> list[str]:
    file = directory / "asked"
    return file.read_text().splitlines() if file.exists() else []


def test_set_up_installs_torch_first_and_repeats_for_free(bare_copy):
    directory, setup = bare_copy
    assert setup().returncode == 0
    wanted = ["torch==2.13.0", "-r requirements.lock", "--no-deps --editable ."]
    assert [line.partition("--no-compile ")[2] for line in asked(directory)] == wanted
    again = setup()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert len(asked(directory)) == 3
    with open(directory / "requirements.lock", "a") as lock:
        lock.write("# changed\n")
    assert setup().returncode == 0
    assert len(asked(directory)) == 6


def test_set_up_without_network_says_so_and_goes_on_later(bare_copy):
    directory, setup = bare_copy
    (directory / "offline").touch()
    done = setup()
    assert done.returncode == 2
    assert "pip could not install torch==2.13.0" in done.stderr and done.stderr.count("\n") == 1
    assert not (directory / ".venv" / "stamp").exists()
    (directory / "offline").unlink()
    assert setup().returncode == 0


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
    assert {path.stem for path in PROFILES} == {
        "smoke", "laptop", "study", "local", "gpt2", "gemma-2-2b",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/**/*.ipynb")), ids=lambda p: p.stem)
def test_what_a_notebook_imports_is_there(path):
    """A renamed function shows here in a second, where the notebook takes a minute."""
    for cell in code_cells(path):
        for dotted in imports(python_of(cell, path)):
            if dotted.partition(".")[0] in ("tsae", "lab"):
                pkgutil.resolve_name(dotted)
