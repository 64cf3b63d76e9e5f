"""What is measured, and how: one file a metric family, each fed one pass over the store.

``evaluate`` and ``evaluate_many`` run families and return tidy tables. A family is an accumulator
with ``update(tokens)``, ``rows()`` and, where differences are tested, ``document_rows()``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from lab.measures.extras import EXTRAS
from lab.measures.fidelity.core import Core, predicted_density, splice
from lab.measures.nulls import EmaNull, ShuffledNull, best_ema
from lab.measures.stats import Interval, mean_standard_error, over_seeds, paired_bootstrap
from lab.measures.time.consistency import Consistency, context_stability
from lab.measures.time.temporal import Temporal
from lab.measures.tokens import encoded, latent_groups
from lab.measures.truth.boundaries import learned_boundaries
from lab.measures.truth.recovery import Recovery

__all__ = [
    "EXTRAS",
    "FAMILIES",
    "EmaNull",
    "Interval",
    "ShuffledNull",
    "Tables",
    "best_ema",
    "evaluate",
    "evaluate_many",
    "mean_standard_error",
    "over_seeds",
    "paired_bootstrap",
]

FAMILIES = ("core", "splice", "temporal", "consistency", "context", "recovery")
"""``splice`` and ``context`` run the world's model; ``recovery`` needs labels in the store."""


NULLS = (EmaNull, ShuffledNull)
FOR_NULLS = ("probing",)
"""Families of :data:`EXTRAS` that are shown beside their nulls; the others read trained SAEs."""


@dataclass
class Tables:
    """What an evaluation gives; the caller adds world, variant, seed and so on to every row."""

    results: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metric, group, value, n."""
    documents: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Columns doc, metric, group, num, den: what :func:`paired_bootstrap` reads."""
    dwell: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Columns group, latent, dwell, count, censored."""
    transitions: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Columns source, target, count, support, lift."""
    latents: dict[str, int] = field(default_factory=dict)
    """``scale:label=class`` → the latent that recovers it best on the selection documents."""
    further: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tables that only some families give, by name."""


def evaluate(sae: Any, store: Any, world: Any = None, **options: Any) -> Tables:
    """One SAE; see :func:`evaluate_many`."""
    return evaluate_many({"sae": sae}, store, world, **options)["sae"]


@torch.no_grad()
def evaluate_many(
    saes: Mapping[str, Any],
    store: Any,
    world: Any = None,
    *,
    families: tuple[str, ...] | None = None,
    family_options: Mapping[str, Mapping[str, Any]] | None = None,
    limit_tokens: int = 60_000,
    selection_tokens: int = 60_000,
    splice_tokens: int = 20_000,
    n_context_sequences: int = 64,
    batch_size: int = 16,
    null: bool = True,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Tables]:
    """Every family for several SAEs (or nulls) on the same tokens.

    Scores come from the first ``limit_tokens`` valid tokens of the test split; latents are chosen
    on the first ``selection_tokens`` of the train split. The model's own residuals and logits
    (``splice``, ``context``) are computed once for all SAEs. ``families``: by default all that the
    inputs allow (those that run the model need ``world``, recovery needs labels in the store) but
    none of :data:`EXTRAS`, which run when named, with the options that ``family_options`` gives.

    Raises ValueError for an unknown family, or one whose input is missing.
    """
    if families is None:
        families = tuple(
            f
            for f in FAMILIES
            if (world is not None or f not in ("splice", "context"))
            and (store.label_specs or f != "recovery")
        )
    known = (*FAMILIES, *EXTRAS)
    for given, what in ((families, "families"), (family_options or {}, "family_options")):
        if unknown := [f for f in given if f not in known]:
            raise ValueError(f"{what} has {unknown[0]!r}; allowed are {', '.join(known)}")
    needs_world = [f for f in families if f in ("splice", "context")]
    if needs_world and world is None:
        raise ValueError(f"family {needs_world[0]!r} runs the model; give world=")
    for sae in saes.values():
        getattr(sae, "eval", lambda: None)()
    tables = {name: Tables() for name in saes}

    for name, sae in tqdm(saes.items(), desc="codes", disable=not progress):
        tables[name] = _codes(
            sae, store, families, limit_tokens, selection_tokens, batch_size, null, seed, device
        )
    half = max(1, batch_size // 2)
    if "context" in families:
        stability = context_stability(
            saes,
            store,
            world,
            n_sequences=n_context_sequences,
            batch_size=half,
            device=device,
        )
        for name, rows in stability.items():
            tables[name].results += rows
    if "splice" in families:
        spliced = splice(
            saes, store, world, limit_tokens=splice_tokens, batch_size=half, device=device
        )
        for name, (rows, documents) in spliced.items():
            tables[name].results += rows
            tables[name].documents = pd.concat(
                [tables[name].documents, documents], ignore_index=True
            )
    reading: dict[str, Any] = {
        "limit_tokens": limit_tokens,
        "selection_tokens": selection_tokens,
        "seed": seed,
    }
    reading |= {"batch_size": batch_size, "device": device, "progress": progress}
    trained = {name: sae for name, sae in saes.items() if not isinstance(sae, NULLS)}
    for family in (f for f in families if f in EXTRAS):
        options = {**reading, **(family_options or {}).get(family, {})}
        asked = saes if family in FOR_NULLS else trained
        for name, found in EXTRAS[family](asked, store, world, **options).items():
            here = tables[name]
            here.results += found.rows
            if found.documents is not None:
                here.documents = pd.concat([here.documents, found.documents], ignore_index=True)
            here.further |= found.tables or {}
    return tables


def _codes(
    sae: Any,
    store: Any,
    families: tuple[str, ...],
    limit_tokens: int,
    selection_tokens: int,
    batch_size: int,
    null: bool,
    seed: int,
    device: str,
) -> Tables:
    """The families that need codes alone: one pass over test, one over selection documents."""
    parts: dict[str, Any] = {}
    if "core" in families:
        parts["core"] = Core(torch.as_tensor(store.mean_D))
    if "temporal" in families:
        groups = latent_groups(sae, sae.cfg.d_sae, device)
        parts["temporal"] = Temporal(groups, store.seq_len, null=null, seed=seed)
    if "consistency" in families:
        parts["consistency"] = Consistency(null=null, seed=seed)
    if "recovery" in families:
        parts["recovery"] = Recovery(store.label_specs, max_length=store.seq_len, seed=seed)
        for t in encoded(sae, store, "train", selection_tokens, batch_size, device):
            parts["recovery"].select(t)
    if not parts:
        return Tables()
    for t in encoded(sae, store, "test", limit_tokens, batch_size, device):
        for part in parts.values():
            part.update(t)
    out = Tables(results=[r for part in parts.values() for r in part.rows()])
    reading: dict[str, Any] = {
        "limit_tokens": limit_tokens,
        "batch_size": batch_size,
        "device": device,
    }
    if "core" in families:
        out.results += predicted_density(sae, store, **reading)
    if "temporal" in families:
        out.results += learned_boundaries(sae, store, **reading)
    frames = [p.document_rows() for p in parts.values() if hasattr(p, "document_rows")]
    if frames:
        out.documents = pd.concat(frames, ignore_index=True)
    if "temporal" in parts:
        out.dwell = parts["temporal"].dwell_table()
    if "consistency" in parts:
        out.transitions = parts["consistency"].table()
    if "recovery" in parts:
        out.latents = parts["recovery"].best_latents()
    return out
