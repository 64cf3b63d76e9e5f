"""The four kinds of pictures that most figures are: bars, lines, points and ablations.

Each takes rows with the columns ``world`` and ``system`` beside those it names, gives a row or a
panel to each world, and tells systems apart by :func:`lab.paper.style.look`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.paper import style
from lab.results import tidy
from lab.results.systems import display, ordered
from tsae.errors import UserError

Look = Callable[[str], dict]


class Case(NamedTuple):
    """A panel of bars: the metric and group shown, its axis label, and the metric of its tick."""

    metric: str
    group: str = "all"
    label: str = ""
    tick: str = ""

    def head(self) -> str:
        """The axis label: by default the metric's heading with its group and better side."""
        return self.label or tidy.heading(self.metric, self.group)


def rows_of(frame: pd.DataFrame, name: str, group: str = "all") -> pd.DataFrame:
    """Rows of one metric and group, whether a label is written ``domain`` or ``document:domain``."""
    return tidy.of_group(frame[frame["metric"] == name], group)


def bars(frame: pd.DataFrame, cases: Sequence[Case]) -> Figure:
    """A row a world, a column a case: the mean over seeds as a bar, seeds as dots, nulls hatched.

    Worlds and cases without rows are left out. Raises :class:`UserError` when all are.
    """
    shown = [case for case in cases if len(rows_of(frame, case.metric, case.group))]
    if not shown:
        raise UserError(f"The results hold no {cases[0].metric} rows: run the evaluate stage.")
    every = pd.concat([rows_of(frame, case.metric, case.group) for case in shown])
    worlds = ordered(every["world"])
    systems = {world: ordered(every[every["world"] == world]["system"]) for world in worlds}
    sizes = [len(systems[world]) for world in worlds]
    height = max(0.35 + sum(0.5 + 0.135 * n for n in sizes), 1.2)
    ratios = {"height_ratios": [n + 1.5 for n in sizes]}
    width = style.PAGE if len(shown) > 1 else style.COLUMN
    figure, axes = style.panels(
        len(worlds), len(shown), width, height, sharey="row", gridspec_kw=ratios
    )
    for row, world in zip(axes, worlds, strict=True):
        for panel, case in zip(row, shown, strict=True):
            mine = rows_of(frame, case.metric, case.group)
            style.bars(panel, mine[mine["world"] == world], systems[world])
            ticks = rows_of(frame, case.tick, case.group)
            ticks = ticks[ticks["world"] == world].groupby("system")["value"].mean()
            for y, system in enumerate(systems[world]):
                if system in ticks:
                    panel.plot([ticks[system]] * 2, [y - 0.4, y + 0.4], color="black", lw=1.6)
            panel.set_xlabel(case.head())
            panel.locator_params(axis="x", nbins=5)
        style.title(row[0], world)
    return figure


def lines(
    rows: pd.DataFrame,
    x: str,
    labels: tuple[str, str],
    column: str = "",
    by: str = "system",
    look: Look = style.look,
    name: Callable[[str], str] = display,
    width: float = style.COLUMN,
    log: bool = False,
    band: bool = True,
    share_y: bool = True,
) -> Figure:
    """``value`` against ``x``, a line each value of ``by``: mean over seeds, band: their range.

    A row a world (a column, where ``column`` names nothing that gives columns of its own).
    """
    if rows.empty:
        raise UserError("There are no rows to draw: run the stage that measures them.")
    worlds = ordered(rows["world"])
    heads = list(dict.fromkeys(rows[column])) if column else [""]
    cases = [(w, h) for w in worlds for h in heads]
    across = len(heads) if column else len(worlds)
    down = len(cases) // across
    kinds = ordered(rows[by]) if by == "system" else list(dict.fromkeys(rows[by]))
    height = 0.35 + 1.6 * down + 0.16 * -(-len(kinds) // (3 if width == style.COLUMN else 6))
    figure, axes = style.panels(down, across, width, height, sharey="row" if share_y else False)
    for panel, (world, head) in zip(axes.flat, cases, strict=True):
        here = rows[rows["world"] == world]
        here = here[here[column] == head] if column else here
        for kind in kinds:
            values = here[here[by] == kind].groupby(x)["value"]
            if mean := len(values):
                mean, settings = values.mean(), look(kind)
                every = max(1, len(mean) // 5)
                panel.plot(mean.index, mean, **{"ms": 3, "markevery": every, "lw": 1, **settings})
                if band and values.count().max() > 1:
                    edges = values.min(), values.max()
                    panel.fill_between(
                        mean.index, *edges, color=settings["color"], alpha=0.15, lw=0
                    )
        if log and len(here):
            style.log_steps(panel, max(here[x].min(), 1), here[x].max())
        style.title(panel, world, str(head))
        panel.set_xlabel(labels[0])
    for row in axes:
        row[0].set_ylabel(labels[1])
    handles = [Line2D([], [], label=name(kind), **look(kind)) for kind in kinds]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3 if width == style.COLUMN else 6
    )
    return figure


def wide(frame: pd.DataFrame, names: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds of several metrics of group ``all``, a column each, a row each ``by``."""
    columns = [tidy.pick(frame, n).groupby(list(by))["value"].mean().rename(n) for n in names]
    return pd.concat(columns, axis=1, join="inner").reset_index()


def settings_of(case: pd.DataFrame) -> list[str]:
    """The ablations of one system that change it, in natural order, L0 sweeps left out."""
    names = case["ablation"].unique()
    return sorted(
        (n for n in names if n not in ("", tidy.BASE) and not tidy.SWEEP.match(n)), key=tidy.natural
    )


def ablation(frame: pd.DataFrame, variants: Sequence[str], cases: Sequence[Case]) -> Figure:
    """Each setting of the variants beside the run it changes (dashed line, band: its seeds).

    A row a (world, system), a column a case; small dots: seeds. Cases that no setting has are left
    out. Raises :class:`UserError` when there is no setting.
    """
    frame = frame[frame["variant"].isin(variants) & frame["system"].eq(frame["variant"])]
    rows = []
    for world in ordered(frame["world"]):
        for system in ordered(frame[frame["world"] == world]["system"]):
            case = frame[(frame["world"] == world) & (frame["system"] == system)]
            if names := settings_of(case):
                rows.append((world, system, case, names))
    if not rows:
        raise UserError(f"The results hold no ablation of {', '.join(variants)}: run ablate first.")
    changed = pd.concat([case[case["ablation"].isin(names)] for *_, case, names in rows])
    shown = [case for case in cases if len(rows_of(changed, case.metric, case.group))]
    sizes = [len(names) for *_, names in rows]
    figure, axes = style.panels(
        len(rows),
        max(len(shown), 1),
        style.PAGE,
        0.62 * len(rows) + 0.13 * sum(sizes),
        gridspec_kw={"height_ratios": [n + 2 for n in sizes]},
        sharey="row",
    )
    for row, (world, system, case, names) in zip(axes, rows, strict=True):
        for panel, shows in zip(row, shown, strict=True):
            mine = rows_of(case, shows.metric, shows.group)
            base = tidy.unchanged(mine)["value"]
            if len(base):
                panel.axvline(base.mean(), color="black", linewidth=0.9, linestyle="--")
                panel.axvspan(base.min(), base.max(), color="0.85", linewidth=0)
            dots(panel, mine, names, {**style.look(system), "linestyle": "none"})
            panel.set_xlabel(shows.head())
            panel.locator_params(axis="x", nbins=4)
        row[0].set_yticks(range(len(names)), names)
        row[0].set_ylim(len(names) - 0.5, -0.5)
        style.title(row[0], world, display(system))
    return figure


def dots(panel: Axes, rows: pd.DataFrame, names: Sequence[str], look: Mapping[str, Any]) -> None:
    """A large dot at each setting's mean over seeds and a small one at each seed."""
    for y, name in enumerate(names):
        values = rows.loc[rows["ablation"] == name, "value"].to_numpy()
        if len(values := values[np.isfinite(values)]):
            panel.plot(values, [y] * len(values), **{**look, "ms": 2.5})
            panel.plot(values.mean(), y, **{**look, "ms": 5})
