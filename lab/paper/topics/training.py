"""Training curves: of the main runs, of their ablations, and of latents that die."""

import pandas as pd
from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.register import Found, register
from lab.results import tidy
from lab.results.systems import display, ordered
from tsae.errors import UserError

COLUMNS = ("world", "variant", "act", "seed", "ablation", "step", "phase", "metric", "value")


def logged(found: Found, metric: str) -> pd.DataFrame:
    """The rows of one training metric; without any, a :class:`UserError` that names the others."""
    frame = tidy.prepare(found["curves"], COLUMNS)
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise UserError(
            f"The training curves hold no '{metric}': name one of "
            f"{', '.join(sorted(frame['metric'].unique())) or 'none (train first)'}."
        )
    return rows


@register("curves", needs=("curves",))
def curves(found: Found) -> Figure:
    """Held-out 1 − FVE by step, a panel a world: mean over seeds, band: their range.

    A tick on the step axis marks where a variant's next phase begins.
    """
    rows = tidy.main(logged(found, "test_fve"))
    rows = rows.assign(value=1 - rows["value"])
    figure = plots.lines(rows, "step", ("step", "held-out 1 − FVE"), look=plain)
    for panel, world in zip(figure.axes, ordered(rows["world"]), strict=True):
        for system, mine in rows[rows["world"] == world].groupby("system"):
            starts = mine.groupby("phase")["step"].min()
            for start in starts[starts > starts.min()]:
                panel.axvline(start, ymax=0.05, color=plain(system)["color"], linewidth=1)
        if (rows["value"] > 0).all():
            panel.set_yscale("log")
    return figure


def plain(system: str) -> dict:
    """A system's look without its marker."""
    return {**style.look(system), "marker": ""}


@register("ablation_curves", needs=("curves",))
def ablation_curves(found: Found) -> Figure:
    """Held-out 1 − FVE by step of every ablation, a column a system; black: the run it changes."""
    rows = logged(found, "test_fve")
    rows = rows[rows["ablation"].ne("") & ~rows["ablation"].str.match(tidy.SWEEP)]
    if rows.empty:
        raise UserError("The training curves hold no ablation: run the ablate stage.")
    rows = rows.assign(value=1 - rows["value"], head=rows["system"].map(display))
    worlds, systems = ordered(rows["world"]), ordered(rows["system"])
    figure, axes = style.panels(len(worlds), len(systems), style.PAGE, 0.3 + 2.2 * len(worlds))
    for row, world in zip(axes, worlds, strict=True):
        for panel, system in zip(row, systems, strict=True):
            mine = rows[(rows["world"] == world) & (rows["system"] == system)]
            names = sorted(
                mine["ablation"].unique(), key=lambda n: (n != tidy.BASE, tidy.natural(n))
            )
            for place, name in enumerate(names):
                line = mine[mine["ablation"] == name].groupby("step")["value"].mean()
                look = {**style.setting(place - 1), "marker": "", "lw": 0.9}
                look |= {"color": "black", "linestyle": "-"} if name == tidy.BASE else {}
                panel.plot(line.index, line, label=name, **look)
            panel.set_yscale("log")
            panel.legend(fontsize=4.5, loc="upper right", handlelength=1.6)
            panel.set_xlabel("step")
            style.title(panel, world, display(system))
        row[0].set_ylabel("held-out 1 − FVE")
    return figure
