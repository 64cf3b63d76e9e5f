"""Knowledge isolation: which group of latents holds the forget facts, and what editing it costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lab.measures.tokens import Measured
from lab.measures.unlearning.unlearning import UnlearnConfig, unlearn
from tsae.saes.base import SAE

METRICS = {
    "unlearn_forget_accuracy": "forget",
    "unlearn_near_accuracy": "near",
    "unlearn_far_accuracy": "far",
    "unlearn_ce_delta": "ce_delta",
    "unlearn_touched": "touched",
    "unlearn_latents": "latents",
}
RESULT = {"unlearn_score": "isolation_score", "unlearn_qualifying": "isolation_qualifying"}


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
    n_facts: int = 20,
    n_orders: int | None = 2,
    rank_tokens: int = 20_000,
    ce_tokens: int = 4_096,
    n_latents: Sequence[int] = (10, 20),
    multipliers: Sequence[float] = (50, 100, 200),
    retain_thresholds: Sequence[float] = (0.01,),
    strategies: Sequence[str] = ("clamp", "random"),
) -> dict[str, Measured]:
    """Unlearning (:mod:`lab.measures.unlearning.unlearning`) with the latents of one group at a time.

    For SAEs of several groups; ``all`` edits whichever latents rank first. Rows, with group
    ``latent group|strategy``: ``isolation_score`` and ``isolation_qualifying``, as
    ``unlearn_score`` and ``unlearn_qualifying``. Table ``isolation``, a row a setting: latents_of,
    strategy, threshold, n_latents, multiplier; forget, near, far (accuracy), ce_delta (nats),
    touched (share of held-out tokens), latents (edited). Its options are fields of
    :class:`lab.measures.unlearning.config.UnlearnConfig`: what is read here is read once an
    edit, so less of it than of other families.
    """
    if world is None or not world.questions():
        return {}
    found = {}
    for name, sae in saes.items():
        if not isinstance(sae, SAE) or len(sae.groups) < 2:
            continue
        rows, frames = [], []
        for group in ("all", *sae.groups):
            config = UnlearnConfig(
                retain_thresholds=tuple(retain_thresholds),
                n_latents=tuple(n_latents),
                multipliers=tuple(multipliers),
                strategies=tuple(strategies),
                group=None if group == "all" else group,
                n_facts=n_facts,
                n_orders=n_orders,
                rank_tokens=rank_tokens,
                ce_tokens=ce_tokens,
                batch_size=4 * batch_size,
                seed=seed,
            )
            got, _ = unlearn(sae, store, world, config, device=device, progress=progress)
            for r in got:
                if r["metric"] in RESULT:
                    strategy = r["group"].split("|")[0]
                    rows.append(
                        {**r, "metric": RESULT[r["metric"]], "group": f"{group}|{strategy}"}
                    )
            frames.append(settings(got).assign(latents_of=group))
        found[name] = Measured(rows, tables={"isolation": pd.concat(frames, ignore_index=True)})
    return found


def settings(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a setting from the rows of :func:`lab.measures.unlearning.unlearning.unlearn`."""
    frame = pd.DataFrame([r for r in rows if r["metric"] in METRICS])
    # Only a setting's own rows name a multiplier; a score's group is the strategy alone.
    frame = frame[frame["group"].str.contains(r"\|m=")]
    wide = frame.pivot(index="group", columns="metric", values="value").rename(columns=METRICS)
    parts = wide.index.str.extract(r"^([^|]+)\|t=([^|]+)\|n=([^|]+)\|m=([^|]+)")
    parts = parts.set_axis(["strategy", "threshold", "n_latents", "multiplier"], axis=1)
    parts = parts.astype({"threshold": float, "n_latents": int, "multiplier": float})
    return pd.concat([parts, wide.reset_index(drop=True)], axis=1)
