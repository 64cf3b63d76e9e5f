"""Training runs: one variant and one seed each, on one store."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tsae import distributed, saes
from tsae.activations import ActivationStore
from tsae.errors import CheckpointError
from tsae.experiments.setting import Setting
from tsae.files import in_turn, read_json, write_json
from tsae.pipeline.rows import label_rows
from tsae.saes import SAE
from tsae.saes.config import require_fields
from tsae.train import Run, TrainConfig, TrainResult, train_together


def run_training(
    setting: Setting, directory: str | Path, *, progress: bool = True, **run: Any
) -> TrainResult:
    """Train one variant on the store; resumes what was begun in ``directory``.

    ``run``: the keywords of :func:`prepared`.
    """
    return run_together(setting, {directory: run}, progress)[0]


def run_together(
    setting: Setting, runs: Mapping[str | Path, Mapping[str, Any]], progress: bool = True
) -> list[TrainResult]:
    """:func:`run_training` for every directory, on one read of each batch that runs share.

    Another process, not of this group, that trains into one of the directories waits.
    """
    made = [prepared(setting, directory, **run) for directory, run in runs.items()]
    if distributed.rank():
        return train_together(made, setting.store, progress)
    with in_turn(*runs):
        results = train_together(made, setting.store, progress)
        for run, result in zip(made, results, strict=True):
            sizes = {
                "d_model": setting.store.d_model,
                "d_sae": run.sae.cfg.d_sae,
                "k": run.sae.cfg.k,
                "steps": run.config.steps,
                "batch_tokens": run.config.batch_tokens,
                "train_tokens": setting.store.n_tokens("train"),
            }
            write_json(run.directory / "run.json", {"keys": keys_of(result.sae), "sizes": sizes})
    return results


def prepared(
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
    **train_options: Any,
) -> Run:
    """A fresh SAE with what it is trained by; ``train_options`` are fields of ``TrainConfig``.

    The weights are drawn from ``seed``, and so is the order of the data: runs of the same seed see
    the same tokens in the same order whatever the variant.
    """
    require_fields(TrainConfig, train_options)
    torch.manual_seed(seed)
    choice = {} if act is None else {"act": act}
    sae = saes.build(
        variant, d_in=setting.store.d_model, d_sae=d_sae, k=k, **choice, **dict(options or {})
    )
    config = TrainConfig(steps=steps, lr=lr, seed=seed, **train_options)
    return Run(sae, Path(directory), config, {"seed": seed, "ablation": ablation})


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
