"""One look for all figures: style sheet, a colour and marker a system, legends, axes, files."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import matplotlib.ticker
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.results import systems
from tsae import files

STYLE = Path(__file__).resolve().parent / "tsae.mplstyle"
COLUMN, PAGE = 3.35, 6.9  # widths in inches of one and two text columns
MARKERS = "osD^vPX*<>hd"
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
"""Colours of what is no system: settings, strategies, groups (Okabe and Ito, 2008)."""


class Drawing(Figure):
    """A figure that a notebook shows by itself, though pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with plt.style.context(["default", STYLE]):
            self.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()


def panels(rows: int, columns: int, width: float, height: float, **shared):
    """A figure outside pyplot (so that none is shown twice or kept), with its axes [r, c]."""
    figure = Drawing(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def look(system: str) -> dict:
    """Colour and marker of a system, the same in every figure; a reading or null is its parent's,
    hollow and dotted."""
    name, _, act = systems.inside(system).partition("+")
    _, colour, marker = systems.SYSTEMS.get(name, ("", "#444444", MARKERS[len(name + act) % 9]))
    null = systems.is_null(system)
    return {
        "color": colour,
        "marker": marker,
        "markerfacecolor": "white" if null else colour,
        "markeredgecolor": colour,
        "linestyle": ":" if null else "--" if act else "-",
    }


def bar_look(system: str) -> dict:
    """Filled bars for what was learned, white hatched bars for nulls."""
    colour = look(system)["color"]
    if not systems.is_null(system):
        return {"facecolor": colour, "edgecolor": "black", "alpha": 0.75}
    hatch = "////" if system.startswith("ema") else "...."
    return {"facecolor": "white", "edgecolor": colour, "hatch": hatch}


def bars(axes: Axes, rows: pd.DataFrame, shown: list[str]) -> None:
    """Horizontal bars at the mean over seeds of ``rows`` (system, seed, value); a dot a seed."""
    for y, system in enumerate(shown):
        values = rows.loc[rows["system"] == system, "value"].to_numpy()
        finite = values[abs(values) < float("inf")]
        if len(finite):
            axes.barh(y, finite.mean(), height=0.72, **bar_look(system))
        if len(finite) < len(values):
            axes.annotate(r"$\infty$", (1, y), xycoords=("axes fraction", "data"), va="center")
        look: dict[str, Any] = {"mfc": "white", "mec": "black", "mew": 0.6, "ms": 2.6, "zorder": 4}
        axes.plot(finite, [y] * len(finite), "o", **look)
    axes.set_yticks(range(len(shown)), [systems.display(name) for name in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(False, axis="y")


def title(axes: Axes, world: str, rest: str = "") -> None:
    """Head a panel with its world, and what else it shows."""
    axes.set_title(systems.WORLDS.get(world, world) + (f": {rest}" if rest else ""))


def legend(
    figure: Figure,
    names: Iterable[str],
    columns: int = 6,
    lines: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """One legend below the panels; ``lines`` are further entries as Line2D settings."""
    handles = [Line2D([], [], label=systems.display(name), **look(name)) for name in names]
    handles += [
        Line2D([], [], label=label, **settings) for label, settings in (lines or {}).items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def save(figure: Figure, directory: str | Path, name: str) -> list[Path]:
    """Write ``name.pdf`` (outline fonts) and ``name.png``, and return the two paths.

    The same figure gives the same bytes on every run: no date, no program version. Raises
    :class:`tsae.errors.UserError` when the disk is full.
    """
    paths = []
    stripped = {
        "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
    }
    for kind, metadata in stripped.items():
        buffer = io.BytesIO()
        with plt.style.context(["default", STYLE]):
            figure.savefig(buffer, format=kind, metadata=metadata)
        path = Path(directory) / f"{name}.{kind}"
        with files.atomic(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        paths.append(path)
    return paths


def log_steps(axes: Axes, low: float, high: float) -> None:
    """Logarithmic x axis from ``low`` to ``high`` with plain whole numbers at 1, 2, 4, 8, …; at
    even steps where fewer than two of these are in sight."""
    axes.set_xscale("log", base=2)
    left, right = low / 1.25, high * 1.25
    axes.set_xlim(left, right)
    ticks = [2**i for i in range(16) if left <= 2**i <= right]
    if len(ticks) < 2:
        even = matplotlib.ticker.MaxNLocator(4, integer=True).tick_values(left, right)
        ticks = [tick for tick in even if left <= tick <= right]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def setting(place: int, hollow: bool = False) -> dict:
    """Colour, marker and line of the ``place``-th thing that is no system."""
    colour = HUES[place % len(HUES)]
    return {
        "color": colour,
        "marker": MARKERS[place % len(MARKERS)],
        "markerfacecolor": "white" if hollow else colour,
        "linestyle": DASHES[place % len(DASHES)],
    }
