"""Knowledge isolation: is what is to be forgotten held by one group of latents?"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.unlearning.choice import retained
from lab.measures.unlearning.config import UnlearnConfig
from lab.measures.unlearning.unlearning import unlearn
from lab.worlds import World
from tsae.saes.base import SAE

COLUMNS = {f"unlearn_{name}_accuracy": name for name in ("forget", "near", "far")} | {
    "unlearn_ce_delta": "ce_delta",
    "unlearn_touched": "touched",
    "unlearn_latents": "latents",
}


@register("isolation", needs=("model",))
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    edits: Sequence[str] = ("clamp",),
    n_facts: int = 20,
    n_orders: int | None = 2,
    rank_tokens: int = 20_000,
    ce_tokens: int = 4_096,
    n_latents: Sequence[int] = (20,),
    strengths: Sequence[float] = (50, 100, 200),
    retain_thresholds: Sequence[float] = (0.01,),
) -> dict[str, Measured]:
    """Unlearning with the latents of one group at a time, for SAEs of several groups.

    ``isolation_gap`` (group = latent group|strategy): the most that is forgotten beyond what is lost,
    max over settings of retained − forget accuracy, at least 0; group ``all`` takes whichever
    latents rank first. ``isolation_share``: that gap over the sum of the groups' gaps, 0 where no
    group forgets: 1 for one group says that it alone holds the subject. Table ``isolation``, a row
    a setting: latents_of, strategy, setting, forget, near, far (accuracy), ce_delta (nats), touched
    (share of held-out tokens), latents (edited). The options are fields of
    :class:`lab.measures.unlearning.config.UnlearnConfig`.
    """
    if world is None or not world.questions():
        return {}
    given: dict[str, Any] = {"n_facts": n_facts, "n_orders": n_orders, "rank_tokens": rank_tokens}
    given |= {"ce_tokens": ce_tokens, "n_latents": tuple(n_latents), "strengths": tuple(strengths)}
    given |= {"retain_thresholds": tuple(retain_thresholds), "edits": tuple(edits)}
    given |= {"gates": ("always",), "batch_size": 4 * reading.sizes.batch, "seed": reading.seed}
    run: dict[str, Any] = {"device": reading.device, "progress": reading.progress}
    found = {}
    for name, sae in saes.items():
        if not isinstance(sae, SAE) or len(sae.groups) < 2:
            continue
        frames = []
        for group in ("all", *sae.groups):
            config = UnlearnConfig(group=None if group == "all" else group, **given)
            got, _ = unlearn(sae, reading.store, world, config, **run)
            frames.append(settings(got).assign(latents_of=group))
        table = pd.concat(frames, ignore_index=True)
        found[name] = Measured(shares(table), tables={"isolation": table})
    return found


def settings(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a setting from the rows of :func:`lab.measures.unlearning.unlearning.unlearn`."""
    frame = pd.DataFrame([r for r in rows if r["metric"] in COLUMNS])
    wide = frame.pivot(index="group", columns="metric", values="value").rename(columns=COLUMNS)
    parts = wide.index.to_series().str.split("|", n=1, expand=True)
    parts = parts.set_axis(["strategy", "setting"], axis=1).reset_index(drop=True)
    return pd.concat([parts, wide.reset_index(drop=True)], axis=1)


def shares(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows ``isolation_gap`` and ``isolation_share``; see :func:`measure`."""
    gap = retained(table["near"], table["far"]) - table["forget"]
    best = gap.clip(lower=0).groupby([table["strategy"], table["latents_of"]]).max()
    rows = []
    for strategy, of_group in best.groupby(level=0):
        of_group = of_group.droplevel(0)
        total = of_group.drop("all").sum()
        for group, value in of_group.items():
            rows.append(row("isolation_gap", f"{group}|{strategy}", value, len(table)))
            if group != "all":
                share = value / total if total else 0.0
                rows.append(row("isolation_share", f"{group}|{strategy}", share, len(table)))
    return rows
