"""Reconstruction at a given sparsity: the Pareto picture, and what each ablation costs."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError

FVE_TICKS = (0.0, 0.2, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)


@style.styled
def pareto(results: pd.DataFrame) -> Figure:
    """FVE against L0, a panel a world: up and to the left is better.

    Large marker: mean over seeds; small ones: the seeds; a line joins the runs of an L0 sweep
    (ablation ``k=16`` and the like, with ``base`` where the sweep has a budget of its own). Nulls
    are hollow. The scale is logarithmic in 1 − FVE, so that a null that explains little does not
    squeeze the rest. Needs metrics ``fve`` and ``l0``, group all. Raises
    :class:`tsae.errors.UserError` that names the missing metric.
    """
    frame = tidy.prepare(results)
    swept = frame["ablation"].str.match(tidy.SWEEP)
    bases = frame["ablation"].eq(tidy.BASE) & frame["system"].isin(frame.loc[swept, "system"])
    frame = frame[(frame["ablation"] == "") | swept | bases]
    keys = ["world", "system", "ablation", "seed"]
    points = tidy.pick(frame, "l0")[[*keys, "value"]].rename(columns={"value": "l0"})
    points = points.merge(tidy.pick(frame, "fve")[[*keys, "value"]], on=keys)
    worlds, systems = tidy.ordered(points["world"]), tidy.ordered(points["system"])
    height = 2.05 + style.legend_height(systems)
    figure, axes = style.panels(1, len(worlds), style.COLUMN, height)
    for panel, world in zip(axes[0], worlds, strict=True):
        for system in systems:
            here = points[(points["world"] == world) & (points["system"] == system)]
            look = style.look(system)
            here = here.assign(value=1 - here["value"])
            panel.plot(here["l0"], here["value"], **{**look, "linestyle": "none", "ms": 2})
            means = here.groupby("ablation")[["l0", "value"]].mean().sort_values("l0")
            apart = means.index.isin([""]) & (tidy.BASE in means.index)
            for line in (means[~apart], means[apart]):
                if len(line):
                    panel.plot(line["l0"], line["value"], **look, ms=4.5)
        here = points[points["world"] == world]
        style.log_steps(panel, here["l0"].min(), here["l0"].max())
        unexplained_scale(panel, 1 - here["value"].max(), 1 - here["value"].min())
        style.title(panel, world)
        panel.set_xlabel("L0 (latents per token)")
    axes[0, 0].set_ylabel("fraction of variance explained")
    style.legend(figure, systems, style.legend_columns(systems))
    return figure


def unexplained_scale(axes: Axes, low: float, high: float) -> None:
    """A y axis of 1 − FVE from ``high`` (bottom) to ``low``, logarithmic, labelled with FVE."""
    axes.set_yscale("log")
    axes.set_ylim(high * 1.3, low / 1.3)
    shown = [f for f in FVE_TICKS if low / 1.3 <= 1 - f <= high * 1.3]
    axes.set_yticks([1 - f for f in shown], [f"{f:g}" for f in shown])
    axes.yaxis.set_minor_locator(NullLocator())


@style.styled
def ablation(results: pd.DataFrame) -> Figure:
    """Each ablation beside the unchanged run (vertical line), a row a (world, variant).

    Columns: FVE, recovery F1 of document latents (or of the world's labels), smoothness. Needs
    rows with ``ablation != ""`` of metrics ``fve``, ``recovery_f1`` (group document) and
    ``smoothness``; ablation ``base``, where there is one, is the unchanged run at the ablations'
    own budget. The L0 sweep is left to :func:`pareto`.
    """
    frame = tidy.prepare(results)
    swept = frame["ablation"].str.match(tidy.SWEEP)
    ablated = frame[~frame["ablation"].isin(["", tidy.BASE]) & ~swept]
    if ablated.empty:
        raise UserError("The results hold no ablation rows: run the ablate stage first.")
    columns = (
        ("fve", "all", "FVE"),
        ("recovery_f1", "document", "document F1"),
        ("smoothness", "all", "smoothness (lower: smoother)"),
    )
    cases = [
        (world, system)
        for world in tidy.ordered(ablated["world"])
        for system in tidy.ordered(ablated.loc[ablated["world"] == world, "system"])
    ]
    sizes = [
        ablated[(ablated["world"] == w) & (ablated["system"] == s)]["ablation"].nunique()
        for w, s in cases
    ]
    figure, axes = style.panels(
        len(cases),
        len(columns),
        style.PAGE,
        0.7 * len(cases) + 0.13 * sum(sizes),
        gridspec_kw={"height_ratios": [n + 2 for n in sizes]},
    )
    for row, (world, system) in zip(axes, cases, strict=True):
        case = frame[(frame["world"] == world) & (frame["system"] == system)]
        mine = ablated[(ablated["world"] == world) & (ablated["system"] == system)]
        names = sorted(mine["ablation"].unique(), key=tidy.natural)
        look = style.look(system)
        for panel, (metric, group, label) in zip(row, columns, strict=True):
            measured = mine.loc[mine["metric"] == metric, "group"]
            if metric == "recovery_f1" and group not in set(measured):  # a text without labels
                panel.set_axis_off()
                continue
            rows = tidy.pick(mine, metric, group)
            base = tidy.pick(tidy.unchanged(case), metric, group)["value"]
            panel.axvline(base.mean(), color="black", linewidth=0.9, linestyle="--")
            panel.axvspan(base.min(), base.max(), color="0.85", linewidth=0)
            for y, name in enumerate(names):
                values = rows.loc[rows["ablation"] == name, "value"]
                panel.plot(values, [y] * len(values), **{**look, "linestyle": "none", "ms": 2.5})
                panel.plot(values.mean(), y, **{**look, "linestyle": "none", "ms": 5})
            panel.set(yticks=range(len(names)), yticklabels=names if panel is row[0] else [])
            panel.set_ylim(len(names) - 0.5, -0.5)
            panel.set_xlabel(label)
            panel.locator_params(axis="x", nbins=5)
        row[0].set_title(f"{tidy.WORLDS.get(world, world)}: {tidy.display(system)}", loc="left")
    return figure
