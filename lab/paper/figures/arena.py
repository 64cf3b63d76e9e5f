"""All systems on all main metrics at a glance."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.paper.figures import style
from lab.paper.tables.glance import COLUMNS
from lab.results import tidy
from tsae.errors import UserError


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, Figure]:
    """The figure, where probes were measured."""
    if not found["results"]["metric"].eq("probe_sparse").any():
        return {}
    return {"arena": arena(found["results"], smoke=smoke)}


def ranks(frame: pd.DataFrame) -> pd.DataFrame:
    """world, system, metric (print name), rank (1 is best, ties share the mean), share in [0, 1].

    Means over seeds are ranked among all systems of a world, nulls included; share is 1 for the
    best and 0 for the last. A metric that fewer than two systems have is left out.
    """
    tables = []
    for column in COLUMNS:
        rows = frame[(frame["metric"] == column.metric) & (frame["group"] == column.group)]
        means = rows.groupby(["world", "system"])["value"].mean().dropna().reset_index()
        grouped = means.groupby("world")["value"]
        means["rank"] = grouped.rank(ascending=not column.more)
        means["share"] = 1 - (means["rank"] - 1) / (grouped.transform("size") - 1).clip(lower=1)
        tables.append(means[grouped.transform("size") > 1].assign(metric=column.name))
    return pd.concat(tables, ignore_index=True)[["world", "system", "metric", "rank", "share"]]


@style.styled
def arena(results: pd.DataFrame) -> Figure:
    """Ranks of all systems on the main metrics, a panel a world.

    A dot a (system, metric), the number its rank: darker is better. Squares: nulls, ranked among
    all the others and listed below the line. Learned systems from the best mean rank down.
    † L0 not within 2% of TopK's. Needs ``l0`` and at least two of the metrics.
    """
    frame = tidy.main(tidy.prepare(results))
    matched, table = tidy.matched_l0(frame), ranks(frame)
    if table.empty:
        raise UserError("The results hold none of the arena's metrics for two systems: evaluate.")
    worlds = tidy.ordered(table["world"])
    order = {}
    for world in worlds:
        mean = table[table["world"] == world].groupby("system")["rank"].mean()
        order[world] = sorted(mean.index, key=lambda s: (tidy.is_null(s), mean[s], s))
    names = [c.name for c in COLUMNS if c.name in set(table["metric"])]
    most = max(map(len, order.values()))
    figure, axes = style.panels(1, len(worlds), style.PAGE, 1.15 + 0.165 * most)
    for panel, world in zip(axes[0], worlds, strict=True):
        systems = order[world]
        here = table[table["world"] == world]
        x = here["metric"].map(names.index)
        y = here["system"].map(systems.index)
        null = here["system"].map(tidy.is_null)
        for marker, chosen in (("o", ~null), ("s", null)):
            panel.scatter(
                x[chosen], y[chosen], s=62, c=here["share"][chosen], marker=marker,
                cmap="Blues", vmin=-0.1, vmax=1.1, edgecolor="black", linewidth=0.4,
            )  # fmt: skip
        for at, height, rank, share in zip(x, y, here["rank"], here["share"], strict=True):
            colour = "white" if share > 0.55 else "black"
            panel.text(
                at,
                height,
                f"{rank:.0f}",
                ha="center",
                va="center_baseline",
                fontsize=5,
                color=colour,
            )
        learned = sum(not tidy.is_null(system) for system in systems)
        if learned < len(systems):
            panel.axhline(learned - 0.5, color="black", linewidth=0.6)
        labels = [tidy.display(s) + ("" if matched[world, s] else "†") for s in systems]
        panel.set_yticks(range(len(systems)), labels)
        panel.set_xticks(range(len(names)), names, rotation=50, ha="right", rotation_mode="anchor")
        panel.set_ylim(len(systems) - 0.4, -0.6)
        panel.set_xlim(-0.6, len(names) - 0.4)
        panel.grid(False)
        style.title(panel, world)
    blue: dict[str, Any] = {
        "linestyle": "none",
        "markerfacecolor": "#6BAED6",
        "markeredgecolor": "black",
    }
    handles = [
        Line2D([], [], marker="o", label="learned (number: rank)", **blue),
        Line2D([], [], marker="s", label="null", **blue),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure
