"""Training runs: one variant and one seed each, on one store."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tsae import saes
from tsae.errors import CheckpointError
from tsae.files import in_turn, write_json
from tsae.interop import saelens
from tsae.saes import SAE
from tsae.saes.config import require_fields
from tsae.store import ActivationStore
from tsae.training import distributed
from tsae.training.config import TrainConfig
from tsae.training.train import TrainResult, train


def run_training(
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
    progress: bool = True,
    **train_options: Any,
) -> TrainResult:
    """Train one variant on the store; resumes what was begun in ``directory``.

    ``train_options`` are fields of ``TrainConfig``. The weights are drawn from ``seed``, and so is
    the order of the data: runs of the same seed see the same tokens in the same order whatever the
    variant. A ``teacher`` among the options that is a folder of SAELens is brought into the units of
    the store, in ``directory``. Another process, not of this group, that trains into the directory
    waits.
    """
    require_fields(TrainConfig, train_options)
    torch.manual_seed(seed)
    given = dict(options or {}) | ({} if act is None else {"act": act})
    if given.get("teacher") and (Path(given["teacher"]) / saelens.WEIGHTS).exists():
        foreign, given["teacher"] = given["teacher"], str(Path(directory) / "teacher")
        saelens.load_saelens(foreign, store).save(given["teacher"])
    sae = saes.build(variant, d_in=store.d_model, d_sae=d_sae, k=k, **given)
    config = TrainConfig(steps=steps, lr=lr, seed=seed, **train_options)
    run = sae, store, directory, config, progress, {"seed": seed, "ablation": ablation}
    if distributed.rank():
        return train(*run)
    with in_turn(directory):
        result = train(*run)
        sizes = {
            "d_model": store.d_model,
            "d_sae": d_sae,
            "k": k,
            "steps": steps,
            "batch_tokens": config.batch_tokens,
            "train_tokens": store.n_tokens("train"),
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
