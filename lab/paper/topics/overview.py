"""What is bought at what price: the hero picture, sparsity, economy, and the table of fidelity."""

import json

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lab.paper import plots, style
from lab.paper.register import Found, register
from lab.paper.tables import Column, Table, by_system
from lab.results import tidy
from lab.results.systems import SYSTEMS, display, is_null, ordered
from tsae.errors import UserError

SHOWN = ("domain", "narrator", "topic", "section", "library")
"""Labels of the hero picture: the first two on microworld, on other worlds the first there is."""
FVE_TICKS = (0.0, 0.2, 0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
LINES = {"ap_constant": "constant", "ap_chance": "chance", "ap_probe_ema": "ceiling"}


@register("hero", "fve", "ap")
def hero(found: Found) -> Figure:
    """FVE against the AP of the best latent, a panel a slow label: right and up is better.

    A filled marker is a dictionary's own code, mean over seeds; its arrow ends at the same
    dictionary read through a moving average, which costs no reconstruction. Dashed lines: a
    constant latent, the best of F latents on shifted labels, and a supervised probe on the averaged
    residual. Needs ``ap`` by label with readings ``own`` and ``ema``.
    """
    frame = tidy.main(tidy.prepare(found["results"]))
    fve = tidy.pick(frame, "fve").groupby(["world", "system"])["value"].mean()
    panels = slow_panels(frame)
    if not panels:
        raise UserError("The results hold 'ap' of no slow label: run the family that measures it.")
    figure, axes = style.panels(1, len(panels), style.PAGE, 2.9)
    seen: set[str] = set()
    for panel, (world, label) in zip(axes[0], panels, strict=True):
        rows = plots.rows_of(frame[frame["world"] == world], "ap", label)
        ap = rows.groupby("system")["value"].mean()
        for system in ordered(name for name in ap.index if not is_null(name)):
            if (world, system) not in fve:
                continue
            at, height = ap[system], 1 - fve[world, system]
            look = {
                **style.look(system),
                "ms": 8 if system == "slowfast" else 5,
                "linestyle": "none",
            }
            panel.plot(at, height, **look, zorder=3)
            if (read := ap.get(f"ema({system})", np.nan)) == read:
                arrow = {"arrowstyle": "->", "color": look["color"], "lw": 0.8, "alpha": 0.7}
                panel.annotate("", (read, height), (at, height), arrowprops=arrow)
                panel.plot(read, height, alpha=0)  # so that the axis holds the arrow's end
            seen.add(system)
        for name, word in LINES.items():
            level = plots.rows_of(frame[frame["world"] == world], name, label)["value"].mean()
            if level == level:
                panel.axvline(level, color="0.45", linewidth=0.8, linestyle="--", zorder=1)
                side = {"ha": "right"} if name == "ap_constant" else {"ha": "left"}
                panel.annotate(word, (level, 0.98), xycoords=("data", "axes fraction"), va="top",
                               rotation=90, color="0.35", fontsize=5.5, **side)  # fmt: skip
        rest = [1 - fve[world, s] for s in ap.index if (world, s) in fve and not is_null(s)]
        fve_axis(panel, min(rest), max(rest))
        panel.margins(x=0.08)
        panel.set_xlabel(f"AP of the best latent, {label}")
        style.title(panel, world, label)
    axes[0, 0].set_ylabel("fraction of variance explained")
    arrow = {"color": "0.3", "marker": r"$\rightarrow$", "ms": 9, "linestyle": "none"}
    style.legend(figure, ordered(seen), 6, {"read through a moving average": arrow})
    return figure


def slow_panels(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(world, label) of the hero picture: two on microworld, one on every other world."""
    found = []
    for world in ordered(frame.loc[frame["metric"] == "ap", "world"]):
        here = frame[frame["world"] == world]
        labels = [name for name in SHOWN if len(plots.rows_of(here, "ap", name))]
        found += [(world, label) for label in labels[: 2 if world == "microworld" else 1]]
    return found[:4]


@register("pareto", "fve", "l0")
def pareto(found: Found) -> Figure:
    """FVE against L0, a panel a world: up and to the left is better.

    Large marker: mean over seeds; small ones: the seeds; hollow: nulls. A line joins the runs of an
    L0 sweep (ablation ``k=16`` and the like, with ``base``, the same choices at the sweep's
    budget); the main run, which has a budget of its own, is never joined. The scale is logarithmic
    in 1 − FVE, so that a null that explains little does not squeeze the rest.
    """
    frame = tidy.prepare(found["results"])
    frame = frame[~frame["system"].map(is_null) | frame["system"].isin(tidy.BARS)]
    swept = frame["ablation"].str.match(tidy.SWEEP)
    bases = frame["ablation"].eq(tidy.BASE) & frame["system"].isin(frame.loc[swept, "system"])
    frame = frame[(frame["ablation"] == "") | swept | bases]
    points = plots.wide(frame, ("l0", "fve"), ("world", "system", "ablation", "seed"))
    points["rest"] = 1 - points["fve"]
    worlds, systems = ordered(points["world"]), ordered(points["system"])
    figure, axes = style.panels(1, len(worlds), style.COLUMN, 2.1 + 0.05 * len(systems))
    for panel, world in zip(axes[0], worlds, strict=True):
        here = points[points["world"] == world]
        for system in systems:
            mine, look = here[here["system"] == system], style.look(system)
            panel.plot(mine["l0"], mine["rest"], **{**look, "linestyle": "none", "ms": 2})
            for line in joined(mine):
                panel.plot(line["l0"], line["rest"], **{**look, "ms": 4.5})
        style.log_steps(panel, here["l0"].min(), here["l0"].max())
        fve_axis(panel, here["rest"].min(), here["rest"].max())
        style.title(panel, world)
        panel.set_xlabel("L0 (latents per token)")
    axes[0, 0].set_ylabel("fraction of variance explained")
    style.legend(figure, systems, 3)
    return figure


def fve_axis(panel: Axes, low: float, high: float) -> None:
    """A y axis of 1 − FVE, logarithmic, from ``high`` (bottom) to ``low``, labelled with FVE."""
    low, high = max(low, 1e-4) / 1.15, high * 1.15
    panel.set_yscale("log")
    panel.set_ylim(high, low)
    ticks = [f for f in FVE_TICKS if low <= 1 - f <= high]
    panel.set_yticks([1 - f for f in ticks], [f"{f:g}" for f in ticks])
    panel.yaxis.set_minor_locator(NullLocator())


def joined(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """What :func:`pareto` draws in one stroke each: the main run alone, and the sweep by L0."""
    means = runs.groupby("ablation")[["l0", "rest"]].mean().sort_values("l0")
    main = means.index == ""
    return [line for line in (means[main], means[~main]) if len(line)]


@register("economy", "fve", "bits")
def economy(found: Found) -> Figure:
    """FVE against what a code costs, a row a world: bits a token, and births a token.

    A latent that stays on is paid for once here, and once a token in L0: this is where time can
    pay. Large marker: mean over seeds; small ones: the seeds.
    """
    frame = tidy.compared(found["results"])
    frame = frame[frame["system"].map(lambda name: name in SYSTEMS)]
    costs = [name for name in ("bits", "births") if (frame["metric"] == name).any()]
    points = plots.wide(frame, ("fve", *costs), ("world", "system", "seed"))
    worlds, systems = ordered(points["world"]), ordered(points["system"])
    figure, axes = style.panels(
        len(worlds), len(costs), style.COLUMN, 0.5 + 1.7 * len(worlds), sharey="row"
    )
    for row, world in zip(axes, worlds, strict=True):
        for panel, cost in zip(row, costs, strict=True):
            here = points[points["world"] == world]
            for system in systems:
                mine = here[here["system"] == system]
                look = {**style.look(system), "linestyle": "none"}
                panel.plot(mine[cost], mine["fve"], **{**look, "ms": 2})
                panel.plot(mine[cost].mean(), mine["fve"].mean(), **{**look, "ms": 5})
            panel.set_xlabel(f"{cost} a token (fewer: better)")
            style.title(panel, world)
        row[0].set_ylabel("FVE")
    style.legend(figure, systems, 3)
    return figure


@register("table_main", "fve", "l0", figure=False)
def main_table(found: Found, smoke: bool) -> str:
    """Systems × fidelity and economy; a dagger where L0 is not within 2% of TopK's."""
    frame = tidy.compared(found["results"])
    matched = tidy.matched_l0(frame)
    names = ("l0", "fve", "ce_delta", "ce_score", "bits", "births", "alive", "always_on",
             "smoothness", "mean_dwell", "parameters")  # fmt: skip
    table = Table(
        "main",
        "Fidelity and economy. {seeds} $\\dagger$: L0 more than 2\\% away from TopK's, so not "
        "comparable at equal sparsity. Dwell: mean stay in tokens. Bold: better than TopK by the "
        "paired interval and the metric's smallest effect; slanted: worse.",
        [Column(name) for name in names],
        marks={"l0": lambda world, row: "" if matched.get((world, row), True) else r"$^\dagger$"},
        verdicts="topk",
    )
    return table.latex(frame, by_system, smoke, found.get("differences"))


@register("table_settings", needs=("configs",), figure=False)
def settings(found: Found, smoke: bool) -> str:
    """How each system was set: the fields of its config beside those that all share; a world's line
    is left out where an earlier world has the same."""

    frame = tidy.prepare(found["configs"], ("world", "variant", "act", "field", "value"))
    frame = frame[~frame["field"].isin(["d_in", "d_sae", "k", "act"])]
    table = Table("settings", "Settings of each system beside the width, $k$ and budget that all "
                  "share, once where worlds agree; code and docstrings use the same names.", [])  # fmt: skip
    lines: dict[str, list[tuple[str, str]]] = {}
    seen: set[tuple[str, str]] = set()
    for world in ordered(frame["world"]):
        here = frame[frame["world"] == world]
        for system in ordered(here["system"]):
            told = "; ".join(
                f"{row.field.replace('_', ' ')} {printed(json.loads(row.value))}"
                for row in here[here["system"] == system].itertuples()
            )
            if (system, told) not in seen:
                lines.setdefault(world, []).append((display(system), told))
            seen.add((system, told))
    columns = r"l>{\raggedright\arraybackslash}p{0.86\textwidth}"
    return table.text(["System", "Settings"], lines, smoke, columns)


def printed(content: object) -> str:
    """A value of a config as a reader writes it: a list without brackets, yes, no and none."""
    if isinstance(content, list):
        return ", ".join(map(printed, content)) or "none"
    if content is None or isinstance(content, bool):
        return {True: "yes", False: "no", None: "none"}[content]
    return f"{content:g}" if isinstance(content, float) else str(content)
