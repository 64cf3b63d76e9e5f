"""What a notebook reads when it is opened by itself.

The newest finished stages of the default profile, where there are some; else smoke-size inputs,
made on first use, shared in the system's temporary directory, never a result. ``TSAE_SMOKE=1`` (the
tests set it) takes the latter in any case. Each function says which it was.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

import tsae
from lab.runs.evaluation import run_evaluation
from lab.runs.setting import make_setting, open_setting
from lab.runs.training import read_curves
from tsae.files import read_json
from tsae.training.runs import read_saes, run_training

RESULTS = Path(__file__).resolve().parents[2] / "results" / "laptop"
WORLD: dict[str, Any] = {
    "options": {
        "n_train_docs": 800,
        "n_test_docs": 160,
        "n_entities": 4,
        "d_model": 64,
        "steps": 60,
        "batch_size": 16,
        "min_accuracy": None,
    },
    "tokens": {"train": 40_000, "test": 8_000},
}
RUNS: tuple[dict[str, Any], ...] = (
    {"variant": "topk"},
    {"variant": "conv", "options": {"window": 4, "lag_rank": 16, "gate_level": 3}},
)
SIZE: dict[str, Any] = {
    "k": 8,
    "d_sae": 128,
    "steps": 60,
    "lr": 1e-3,
    "warmup_steps": 10,
    "eval_every": 15,
}
MEASURED: dict[str, Any] = {
    "limit_tokens": 4000,
    "selection_tokens": 4000,
    "splice_tokens": 1000,
    "n_context_sequences": 8,
}


@cache
def root() -> Path:
    """The shared directory; its name changes with the code and these settings."""
    rooms = [Path(__file__).parents[1], Path(tsae.__file__).parent]
    files = [file for room in rooms for file in sorted(room.rglob("*.py"))]
    code = b"".join(file.read_bytes() for file in files)
    digest = hashlib.sha256(code + repr((WORLD, RUNS, SIZE)).encode()).hexdigest()
    return Path(tempfile.gettempdir()) / f"tsae-smoke-{digest[:8]}"


def folder(name: str, world: str = "") -> str:
    """A directory to write to when a notebook was given none; ``world``: the one it stands on."""
    path = root() / "-".join(filter(None, (name, Path(world).name)))
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


def finished(kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(directory, parameters) of the finished stages of a kind (``worlds``, ``train``), newest
    first."""
    manifests = [] if os.environ.get("TSAE_SMOKE") else RESULTS.glob(f"{kind}/*/manifest.json")
    for file in sorted(manifests, key=lambda file: file.stat().st_mtime, reverse=True):
        yield file.parent, read_json(file)["parameters"]


def world_dir(given: str = "", say: bool = True) -> str:
    """``given``, or the newest finished microworld, or a small one (about 20 s)."""
    if given:
        return given
    for directory, parameters in finished("worlds"):
        if parameters["world"] == "microworld":
            if say:
                print(f"Inputs: results/laptop/worlds/{directory.name} and what stands on it.")
            return str(directory)
    if say:
        print("Inputs: of smoke size, made for this notebook; not results.")
    made = folder("worlds")
    make_setting(made, world="microworld", progress=False, **WORLD)
    return made


def sae_dirs(given: Sequence[str] = ()) -> list[str]:
    """``given``, or the newest finished runs of :data:`RUNS` on :func:`world_dir`, or small ones."""
    if given:
        return list(given)
    world = world_dir(say=False)
    runs: dict[str, Path] = {}
    for directory, parameters in finished("train"):
        if Path(parameters["world_dir"]).name == Path(world).name and not parameters["ablation"]:
            runs.setdefault(parameters["variant"], directory)
    wanted = [run["variant"] for run in RUNS]
    if set(wanted) <= set(runs):
        return [str(runs[variant]) for variant in wanted]
    for run in RUNS:
        run_training(
            open_setting(world).store,
            folder(f"train-{run['variant']}", world),
            progress=False,
            **SIZE,
            **run,
        )
    return [folder(f"train-{variant}", world) for variant in wanted]


def tables(stage_dirs: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """What the last notebook merges: of the stages given, of the finished default run, or of
    :func:`sae_dirs` alone."""
    from lab.paper import report  # draws, which no other notebook waits for

    plan = RESULTS / "plan.json"
    if not stage_dirs and plan.is_file() and not os.environ.get("TSAE_SMOKE"):
        stages = read_json(plan)["stages"]
        figures = next(s for s in stages if s["name"] == "figures/all")
        directories = [RESULTS.parents[1] / d for d in figures["parameters"]["stage_dirs"]]
        if all((directory / "manifest.json").is_file() for directory in directories):
            print("Inputs: the finished stages of the profile laptop.")
            stage_dirs = [str(directory) for directory in directories]
    if stage_dirs:
        return report.gather(stage_dirs)
    setting, directories = open_setting(world_dir()), sae_dirs()
    saes = read_saes(directories, setting.store)
    made = run_evaluation(setting, saes, progress=False, **MEASURED)
    made["curves"] = read_curves(directories)
    made["facts"] = report.facts(directories)
    return made
