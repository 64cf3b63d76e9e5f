"""How codes move in time: smoothness, mean dwell and dwell times, each beside its nulls."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from lab.measures.time.lifecycle import kaplan_meier
from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError

GROUP_MARKERS = {"fast": "<", "sentence": "|", "document": ">"}


@style.styled
def smoothness(results: pd.DataFrame) -> Figure:
    """Smoothness and mean dwell by variant, two panels a world.

    Bar: mean over seeds; dots: seeds; hatched: nulls; the vertical tick on a smoothness bar is
    the same codes with their tokens shuffled (``smoothness_null``). Where a variant keeps groups
    of latents, ``<`` is its fast, ``|`` its sentence and ``>`` its document group. Needs metrics
    ``smoothness``, ``smoothness_null`` and ``mean_dwell`` (tokens), group all.
    """
    frame = tidy.main(tidy.prepare(results))
    measured = (
        ("smoothness", "smoothness (lower: smoother)"),
        ("mean_dwell", "mean dwell (tokens)"),
    )
    worlds = tidy.ordered(frame["world"])
    null = tidy.pick(frame, "smoothness_null")
    tables = [tidy.pick(frame, metric) for metric, _ in measured]
    systems = {
        world: tidy.ordered(tables[0].query("world == @world")["system"]) for world in worlds
    }
    most = max(map(len, systems.values()))
    height = len(worlds) * (0.45 + 0.15 * most)
    height = max(height, 0.85 + len(worlds) * 0.15 * most)  # of one world, legend and all
    figure, axes = style.panels(len(worlds), 2, style.PAGE, height)
    for row, world in zip(axes, worlds, strict=True):
        for panel, rows, (metric, label) in zip(row, tables, measured, strict=True):
            style.bars(panel, rows[rows["world"] == world], systems[world])
            panel.set_xlabel(label)
            style.title(panel, world)
            panel.locator_params(axis="x", nbins=6)
            groups = frame[(frame["world"] == world) & (frame["metric"] == metric)]
            for y, system in enumerate(systems[world]):
                for group, marker in GROUP_MARKERS.items():
                    mine = groups[(groups["system"] == system) & (groups["group"] == group)]
                    if len(mine) and np.isfinite(mine["value"].mean()):
                        panel.plot(mine["value"].mean(), y + 0.1, marker, c="black", ms=4, zorder=5)
        for y, system in enumerate(systems[world]):
            mine = null[(null["world"] == world) & (null["system"] == system)]["value"]
            if len(mine):
                row[0].plot([mine.mean()] * 2, [y - 0.42, y + 0.42], color="black", linewidth=1.6)
    tick: dict[str, Any] = {"color": "black", "linestyle": "none", "ms": 4}
    style.legend(
        figure,
        [],
        lines={
            "tokens shuffled": {**tick, "marker": "|", "ms": 7, "mew": 1.6},
            **{f"{name} group": {**tick, "marker": mark} for name, mark in GROUP_MARKERS.items()},
        },
    )
    return figure


@style.styled
def dwell(dwell: pd.DataFrame) -> Figure:
    """Dwell-time distributions, a panel a world: the share of stays that last at least n tokens.

    Kaplan–Meier over all latents of a run, since a stay may be cut off by the end of its text
    (``censored``); thick line: seeds pooled, thin lines: single seeds. Needs the dwell table
    (world, variant, seed, group, latent, dwell, count, censored), group all.
    """
    columns = ("world", "variant", "seed", "group", "latent", "dwell", "count", "censored")
    frame = tidy.prepare(dwell, columns)
    frame = frame[(frame["group"] == "all") & (frame["count"] > 0)]
    if frame.empty:
        raise UserError(
            "The dwell table holds no stays of group 'all': run the evaluate stage again."
        )
    worlds, systems = tidy.ordered(frame["world"]), tidy.ordered(frame["system"])
    height = 2.05 + style.legend_height(systems)
    figure, axes = style.panels(1, len(worlds), style.COLUMN, height, sharey=True)
    for panel, world in zip(axes[0], worlds, strict=True):
        for system in systems:
            mine = frame[(frame["world"] == world) & (frame["system"] == system)]
            if mine.empty:
                continue
            look = style.look(system)
            runs = [run for _, run in mine.groupby("seed")]
            for run, settings in [(r, {"lw": 0.4, "marker": ""}) for r in runs] + [(mine, {})]:
                survival = at_least(run)
                places = {"markevery": np.unique(np.geomspace(1, len(survival), 5).astype(int) - 1)}
                panel.plot(survival.index, survival, **{**look, **places, "ms": 3, **settings})
        style.log_steps(panel, 1, frame.loc[frame["world"] == world, "dwell"].max())
        panel.set_yscale("log")
        style.title(panel, world)
        panel.set_xlabel("dwell time n (tokens)")
    axes[0, 0].set_ylabel("share of stays of at least n tokens")
    style.legend(figure, systems, style.legend_columns(systems))
    return figure


def at_least(run: pd.DataFrame) -> pd.Series:
    """Kaplan–Meier share of stays of at least n tokens, by n, from dwell, count and censored."""
    counts = run.groupby("dwell")[["count", "censored"]].sum()
    counts = counts.reindex(range(counts.index.max() + 1), fill_value=0)
    ended = torch.as_tensor((counts["count"] - counts["censored"]).to_numpy(copy=True))
    survival = kaplan_meier(ended, torch.as_tensor(counts["censored"].to_numpy(copy=True))).numpy()
    return pd.Series(survival[:-1], index=counts.index[1:]).loc[lambda share: share > 0]
