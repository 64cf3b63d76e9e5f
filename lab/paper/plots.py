"""The shapes that most figures have: dots on lines, curves, points against the FVE, and graphs.

Rows of results come with the columns that :func:`lab.results.tidy.prepare` adds. Everything is the
mean over seeds, with its standard error and (small) each seed; a panel's title says how many seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator, NullLocator

from lab.paper import style
from lab.paper.tables import Column
from lab.results import tidy
from lab.results.systems import display, is_null, ordered
from tsae.errors import UserError

Looks = Mapping[str, Mapping[str, Any]]
FVE_TICKS = (0.0, 0.2, 0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
HOW = {
    tidy.OWN: ("own code", {}),
    "ema": ("read through EMA", {"markerfacecolor": "white"}),
    "average": ("average, then encode", {"markerfacecolor": "white", "marker": "s"}),
    "shuffled": ("on shuffled tokens", {"marker": "x", "markerfacecolor": "none"}),
}
"""What each reading is called, and what it changes in the look of a dot."""
LEVELS = {
    "ap_constant": ("constant latent", {"color": "0.45", "linestyle": ":"}),
    "ap_chance": ("chance (shifted labels)", {"color": "0.45", "linestyle": "-."}),
    "ap_probe_ema": ("ceiling (probe)", {"color": "0.45", "linestyle": "--"}),
}
"""Levels of AP that are no system's."""
ARROW = {"color": "0.3", "marker": r"$\rightarrow$", "ms": 9, "linestyle": "none"}


class Block(NamedTuple):
    """A row of panels: its lines from the top with their looks, in the column ``line`` of its rows,
    and the rows of the run that they are compared with."""

    world: str
    head: str
    rows: pd.DataFrame
    looks: Looks
    base: pd.DataFrame | None = None


def of_systems(frame: pd.DataFrame) -> list[Block]:
    """A block a world, a line a system; its readings and nulls stand on its line."""
    blocks = []
    frame = frame[~frame["of"].map(is_null).astype(bool)]  # no reading of a null
    for world in ordered(frame["world"]):
        rows = frame[frame["world"] == world]
        rows = rows.assign(line=rows["of"].map(display))
        blocks.append(Block(world, "", rows, style.of_systems(rows["of"])))
    return blocks


def of_settings(frame: pd.DataFrame, *variants: str) -> list[Block]:
    """A block a world and system of these variants, a line a setting of its ablations."""
    frame = frame[frame["variant"].isin(variants) & frame["how"].eq(tidy.OWN)]
    blocks = []
    for world in ordered(frame["world"]):
        for system in ordered(frame[frame["world"] == world]["system"]):
            case = frame[(frame["world"] == world) & (frame["system"] == system)]
            if names := tidy.settings(case):
                rows = case[case["ablation"].isin(names)].assign(line=case["ablation"])
                looks = dict.fromkeys(names, style.look(system))
                blocks.append(Block(world, display(system), rows, looks, tidy.unchanged(case)))
    return blocks


def dots(blocks: Sequence[Block], columns: Sequence[Column]) -> Figure:
    """A row a block, a panel a column: each line's dot with its standard error, a small dot a seed.

    Dashed, with a band: the run to compare with. Vertical ticks: a column's ``tick``. Columns
    without rows are left out. Raises :class:`UserError` when all are.
    """
    shown = [c for c in columns if any(len(c.rows(block.rows)) for block in blocks)]
    if not shown:
        raise UserError(f"The results hold no {columns[0].metric} rows to draw: run their stage.")
    sizes = [len(block.looks) for block in blocks]
    figure, axes = style.panels(
        len(blocks), len(shown), style.PAGE if len(shown) > 1 else style.COLUMN,
        0.3 + sum(0.5 + 0.125 * n for n in sizes), sharey="row",
        gridspec_kw={"height_ratios": [n + 1 for n in sizes]},
    )  # fmt: skip
    hows: set[str] = set()
    for row, block in zip(axes, blocks, strict=True):
        for panel, column in zip(row, shown, strict=True):
            if block.base is not None and len(base := column.rows(block.base)):
                mean, se = tidy.summary(base, ["metric"]).loc[0, ["mean", "se"]]
                panel.axvline(mean, color="black", linewidth=0.9, linestyle="--")
                panel.axvspan(mean - np.nan_to_num(se), mean + np.nan_to_num(se), color="0.85")
            mine = column.rows(block.rows)
            ticks = column._replace(metric=column.tick).rows(block.rows)
            for y, (line, look) in enumerate(block.looks.items()):
                for how, values in mine[mine["line"] == line].groupby("how")["value"]:
                    dot(panel, y, values, {**look, **HOW[how][1]})
                    hows.add(how)
                if len(tick := ticks.loc[ticks["line"] == line, "value"]):
                    panel.plot([tick.mean()] * 2, [y - 0.35, y + 0.35], color="0.3", lw=1.2)
            panel.set_xlabel(column.title())
            panel.xaxis.set_major_locator(MaxNLocator(4 if len(shown) < 6 else 2, min_n_ticks=1))
        row[0].set_yticks(range(len(block.looks)), block.looks)
        row[0].set_ylim(len(block.looks) - 0.4, -0.6)
        style.title(row[0], block.world, block.head, block.rows)
        row[0].title.set(ha="left", x=0)
    if len(hows) > 1:
        grey = {"color": "0.3", "marker": "o", "linestyle": "none"}
        looks = {word: {**grey, **look} for how, (word, look) in HOW.items() if how in hows}
        style.legend(figure, looks, 4 if len(shown) > 1 else 2)
    return figure


def dot(panel: Axes, y: float, values: pd.Series, look: Mapping[str, Any]) -> None:
    """A dot at the mean of one value a seed, with its standard error; an infinite one is said."""
    finite = values[np.isfinite(values)]
    if len(finite) < len(values):
        panel.annotate(r"$\infty$", (1, y), xycoords=("axes fraction", "data"), va="center")
    if len(finite):
        look = {**look, "linestyle": "none"}
        panel.plot(finite.mean(), y, **{**look, "ms": 4.5})
    if len(finite) > 1:
        panel.plot(finite, [y] * len(finite), **{**look, "ms": 1.6})
        panel.errorbar(finite.mean(), y, xerr=finite.sem(), color=look["color"], lw=0.9)


def lines(
    rows: pd.DataFrame,
    x: str,
    labels: tuple[str, str],
    column: str = "",
    by: str = "system",
    looks: Looks | None = None,
    width: float = style.COLUMN,
    log: str = "",
    share_y: str | bool = "row",
) -> Figure:
    """``value`` against ``x``, a line each value of ``by``: mean over seeds, band: standard error.

    A row a world and a panel each value of ``column``; without one, a panel a world. ``looks``: by
    name in print (that of systems by default); ``log``: the axes that are logarithmic.
    """
    if rows.empty:
        raise UserError("There are no rows to draw: run the stage that measures them.")
    worlds = ordered(rows["world"])
    heads = list(dict.fromkeys(rows[column])) if column else [""]
    across = len(heads) if column else len(worlds)
    looks = looks or style.of_systems(rows["system"])
    names = rows[by].map(display) if by == "system" else rows[by]
    looks = {name: look for name, look in looks.items() if name in set(names)}
    wide = max(map(len, looks)) * (4 if width == style.PAGE else 8) > 72
    fit = (3 if wide else 6) if width == style.PAGE else (2 if wide else 3)
    down = len(worlds) * len(heads) // across
    height = 0.35 + (1.6 if down < 3 else 1.3) * down + 0.15 * -(-len(looks) // fit)
    figure, axes = style.panels(down, across, width, height, sharey=share_y)
    cases = [(world, head) for world in worlds for head in heads]
    for place, (panel, (world, head)) in enumerate(zip(axes.flat, cases, strict=True)):
        here = rows[(rows["world"] == world) & (rows[column].eq(head) if column else True)]
        for name, look in looks.items():
            mine = here[names[here.index] == name]
            if mine.empty:
                continue
            table = tidy.summary(mine, [x]).sort_values(x)
            every = max(1, len(table) // 5)
            panel.plot(table[x], table["mean"], **{"ms": 3, "markevery": every, "lw": 1, **look})
            if table["se"].notna().any():
                edges = table["mean"] - table["se"], table["mean"] + table["se"]
                panel.fill_between(table[x], *edges, color=look["color"], alpha=0.15, lw=0)
        if "x" in log and len(here):
            style.log_steps(panel, max(here[x].min(), 1), here[x].max())
        if "y" in log:
            panel.set_yscale("log")
        style.title(panel, world, str(head), here if place % across == 0 or not column else None)
        if place >= len(cases) - across:
            panel.set_xlabel(labels[0])
    for row in axes:
        row[0].set_ylabel(labels[1])
    style.legend(figure, looks, fit)
    return figure


def against_fve(frame: pd.DataFrame, cases: Sequence[Sequence[Column]], width: float) -> Figure:
    """The FVE of each system against another metric, a panel a column, whose world it names.

    The scale is logarithmic in 1 − FVE. Large marker: mean over seeds; small ones: the seeds. An
    arrow ends at the same dictionary read through a moving average, which costs no reconstruction;
    :data:`LEVELS` are drawn beside AP; a line joins the runs of an L0 sweep, at its own budget.
    """
    height = 0.85 + 1.7 * len(cases)
    figure, axes = style.panels(len(cases), len(cases[0]), width, height)
    keys = ["of", "ablation", "seed"]
    seen: set[str] = set()
    extra: dict[str, Mapping[str, Any]] = {}
    for panel, column in zip(axes.flat, [c for row in cases for c in row], strict=True):
        here = frame[frame["world"] == column.world]
        own = here[here["how"] == tidy.OWN]
        points = tidy.pick(own, "fve").merge(column.rows(own), on=keys, suffixes=("_fve", ""))
        points = points.assign(rest=1 - points["value_fve"])
        read = column.rows(here[here["how"] == "ema"]).groupby("of")["value"].mean()
        for system in ordered(points["of"]):
            mine, look = points[points["of"] == system], {**style.look(system), "ls": "none"}
            look.pop("linestyle")
            runs = mine.groupby("ablation")[["value", "rest"]].mean().sort_values("value")
            sweep = runs[runs.index != ""]
            panel.plot(sweep["value"], sweep["rest"], **{**look, "ms": 2, "lw": 0.8, "ls": "-"})
            for at, rest in runs[runs.index == ""].itertuples(index=False):
                seeds = tidy.main(mine)
                panel.plot(seeds["value"], seeds["rest"], **{**look, "ms": 1.6})
                panel.plot(at, rest, **{**look, "ms": 8 if system == "slowfast" else 5}, zorder=3)
                if system in read:
                    arrow = {"arrowstyle": "->", "color": look["color"], "lw": 0.8, "alpha": 0.7}
                    panel.annotate("", (read[system], rest), (at, rest), arrowprops=arrow)
                    panel.plot(read[system], rest, alpha=0)  # so that the axis holds its end
                    extra["read through EMA"] = ARROW
            seen.add(system)
        for name, (word, line) in LEVELS.items() if column.metric == "ap" else ():
            if len(level := column._replace(metric=name).rows(here)):
                panel.axvline(level["value"].mean(), zorder=1, **line)
                extra[word] = line
        fve_axis(panel, points["rest"].min(), points["rest"].max())
        panel.margins(x=0.08)
        panel.locator_params(axis="x", nbins=4)
        panel.set_xlabel(column.title())
        style.title(panel, column.world, column.group.split(":")[-1].replace("all", ""), points)
    for row in axes:
        row[0].set_ylabel("variance explained (FVE ↑)")
    dots = {name: {**look, "linestyle": "none"} for name, look in style.of_systems(seen).items()}
    style.legend(figure, dots | extra, 6)
    return figure


def fve_axis(panel: Axes, low: float, high: float) -> None:
    """A y axis of 1 − FVE, logarithmic, from ``high`` (bottom) to ``low``, labelled with FVE."""
    low, high = max(low, 1e-4) / 1.15, high * 1.15
    panel.set_yscale("log")
    panel.set_ylim(high, low)
    ticks: list[float] = []
    for fve in (f for f in FVE_TICKS if low <= 1 - f <= high):
        if not ticks or (1 - ticks[-1]) / (1 - fve) > (high / low) ** 0.1:  # not one on another
            ticks.append(fve)
    panel.set_yticks([1 - f for f in ticks], [f"{f:g}" for f in ticks])
    panel.yaxis.set_minor_locator(NullLocator())


def graph(
    panel: Axes,
    places: Mapping[Any, tuple[float, float]],
    nodes: Mapping[Any, Mapping[str, Any]],
    edges: Sequence[tuple[Any, Any, Mapping[str, Any]]],
) -> None:
    """Nodes as texts (``s`` and what :meth:`Axes.text` takes) at their places, joined by edges as
    :class:`FancyArrowPatch` takes them, with a ``label`` beside their middle."""
    for start, end, look in edges:
        a, b, label = places[start], places[end], look.get("label", "")
        look = {"arrowstyle": "-", "shrinkA": 3, "shrinkB": 3, **look, "label": None}
        panel.add_patch(FancyArrowPatch(a, b, **look))
        panel.text((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, f"  {label}", va="center")
    for node, look in nodes.items():
        panel.text(*places[node], **{"ha": "center", "va": "center", **look})
    panel.axis("off")
