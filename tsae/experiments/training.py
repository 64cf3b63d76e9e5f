"""A training run: one variant, one seed, one store."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tsae import saes
from tsae.activations import ActivationStore
from tsae.errors import CheckpointError
from tsae.experiments.setting import Setting
from tsae.files import read_json, write_json
from tsae.pipeline.rows import label_rows
from tsae.saes import SAE
from tsae.train import TrainConfig, TrainResult, train


def run_training(
    setting: Setting,
    directory: str | Path,
    *,
    variant: str,
    k: int,
    d_sae: int,
    steps: int,
    lr: float,
    seed: int = 0,
    act: str | None = None,
    options: Mapping[str, Any] | None = None,
    ablation: str = "",
    progress: bool = True,
    **train_options: Any,
) -> TrainResult:
    """Train one variant on the store; resumes what was begun in ``directory``.

    The weights are drawn from ``seed``, and so is the order of the data: runs of the same seed see
    the same tokens in the same order whatever the variant.
    """
    torch.manual_seed(seed)
    choice = {} if act is None else {"act": act}
    sae = saes.build(
        variant, d_in=setting.store.d_model, d_sae=d_sae, k=k, **choice, **dict(options or {})
    )
    config = TrainConfig(steps=steps, lr=lr, seed=seed, **train_options)
    meta = {"seed": seed, "ablation": ablation}
    result = train(sae, setting.store, directory, config, progress=progress, meta=meta)
    sizes = {
        "d_model": setting.store.d_model,
        "d_sae": d_sae,
        "k": k,
        "steps": steps,
        "batch_tokens": config.batch_tokens,
        "train_tokens": setting.store.n_tokens("train"),
    }
    write_json(Path(directory) / "run.json", {"keys": keys_of(result.sae), "sizes": sizes})
    return result


def keys_of(sae: Any) -> dict[str, Any]:
    """The columns that say which run a row is about."""
    meta = sae.meta
    return {
        "world": meta["world"],
        "layer": meta["layer"],
        "variant": sae.name,
        "act": sae.cfg.act,
        "seed": meta.get("seed", 0),
        "ablation": meta.get("ablation", ""),
    }


def read_saes(directories: Iterable[str | Path], store: ActivationStore) -> dict[str, SAE]:
    """The trained SAEs of several runs, by a label of variant, act, seed and ablation.

    Raises :class:`CheckpointError` when one was trained on another world or layer.
    """
    found: dict[str, SAE] = {}
    for directory in directories:
        sae = saes.load(Path(directory) / "sae")
        keys = keys_of(sae) if "world" in sae.meta else {"world": "an unknown world", "layer": "?"}
        same = sae.meta.get("fingerprint") == store.fingerprint and keys["layer"] == store.layer
        if not same:
            raise CheckpointError(
                f"The SAE in {directory} was trained on {keys['world']} (layer {keys['layer']}), "
                f"not on this {store.world} (layer {store.layer}); train it on this store."
            )
        label = "-".join(str(keys[key]) for key in ("variant", "act", "seed", "ablation"))
        found[label] = sae
    return found


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
    rows = {}
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
