"""Births, stays and returns of latents, through a document and through training; their effects."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError

MEASURES = (
    ("births_per_100", "births per 100 tokens"),
    ("mean_dwell", "mean stay (tokens)"),
    ("reactivation_gap", "silence before a return"),
    ("returns", "share of returns"),
)
AGES = (
    ("first", "first births per 100 tokens"),
    ("back", "returns per 100 tokens"),
    ("seen", "distinct latents so far"),
)
SETS = ("long", "random_long", "short", "random_short")


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool = False) -> dict[str, Figure]:
    """Every figure of this file that the tables allow, by name."""
    cases = {
        "lifecycle": (lifecycle, "results"),
        "lifecycle_document": (document, "lifecycle"),
        "lifecycle_training": (training, "curves"),
        "effects": (effects, "results"),
    }
    figures = {}
    for name, (draw, table) in cases.items():
        if len(found.get(table, ())):
            try:
                figures[name] = draw(found[table], smoke=smoke)
            except UserError:
                continue  # a run without this family
    return figures


@style.styled
def lifecycle(results: pd.DataFrame) -> Figure:
    """How often latents are born, how long they stay, and when they come back, by variant.

    Bar: mean over seeds; dots: seeds; hatched: nulls. Needs ``births_per_100`` and ``mean_dwell``
    (family ``temporal``); ``reactivation_gap`` (tokens) and ``returns`` (share of births) come from
    family ``lifetimes`` and are shown where it was run.
    """
    frame = tidy.main(tidy.prepare(results))
    tables = {label: tidy.pick(frame, metric) for metric, label in MEASURES[:2]}
    for metric, label in MEASURES[2:]:
        if (frame["metric"] == metric).any():
            tables[label] = tidy.pick(frame, metric)
    worlds = tidy.ordered(next(iter(tables.values()))["world"])
    rows = {world: tidy.ordered(frame[frame["world"] == world]["system"]) for world in worlds}
    most = max(map(len, rows.values()))
    height = len(worlds) * (0.55 + 0.15 * most)
    figure, axes = style.panels(len(worlds), len(tables), style.PAGE, height, sharey="row")
    for row, world in zip(axes, worlds, strict=True):
        for panel, (label, table) in zip(row, tables.items(), strict=True):
            style.bars(panel, table[table["world"] == world], rows[world])
            panel.set_xlabel(label)
            panel.locator_params(axis="x", nbins=5)
        style.title(row[0], world)
    return figure


@style.styled
def document(lifecycle: pd.DataFrame) -> Figure:
    """Latents through a document: first births and returns per 100 tokens, and latents seen so far.

    By position in the document's part of a sequence, averaged over positions of like size; mean
    over seeds. A latent's first activity at position 0 is no birth. Needs the table ``lifecycle``.
    """
    columns = (
        "world",
        "variant",
        "seed",
        "ablation",
        "position",
        "tokens",
        "first",
        "back",
        "seen",
    )
    frame = tidy.main(tidy.prepare(lifecycle, columns))
    frame = frame[(frame["position"] > 0) & ~frame["system"].map(tidy.is_null)]
    if frame.empty:
        raise UserError("The lifecycle table holds no main run: run family lifetimes.")
    frame["place"] = 2 ** ((np.log2(frame["position"]) * 2).round() / 2)
    worlds, systems = tidy.ordered(frame["world"]), tidy.ordered(frame["system"])
    height = 1.75 * len(worlds) + style.legend_height(systems) / 2
    figure, axes = style.panels(len(worlds), len(AGES), style.PAGE, height)
    for row, world in zip(axes, worlds, strict=True):
        for panel, (name, label) in zip(row, AGES, strict=True):
            for system in systems:
                mine = frame[(frame["world"] == world) & (frame["system"] == system)]
                weighted = mine.assign(value=mine[name] * mine["tokens"]).groupby("place")
                mean = weighted["value"].sum() / weighted["tokens"].sum()
                panel.plot(mean.index, mean, **style.look(system), markevery=3, ms=3, lw=1)
            style.log_steps(panel, 1, frame["place"].max())
            panel.set(xlabel="token of the document", ylabel=label)
            style.title(panel, world)
    style.legend(figure, systems, 6)
    return figure


@style.styled
def training(curves: pd.DataFrame) -> Figure:
    """Dead latents by training step, a panel a world, a line a seed.

    Needs the curves table with metric ``dead`` (latents silent for ``dead_after`` tokens).
    """
    columns = ("world", "variant", "seed", "ablation", "step", "metric", "value")
    frame = tidy.main(tidy.prepare(curves, columns))
    frame = frame[frame["metric"] == "dead"]
    if frame.empty:
        raise UserError("The training curves hold no 'dead': train again.")
    worlds, systems = tidy.ordered(frame["world"]), tidy.ordered(frame["system"])
    height = 1.9 + style.legend_height(systems)
    figure, axes = style.panels(1, len(worlds), style.COLUMN, height)
    for panel, world in zip(axes[0], worlds, strict=True):
        for system in systems:
            mine = frame[(frame["world"] == world) & (frame["system"] == system)]
            for _, run in mine.groupby("seed"):
                run = run.sort_values("step")
                panel.plot(run["step"], run["value"], **style.look(system), markevery=0.3, ms=3)
        panel.set_xlabel("step")
        style.title(panel, world)
    axes[0, 0].set_ylabel("dead latents")
    style.legend(figure, systems, style.legend_columns(systems))
    return figure


@style.styled
def effects(results: pd.DataFrame) -> Figure:
    """What ablating and adding latents of long and short lifetime does to the next token.

    Mean KL per edited token (nats) over seeds with its standard error over documents; ``long`` and
    ``short``: latents of the longest and shortest mean stay; grey: random latents of the same
    densities. Needs ``effect_kl`` and ``effect_kl_se`` (family ``effects``).
    """
    frame = tidy.main(tidy.prepare(results))
    rows = frame[frame["metric"].isin(["effect_kl", "effect_kl_se"])].copy()
    if rows.empty:
        raise UserError("The results hold no 'effect_kl': run family effects.")
    rows[["kind", "set"]] = rows["group"].str.split("|", n=1, expand=True).to_numpy()
    worlds, systems = tidy.ordered(rows["world"]), tidy.ordered(rows["system"])
    height = len(worlds) * (0.6 + 0.26 * len(systems)) + 0.2
    figure, axes = style.panels(len(worlds), 2, style.PAGE, height, sharey="row")
    looks = {
        "long": {"color": "#0072B2", "marker": "s"},
        "random_long": {"color": "#0072B2", "marker": "s", "markerfacecolor": "white"},
        "short": {"color": "#D55E00", "marker": "o"},
        "random_short": {"color": "#D55E00", "marker": "o", "markerfacecolor": "white"},
    }
    for row, world in zip(axes, worlds, strict=True):
        for panel, kind in zip(row, ("ablate", "add"), strict=True):
            here = rows[(rows["world"] == world) & (rows["kind"] == kind)]
            table = here.pivot_table("value", ["system", "set"], "metric", "mean")
            for place, name in enumerate(SETS):
                for y, system in enumerate(systems):
                    if (system, name) in table.index:
                        kl, error = table.loc[(system, name), ["effect_kl", "effect_kl_se"]]
                        at = y + 0.2 * (place - 1.5)
                        panel.errorbar(kl, at, xerr=error, linestyle="none", ms=4, **looks[name])
            panel.set_yticks(range(len(systems)), [tidy.display(name) for name in systems])
            panel.set_ylim(len(systems) - 0.5, -0.5)
            panel.grid(False, axis="y")
            panel.set_xlabel(f"KL per edited token, {kind} (nats)")
            panel.set_xlim(left=0)
            style.title(panel, world)
    named = {"long": "long-lived", "short": "short-lived"}
    named |= {f"random_{key}": f"random, as often as {name}" for key, name in named.items()}
    style.legend(
        figure, [], lines={named[key]: {**looks[key], "linestyle": "none"} for key in SETS}
    )
    return figure
