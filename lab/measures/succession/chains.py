"""Pattern detection accuracy: a table of dependencies against the world's true chains."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score

from lab.measures.tokens import row
from lab.worlds.base import ChainEdge


def label_codes(batch: Any, specs: Mapping[str, Any], name: str) -> torch.Tensor:
    """The classes of one label as codes [B, T, classes] of 0 and 1, as a perfect SAE has them."""
    label_BT = batch.labels[name].long()
    classes = torch.arange(len(specs[name].classes), device=label_BT.device)
    return (label_BT[..., None] == classes).float()


def pattern_detection(
    table: pd.DataFrame,
    chains: Iterable[ChainEdge],
    latents: Mapping[str, int],
    *,
    q: float = 0.05,
    score: str = "te",
) -> list[dict[str, Any]]:
    """How well ``table`` (see ``analysis.dependencies``) finds the true edges and their lags.

    ``latents``: class name → the latent that stands for it. All ordered pairs of two such classes
    are ranked by their largest ``score`` over lags with q-value ≤ ``q`` (and ``direct``, if that
    column is there), 0 if there is none; pairs whose classes share a latent score 0.

    - ``chain_ap``: average precision; ``chain_ap_chance``: share of true pairs, which ranking at
      random would give. ``chain_precision``, ``chain_recall``: of the pairs with a score above 0.
    - ``chain_lag_accuracy``: of the true pairs found, the share whose strongest lag lies within
      lag_min … lag_max. n = pairs, or the number that a share is taken of.

    Raises ValueError when no true edge connects two of the classes.
    """
    true = {(e.source, e.target): e for e in chains if e.source in latents and e.target in latents}
    if not true:
        raise ValueError("no true edge connects two of the given classes; give their latents")
    keep = table["q"] <= q
    if "direct" in table:
        keep &= table["direct"]
    best = (
        table[keep].sort_values(score, ascending=False, kind="stable")
        .drop_duplicates(["source", "target"]).set_index(["source", "target"])
    )  # fmt: skip
    values = best[score].to_dict()
    lags = best["lag"].to_dict()
    pairs = [(a, b) for a in latents for b in latents if a != b]
    scores = np.array([values.get((latents[a], latents[b]), 0.0) for a, b in pairs])
    truth = np.array([pair in true for pair in pairs])
    found = scores > 0
    hits = [pair for pair, hit in zip(pairs, found & truth, strict=True) if hit]
    right = [
        true[a, b].lag_min <= lags[latents[a], latents[b]] <= true[a, b].lag_max for a, b in hits
    ]
    n_found = int(found.sum())
    nan = float("nan")
    return [
        row("chain_ap", "token", average_precision_score(truth, scores), len(pairs)),
        row("chain_ap_chance", "token", truth.mean(), len(pairs)),
        row("chain_precision", "token", len(hits) / n_found if n_found else nan, n_found),
        row("chain_recall", "token", len(hits) / truth.sum(), int(truth.sum())),
        row("chain_lag_accuracy", "token", np.mean(right) if right else nan, len(hits)),
    ]
