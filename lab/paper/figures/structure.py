"""The gain of temporal variants against how temporal the text is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.paper.figures import style
from lab.paper.tables.structure import GAINS
from lab.results import tidy
from tsae.errors import UserError


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, Figure]:
    """The figure, where the sweep was run."""
    if not len(found.get("structure", ())):
        return {}
    return {"structure": structure(found["structure"], smoke=smoke)}


@style.styled
def structure(gains: pd.DataFrame) -> Figure:
    """Gain against the share of tokens that keep their place: a row a metric, a column a variant.

    Bars: 95% bootstrap intervals over documents; filled: against the static baseline, hollow and
    dotted: against the variant's own shuffled null, where its encoder sees more than one token.
    F1* is F1 beyond its frequency-matched null. At 0 tokens are i.i.d. draws and order can give
    nothing. Needs temporal, variant, baseline, metric, diff, lo, hi.
    """
    metrics = [name for name in GAINS if name in set(gains["metric"])]
    if not metrics:
        raise UserError("The structure table holds no gains: run the structure sweep first.")
    variants = tidy.ordered(gains["variant"])
    figure, axes = style.panels(
        len(metrics),
        len(variants),
        style.PAGE,
        0.65 + 0.95 * len(metrics),
        sharex=True,
        sharey="row",
    )
    for row, metric in zip(axes, metrics, strict=True):
        for panel, variant in zip(row, variants, strict=True):
            panel.axhline(0, color="black", linewidth=0.6)
            mine = gains[(gains["variant"] == variant) & (gains["metric"] == metric)]
            baselines = tidy.ordered(mine["baseline"])
            for baseline, shift in zip(baselines, (-0.025, 0.025), strict=False):
                here = mine[mine["baseline"] == baseline].sort_values("temporal")
                look = style.look(baseline if tidy.is_null(baseline) else variant)
                look |= {"linestyle": ":" if tidy.is_null(baseline) else "-"}
                ends = np.abs(here[["lo", "hi"]].to_numpy().T - here["diff"].to_numpy())
                panel.errorbar(
                    here["temporal"] + shift, here["diff"], ends, **look, ms=3.2,
                    elinewidth=0.8, capsize=1.5,
                )  # fmt: skip
            panel.set_xlim(-0.12, 1.12)
            panel.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            panel.locator_params(axis="y", nbins=5)
        row[0].set_ylabel(f"gain, {GAINS[metric]}")
    for panel, variant in zip(axes[0], variants, strict=True):
        panel.set_title(tidy.display(variant))
    for panel in axes[-1]:
        panel.set_xlabel("tokens in place")
    black: dict[str, Any] = {"color": "black", "marker": "o"}
    handles = [
        Line2D([], [], label="− TopK", **black),
        Line2D([], [], label="− its own shuffled null", ls=":", mfc="white", **black),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure
