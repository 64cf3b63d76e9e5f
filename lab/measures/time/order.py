"""What the order of tokens is worth: the same SAE on tokens shuffled within a window."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lab.measures.fidelity.core import Core
from lab.measures.nulls import EmaNull, ShuffledNull
from lab.measures.tokens import Measured, encoded, row
from lab.measures.truth.recovery import SCALES, Recovery


@torch.no_grad()
def measure(
    saes: Mapping[str, Any],
    store: Any,
    world: Any,
    *,
    limit_tokens: int,
    selection_tokens: int,
    batch_size: int,
    seed: int,
    device: str,
    progress: bool,
    windows: Sequence[int] = (4, 8),
) -> dict[str, Measured]:
    """``shuffle_gap_*``: intact minus shuffled, group ``shuffle=n`` for tokens permuted in windows
    of n (:class:`lab.measures.nulls.ShuffledNull`).

    ``shuffle_gap_fve``; with labels in the store ``shuffle_gap_f1_document``, ``_section`` and
    ``_token``: ``recovery_f1``, its latents chosen anew for the shuffled codes. A gap of 0 says
    that the variant gains from which tokens are near, not from their order. For SAEs that are no
    nulls; exactly 0 for a static one.
    """
    found = {}
    for name, sae in saes.items():
        if isinstance(sae, (EmaNull, ShuffledNull)):
            continue
        reading = (store, limit_tokens, selection_tokens, batch_size, seed, device)
        intact, rows = scores(sae, *reading), []
        for window in windows:
            shuffled = scores(ShuffledNull(sae, window, seed), *reading)
            for metric, (value, n) in intact.items():
                gap = value - shuffled[metric][0]
                rows.append(row(f"shuffle_gap_{metric}", f"shuffle={window}", gap, n))
        found[name] = Measured(rows)
    return found


@torch.no_grad()
def scores(
    sae: Any, store: Any, limit: int, selection: int, batch_size: int, seed: int, device: str
) -> dict[str, tuple[float, int]]:
    """FVE and, with labels, F1 by time scale, each with its number of cases."""
    parts: list[Any] = [Core(torch.as_tensor(store.mean_D))]
    if store.label_specs:
        recovery = Recovery(store.label_specs, max_length=store.seq_len, seed=seed)
        for tokens in encoded(sae, store, "train", selection, batch_size, device):
            recovery.select(tokens)
        parts.append(recovery)
    for tokens in encoded(sae, store, "test", limit, batch_size, device):
        for part in parts:
            part.update(tokens)
    names = {("fve", "all"): "fve"}
    names |= {("recovery_f1", scale): f"f1_{scale}" for scale in SCALES}
    rows = [r for part in parts for r in part.rows()]
    keyed = {(r["metric"], r["group"]): (r["value"], r["n"]) for r in rows}
    return {name: keyed[key] for key, name in names.items() if key in keyed}
