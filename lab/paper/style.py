"""One look for all figures: style sheet, a colour and marker a system, legends, axes, files."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.font_manager
import matplotlib.pyplot as plt
import matplotlib.ticker
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from lab.results import systems, tidy
from tsae import files

# The fonts that come with matplotlib, whatever its cache of fonts knows: figures are the same
# on every machine.
for font in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("STIX*.ttf")):
    matplotlib.font_manager.fontManager.addfont(font)

STYLE = Path(__file__).resolve().parent / "tsae.mplstyle"
COLUMN, PAGE = 3.25, 6.77  # widths in inches of one and two text columns
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


def look(system: str) -> dict[str, Any]:
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


def setting(place: int, hollow: bool = False) -> dict[str, Any]:
    """Colour, marker and line of the ``place``-th thing that is no system."""
    colour = HUES[place % len(HUES)]
    return {
        "color": colour,
        "marker": MARKERS[place % len(MARKERS)],
        "markerfacecolor": "white" if hollow else colour,
        "linestyle": DASHES[place % len(DASHES)],
    }


def title(axes: Axes, world: str, rest: str = "", rows: pd.DataFrame | None = None) -> None:
    """Head a panel with its world, what else it shows, and the number of seeds in its rows."""
    text = systems.WORLDS.get(world, world) + (f": {rest}" if rest else "")
    if rows is not None and {"seed", "system"} <= set(rows) and len(rows):
        text += f" ({tidy.seeds(rows)})"
    axes.set_title(text)


def legend(figure: Figure, looks: Mapping[str, Mapping[str, Any]], columns: int) -> None:
    """One legend below the panels, from what each entry's line looks like."""
    handles = [Line2D([], [], label=label, **line) for label, line in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def of_systems(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Looks of systems by their names in print."""
    return {systems.display(name): look(name) for name in systems.ordered(names)}


def save(figure: Figure, directory: str | Path, name: str) -> list[Path]:
    """Write ``name.pdf`` (outline fonts) and ``name.png`` (of 256 colours), and return the paths.

    The same figure gives the same bytes on every run: no date, no program version. Raises
    :class:`tsae.errors.UserError` when the disk is full.
    """
    pdf, raw, png = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with plt.style.context(["default", STYLE]):
        dates = dict.fromkeys(("CreationDate", "ModDate", "Creator", "Producer"))
        figure.savefig(pdf, format="pdf", metadata=dates)
        figure.savefig(raw, format="png")
    Image.open(raw).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(png, "PNG")
    paths = []
    for kind, buffer in (("pdf", pdf), ("png", png)):
        path = Path(directory) / f"{name}.{kind}"
        with files.atomic(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        paths.append(path)
    return paths


def log_steps(axes: Axes, low: float, high: float) -> None:
    """Logarithmic x axis from ``low`` to ``high`` with plain whole numbers at powers of 2, at most
    six of them; at even steps where fewer than two are in sight."""
    axes.set_xscale("log", base=2)
    left, right = low / 1.25, high * 1.25
    axes.set_xlim(left, right)
    ticks = [2**i for i in range(16) if left <= 2**i <= right]
    ticks = ticks[:: -(-len(ticks) // 6)]
    if len(ticks) < 2:
        even = matplotlib.ticker.MaxNLocator(3, integer=True).tick_values(left, right)
        ticks = [tick for tick in even if left <= tick <= right]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
