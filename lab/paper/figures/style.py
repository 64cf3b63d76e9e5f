"""One look for all figures: style sheet, a colour, marker and line per system, smoke line."""

import functools
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import matplotlib.ticker
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.results import systems, tidy

STYLE = Path(__file__).resolve().parent.parent / "tsae.mplstyle"
COLUMN, PAGE = 3.35, 6.9  # widths in inches of one and two text columns
MARKERS = "osD^vPX*<>hd"
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw inside the project's style, whatever the caller's; ``smoke=True`` adds the line."""

    @functools.wraps(draw)
    def wrapper(*args, smoke: bool = False, **kwargs) -> Figure:
        with plt.style.context(["default", STYLE]):
            figure = draw(*args, **kwargs)
            if smoke:
                figure.suptitle(tidy.SMOKE, color="#B00000", fontweight="bold")
        return figure

    return wrapper


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
    if not tidy.is_null(system):
        return {"facecolor": colour, "edgecolor": "black", "alpha": 0.75}
    hatch = "////" if system.startswith("ema") else "...."
    return {"facecolor": "white", "edgecolor": colour, "hatch": hatch}


def bars(axes: Axes, rows, systems: list[str]) -> None:
    """Horizontal bars at the mean over seeds of ``rows`` (system, seed, value); a dot a seed."""
    for y, system in enumerate(systems):
        values = rows.loc[rows["system"] == system, "value"].to_numpy()
        finite = values[abs(values) < float("inf")]
        if len(finite):
            axes.barh(y, finite.mean(), height=0.72, **bar_look(system))
        if len(finite) < len(values):
            axes.annotate(r"$\infty$", (1, y), xycoords=("axes fraction", "data"), va="center")
    dots = rows[abs(rows["value"]) < float("inf")]
    sns.stripplot(
        data=dots.assign(y=dots["system"].map(systems.index)),
        x="value",
        y="y",
        orient="h",
        native_scale=True,
        jitter=False,
        ax=axes,
        color="white",
        edgecolor="black",
        linewidth=0.6,
        size=2.6,
        zorder=4,
    )
    axes.set(yticks=range(len(systems)), yticklabels=[tidy.display(s) for s in systems], ylabel="")
    axes.set_ylim(len(systems) - 0.4, -0.6)
    axes.grid(False, axis="y")


def title(axes: Axes, world: str) -> None:
    """Head a panel with its world."""
    axes.set_title(tidy.WORLDS.get(world, world))


def legend_columns(systems: list[str]) -> int:
    """Legend columns in a one-column figure: two where a name is long, else three."""
    return 2 if any(len(tidy.display(name)) > 14 for name in systems) else 3


def legend_height(systems: list[str]) -> float:
    """Inches that their legend takes, so that many systems do not squeeze the panels."""
    return 0.15 * -(-len(systems) // legend_columns(systems))


def legend(
    figure: Figure,
    systems: Iterable[str],
    columns: int = 4,
    lines: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """One legend below the panels; ``lines`` are further entries as Line2D settings."""
    handles = [Line2D([], [], label=tidy.display(name), **look(name)) for name in systems]
    handles += [
        Line2D([], [], label=label, **settings) for label, settings in (lines or {}).items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


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
