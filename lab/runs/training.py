"""What training left behind, as tables: curves and settings of several runs."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from lab.results.rows import label_rows
from tsae.errors import CheckpointError
from tsae.files import read_json


def read_curves(directories: Iterable[str | Path]) -> pd.DataFrame:
    """The training logs of several runs as rows of step, phase, metric, value."""
    frames = []
    for directory in directories:
        directory = Path(directory)
        keys = read_json(directory / "run.json", CheckpointError)["keys"]
        lines = (directory / "train.jsonl").read_text(encoding="utf-8").splitlines()
        log = pd.DataFrame([json.loads(line) for line in lines])
        rows = log.melt(["step", "phase"], var_name="metric").dropna(subset="value")
        frames.append(label_rows(rows.to_dict("records"), **keys))
    return pd.concat(frames, ignore_index=True)


def read_configs(directories: Iterable[str | Path]) -> pd.DataFrame:
    """How the SAEs of several runs are set, ablations and seeds aside: world, variant, act, field
    and the value as JSON, each once."""
    rows: dict[tuple[str, ...], str] = {}
    for directory in map(Path, directories):
        keys = read_json(directory / "run.json", CheckpointError)["keys"]
        if keys["ablation"]:
            continue
        config = read_json(directory / "sae" / "cfg.json", CheckpointError)["config"]
        for field, value in config.items():
            key = (keys["world"], keys["variant"], keys["act"], field)
            rows.setdefault(key, json.dumps(value))
    table = [(*key, value) for key, value in rows.items()]
    return pd.DataFrame(table, columns=["world", "variant", "act", "field", "value"])
