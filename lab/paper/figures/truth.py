"""Recovery of the microworld's true latents, by time scale."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError


def interval(documents: pd.DataFrame, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval over documents of the mean over groups of Σ num / Σ den.

    ``documents`` holds doc, seed, group, num, den of one variant at one scale; documents are drawn
    with replacement, all seeds and groups of a document together.
    """
    keys = ["seed", "group"]
    num = documents.pivot_table("num", "doc", keys, "sum", fill_value=0).to_numpy()
    den = documents.pivot_table("den", "doc", keys, "sum", fill_value=0).to_numpy()
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(num), np.full(len(num), 1 / len(num)), size=draws)
    total = weights @ den
    ratios = np.where(total > 0, (weights @ num) / np.maximum(total, 1e-12), np.nan)
    low, high = np.nanquantile(np.nanmean(ratios, axis=1), [0.025, 0.975])
    return float(low), float(high)


@style.styled
def recovery(results: pd.DataFrame, documents: pd.DataFrame) -> Figure:
    """F1 of the best single latent per true latent, a panel a time scale, a row a world.

    Bar: mean over seeds; dots: seeds; line: 95% bootstrap interval over documents; hatched: nulls;
    vertical tick: the frequency-matched null. Needs metrics ``recovery_f1`` and
    ``recovery_f1_matched`` of at least one time scale in the results, and the per-document
    ``num``/``den`` of ``recovery_f1``, groups ``scale:label=class``, in the documents.
    """
    frame = tidy.main(tidy.prepare(results))
    columns = ("world", "variant", "seed", "ablation", "metric", "group", "doc", "num", "den")
    counts = tidy.main(tidy.prepare(documents, columns))
    counts = counts[counts["metric"] == "recovery_f1"]
    if counts.empty:
        raise UserError(
            "The documents table holds no 'recovery_f1' counts: run the evaluate stage again."
        )
    scales = tidy.scales(frame)
    rows = {scale: tidy.pick(frame, "recovery_f1", scale) for scale in scales}
    matched = {scale: tidy.pick(frame, "recovery_f1_matched", scale) for scale in scales}
    every = pd.concat(rows.values())
    worlds, systems = tidy.ordered(every["world"]), tidy.ordered(every["system"])
    bars = 0.14 * len(systems)
    figure, axes = style.panels(
        len(worlds),
        len(scales),
        style.PAGE,
        max(0.7 + len(worlds) * (0.3 + bars), 1.25 + len(worlds) * bars),
        sharey=True,
        sharex=True,
    )
    for row, world in zip(axes, worlds, strict=True):
        for panel, scale in zip(row, scales, strict=True):
            here = rows[scale][rows[scale]["world"] == world]
            style.bars(panel, here, systems)
            nulls = matched[scale][matched[scale]["world"] == world]
            nulls = nulls.groupby("system")["value"].mean()
            for y, system in enumerate(systems):
                if system in nulls:
                    panel.plot([nulls[system]] * 2, [y - 0.42, y + 0.42], color="black", lw=1.6)
                mine = counts[(counts["world"] == world) & (counts["system"] == system)]
                mine = mine[mine["group"].str.startswith(f"{scale}:")]
                if len(mine):
                    panel.plot(interval(mine), [y + 0.22] * 2, color="black", lw=1.4, zorder=5)
            panel.set_title(f"{tidy.WORLDS.get(world, world)}: {scale} latents")
            panel.set_xlabel("F1 of the best latent")
            panel.set_xlim(0, 1)
    tick: dict[str, Any] = {
        "color": "black",
        "marker": "|",
        "linestyle": "none",
        "ms": 7,
        "mew": 1.6,
    }
    line: dict[str, Any] = {"color": "black", "linewidth": 1.4}
    style.legend(figure, [], lines={"frequency-matched null": tick, "95% interval": line})
    return figure
