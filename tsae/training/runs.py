"""Training runs: one variant and one seed each, on one store."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tsae import saes
from tsae.errors import CheckpointError
from tsae.files import in_turn, write_json
from tsae.saes import SAE
from tsae.saes.config import require_fields
from tsae.store import ActivationStore
from tsae.training import distributed
from tsae.training.config import TrainConfig
from tsae.training.train import Run, TrainResult, train_together


def run_training(
    store: ActivationStore, directory: str | Path, *, progress: bool = True, **run: Any
) -> TrainResult:
    """Train one variant on the store; resumes what was begun in ``directory``.

    ``run``: the keywords of :func:`prepared`.
    """
    return run_together(store, {directory: run}, progress)[0]


def run_together(
    store: ActivationStore, runs: Mapping[str | Path, Mapping[str, Any]], progress: bool = True
) -> list[TrainResult]:
    """:func:`run_training` for every directory, on one read of each batch that runs share.

    Another process, not of this group, that trains into one of the directories waits.
    """
    made = [prepared(store, directory, **run) for directory, run in runs.items()]
    if distributed.rank():
        return train_together(made, store, progress)
    with in_turn(*runs):
        results = train_together(made, store, progress)
        for run, result in zip(made, results, strict=True):
            sizes = {
                "d_model": store.d_model,
                "d_sae": run.sae.cfg.d_sae,
                "k": run.sae.cfg.k,
                "steps": run.config.steps,
                "batch_tokens": run.config.batch_tokens,
                "train_tokens": store.n_tokens("train"),
            }
            write_json(run.directory / "run.json", {"keys": keys_of(result.sae), "sizes": sizes})
    return results


def prepared(
    store: ActivationStore,
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
    sae = saes.build(variant, d_in=store.d_model, d_sae=d_sae, k=k, **choice, **dict(options or {}))
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
