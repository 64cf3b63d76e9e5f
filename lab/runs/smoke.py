"""What a notebook reads when it is opened by itself.

The finished stages of the default profile, where there are some; else smoke-size inputs,
made on first use, shared in the system's temporary directory, never a result. ``TSAE_SMOKE=1`` (the
tests set it) takes the latter in any case. Each function says which it was.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
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

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "results" / "laptop" / "plan.json"
FINISHED = "the finished stages of the profile laptop."
SMALL = "of smoke size, made for this notebook; no results."
MODEL: dict[str, Any] = dict(d_model=64, steps=60, batch_size=16, min_accuracy=None)
TEXT: dict[str, Any] = dict(n_train_docs=800, n_test_docs=160, n_entities=4)
TOKENS = dict(train=40_000, test=8_000)
RUNS: dict[str, dict[str, Any]] = {"topk": {}, "conv": dict(window=4, lag_rank=16, gate_level=3)}
SIZE: dict[str, Any] = dict(k=8, d_sae=128, steps=60, lr=1e-3, warmup_steps=10, eval_every=15)
MEASURED: dict[str, Any] = dict(limit_tokens=4000, selection_tokens=4000, splice_tokens=1000)


@cache
def root() -> Path:
    """The shared directory; its name changes with the code."""
    rooms = [Path(__file__).parents[1], Path(tsae.__file__).parent]
    files = [file for room in rooms for file in sorted(room.rglob("*.py"))]
    code = b"".join(file.read_bytes() for file in files)
    return Path(tempfile.gettempdir()) / f"tsae-smoke-{hashlib.sha256(code).hexdigest()[:8]}"


def folder(name: str, world: str = "") -> str:
    """A directory to write to when a notebook was given none; ``world``: the one it stands on."""
    path = root() / "-".join(filter(None, (name, Path(world).name)))
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


def finished() -> list[dict[str, Any]]:
    """The stages of the default profile's plan that are done, in its order; none under
    ``TSAE_SMOKE``."""
    if os.environ.get("TSAE_SMOKE") or not PLAN.is_file():
        return []
    stages = [{**stage, "directory": ROOT / stage["directory"]} for stage in read_json(PLAN)]
    return [stage for stage in stages if (stage["directory"] / "manifest.json").is_file()]


def world_dir(given: str = "", say: bool = True) -> str:
    """``given``, or the finished microworld, or a small one (about 20 s)."""
    if given:
        return given
    there = [stage for stage in finished() if stage["parameters"].get("world") == "microworld"]
    if say:
        print(f"Inputs: {FINISHED if there else SMALL}")
    if there:
        return str(there[0]["directory"])
    made = folder("worlds")
    world: dict[str, Any] = {"world": "microworld", "options": MODEL | TEXT, "tokens": TOKENS}
    make_setting(made, progress=False, **world)
    return made


def sae_dirs(given: Sequence[str] = ()) -> list[str]:
    """``given``, or the finished runs of :data:`RUNS` on :func:`world_dir`, or small ones."""
    if given:
        return list(given)
    world, runs = world_dir(say=False), dict[str, str]()
    for stage in finished():
        if Path(stage["parameters"].get("world_dir", "")).name == Path(world).name:
            runs.setdefault(stage["parameters"].get("variant", ""), str(stage["directory"]))
    if not set(RUNS) <= set(runs):
        store = open_setting(world).store
        for variant, options in RUNS.items():
            runs[variant] = folder(f"train-{variant}", world)
            run = {**SIZE, "variant": variant, "options": options}
            run_training(store, runs[variant], progress=False, **run)
    return [runs[variant] for variant in RUNS]


def tables(stage_dirs: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """What the last notebook merges: of the stages given, of the finished default run, or of
    :func:`sae_dirs` alone."""
    from lab.paper import report  # draws, which no other notebook waits for

    there = finished()
    if not stage_dirs and there and there[-1]["name"] == "figures":  # it comes last
        print(f"Inputs: {FINISHED}")
        stage_dirs = [str(stage["directory"]) for stage in there[:-1]]
    if stage_dirs:
        return report.gather(stage_dirs)
    setting, directories = open_setting(world_dir()), sae_dirs()
    saes = read_saes(directories, setting.store)
    made = run_evaluation(setting, saes, progress=False, n_context_sequences=8, **MEASURED)
    made["curves"] = read_curves(directories)
    made["facts"] = report.facts(directories)
    return made
