"""What context in the encoder does: stability, smoothness, order, gates, isolated knowledge."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError

WEIGHTS = "consistency_weights="
GAPS = {
    "shuffle_gap_fve": "FVE",
    "shuffle_gap_ap_document": "document F1",
    "shuffle_gap_ap_section": "section F1",
    "shuffle_gap_ap_token": "token F1",
}
LATENT_GROUPS = {"all": "o", "fast": "<", "sentence": "s", "document": ">"}


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, Figure]:
    """Every figure of this file that the tables allow."""
    results, figures = found["results"], {}
    metrics = set(results["metric"])
    if "context_jaccard" in metrics:
        figures["context_stability"] = context_stability(results, smoke=smoke)
    if results["ablation"].fillna("").str.startswith(WEIGHTS).any() and "smoothness" in metrics:
        figures["consistency_pareto"] = consistency_pareto(results, smoke=smoke)
    windows = results["ablation"].fillna("").str.startswith("window=")
    if results.loc[windows, "metric"].isin(GAPS).any():
        figures["shuffle_gap"] = shuffle_gap(results, smoke=smoke)
    if len(found.get("gates", ())):
        figures["gates"] = gates(found["gates"], smoke=smoke)
    if len(found.get("isolation", ())):
        figures["isolation"] = isolation(found["isolation"], smoke=smoke)
    return figures


@style.styled
def context_stability(results: pd.DataFrame) -> Figure:
    """How much of a token's code is left when the text before it is cut, two panels a world.

    Left: Jaccard index of the active latents, right: cosine of the codes, both against the code
    under the whole sequence; mean over seeds, band: their range. Needs ``context_jaccard`` and
    ``context_cosine`` with groups ``context=n``.
    """
    frame = tidy.main(tidy.prepare(results))
    frame = frame[frame["metric"].isin(["context_jaccard", "context_cosine"])]
    frame = frame.assign(tokens=frame["group"].str.removeprefix("context=").astype(int))
    worlds, systems = tidy.ordered(frame["world"]), tidy.ordered(frame["system"])
    height = 1.55 * len(worlds) + style.legend_height(systems) + 0.2
    figure, axes = style.panels(len(worlds), 2, style.COLUMN, height, sharex="row", sharey="row")
    names = {"context_jaccard": "Jaccard index", "context_cosine": "cosine"}
    for row, world in zip(axes, worlds, strict=True):
        for panel, (metric, label) in zip(row, names.items(), strict=True):
            here = frame[(frame["world"] == world) & (frame["metric"] == metric)]
            for system in systems:
                mine = here[here["system"] == system].groupby("tokens")["value"]
                mean, look = mine.mean(), style.look(system)
                panel.plot(mean.index, mean, **{**look, "ms": 3})
                if mine.count().max() > 1:
                    edges = mine.min(), mine.max()
                    panel.fill_between(mean.index, *edges, color=look["color"], alpha=0.15, lw=0)
            style.log_steps(panel, here["tokens"].min(), here["tokens"].max())
            panel.set_title(f"{tidy.WORLDS.get(world, world)}: {label}", fontsize="small")
            panel.set_xlabel("tokens of context")
        row[0].set_ylabel("equal to whole context")
    style.legend(figure, systems, style.legend_columns(systems))
    return figure


@style.styled
def consistency_pareto(results: pd.DataFrame) -> Figure:
    """What smoothness costs: FVE against smoothness over the weights of the consistency loss.

    A point a setting of the sweep, written beside it the weight of the document group; both are
    means over seeds, and the curve joins weights in order, ``consistency=none`` being 0. Better is
    left and up. A panel a world.
    Needs ``fve`` and ``smoothness`` (group all) of ablations ``consistency_weights=[…]``.
    """
    frame = tidy.prepare(results)
    frame = frame.assign(ablation=frame["ablation"].replace("consistency=none", f"{WEIGHTS}[0]"))
    frame = frame[frame["ablation"].str.startswith(WEIGHTS)]
    tables = [tidy.pick(frame, metric) for metric in ("fve", "smoothness")]
    keys = ["world", "system", "ablation"]
    columns = [t.groupby(keys)["value"].mean().rename(t["metric"].iloc[0]) for t in tables]
    table = pd.concat(columns, axis=1, join="inner").reset_index()
    given = table["ablation"].str.removeprefix(WEIGHTS).str.replace("(", "[").str.replace(")", "]")
    table["weight"] = [json.loads(text)[-1] for text in given]
    worlds, systems = tidy.ordered(table["world"]), tidy.ordered(table["system"])
    figure, axes = style.panels(1, len(worlds), style.COLUMN, 2.3)
    for panel, world in zip(axes[0], worlds, strict=True):
        for system in systems:
            mine = table[(table["world"] == world) & (table["system"] == system)]
            mine = mine.sort_values("weight")
            panel.plot(mine["smoothness"], mine["fve"], **{**style.look(system), "ms": 4})
            for point in mine.itertuples():
                place = (point.smoothness, point.fve)
                shift = {"xytext": (3, 3), "textcoords": "offset points"}
                panel.annotate(f"{point.weight:g}", place, fontsize="x-small", **shift)
        style.title(panel, world)
        panel.margins(0.15)
        panel.locator_params(nbins=5)
        panel.set_xlabel("smoothness (lower: smoother)")
    axes[0, 0].set_ylabel("FVE")
    style.legend(figure, systems, style.legend_columns(systems))
    return figure


@style.styled
def shuffle_gap(results: pd.DataFrame) -> Figure:
    """What the order of tokens is worth, by the width of the window: intact minus shuffled.

    Tokens are shuffled within windows of the largest size measured; dots: seeds. At 0 the encoder
    gains from which tokens are near and not from their order. A panel a world. Needs
    ``shuffle_gap_…`` rows of ablations ``window=w``.
    """
    frame = tidy.prepare(results)
    frame = frame[frame["ablation"].str.startswith("window=") & frame["metric"].isin(GAPS)]
    if frame.empty:
        raise UserError("The results hold no 'shuffle_gap' rows of a sweep of the window: ablate.")
    sizes = frame["group"].str.removeprefix("shuffle=").astype(int)
    frame = frame[sizes == sizes.max()]
    frame = frame.assign(window=frame["ablation"].str.removeprefix("window=").astype(int))
    worlds = tidy.ordered(frame["world"])
    figure, axes = style.panels(1, len(worlds), style.COLUMN, 2.3)
    lines = zip(GAPS.items(), style.MARKERS, style.DASHES, strict=False)
    looks: dict[str, Any] = {
        m: {"label": name, "marker": k, "linestyle": d} for (m, name), k, d in lines
    }
    for panel, world in zip(axes[0], worlds, strict=True):
        for i, (metric, look) in enumerate(looks.items()):
            mine = frame[(frame["world"] == world) & (frame["metric"] == metric)]
            mean = mine.groupby("window")["value"].mean()
            if len(mean):
                panel.plot(mean.index, mean, color=f"C{i}", ms=4, **look)
                panel.plot(mine["window"], mine["value"], ".", color=f"C{i}", ms=2.5)
        panel.axhline(0, color="black", linewidth=0.6)
        here = frame[frame["world"] == world]["window"]
        style.log_steps(panel, here.min(), here.max())
        style.title(panel, world)
        panel.set_xlabel("window w (tokens)")
    axes[0, 0].set_ylabel(f"intact − shuffled (n = {sizes.max()})")
    handles = [Line2D([], [], color=f"C{i}", ms=4, **k) for i, k in enumerate(looks.values())]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@style.styled
def gates(gates: pd.DataFrame, per_line: int = 32) -> Figure:
    """The learned gate over a real text: a bar a token, b from 0 (open) to 1 (closed).

    Dark bars and the line above them: a sentence (one stroke) or section (two) truly starts at
    that token. The first run's first sequence of the first world. Needs the table ``gates``.
    """
    frame = tidy.prepare(gates, ("world", "variant", "sequence", "position", "token", "gate"))
    first = frame.iloc[0]
    keys = [k for k in ("world", "system", "seed", "ablation", "sequence") if k in frame]
    for key in keys:
        frame = frame[frame[key] == first[key]]
    frame = frame.sort_values("position")
    lines = -(-len(frame) // per_line)
    figure, axes = style.panels(lines, 1, style.PAGE, 0.95 * lines + 0.3)
    for i, panel in enumerate(axes[:, 0]):
        draw_gates(panel, frame.iloc[i * per_line : (i + 1) * per_line], per_line)
    axes[0, 0].set_title(tidy.WORLDS.get(first["world"], first["world"]))
    handles = [
        Line2D([], [], color=colour, lw=5, label=label)
        for colour, label in ((START, "a sentence or section starts here"), (INSIDE, "elsewhere"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


START, INSIDE = "#08519C", "#BDD7E7"


def draw_gates(panel: Axes, line: pd.DataFrame, width: int) -> None:
    """One line of text with its gates."""
    places = range(len(line))
    starts = line["boundary"].to_numpy() > 0
    panel.bar(places, line["gate"], color=[START if s else INSIDE for s in starts], width=0.85)
    for place, level in enumerate(line["boundary"]):
        if level:
            panel.annotate(
                "|" * min(int(level), 2), (place, 1.02), ha="center", annotation_clip=False
            )
    panel.set_xlim(-0.6, width - 0.4)
    panel.set_ylim(0, 1)
    panel.set_yticks([0, 1])
    panel.set_xticks(places, list(line["token"]), rotation=60, ha="right", rotation_mode="anchor")
    panel.tick_params(axis="x", labelsize="x-small", length=0)
    panel.grid(False)
    panel.set_ylabel("gate b")


@style.styled
def isolation(isolation: pd.DataFrame) -> Figure:
    """Which group of latents holds the forget facts: what is forgotten against what is kept.

    A point a setting (threshold, number of latents, multiplier), mean over seeds; its shape: the
    group whose latents are edited; filled: clamped, hollow: random latents of like frequency. Left:
    questions near the forget subject, right: far from it. Better is left and up: forgotten, and
    nothing else lost. A row a world. Needs the table ``isolation``.
    """
    needed = ("world", "variant", "latents_of", "strategy", "forget", "near", "far")
    frame = tidy.main(tidy.prepare(isolation, needed).assign(ablation=isolation["ablation"]))
    frame["ablation"] = frame["ablation"].fillna("")
    setting = ["world", "latents_of", "strategy", "setting"]
    table = frame.groupby(setting)[["forget", "near", "far"]].mean().reset_index()
    worlds = tidy.ordered(table["world"])
    height = 1.75 * len(worlds) + 0.5
    figure, axes = style.panels(len(worlds), 2, style.COLUMN, height, sharex=True, sharey=True)
    groups = [g for g in LATENT_GROUPS if g in set(table["latents_of"])]
    colours = {group: f"C{i}" for i, group in enumerate(groups)}
    for row, world in zip(axes, worlds, strict=True):
        for panel, retained in zip(row, ("near", "far"), strict=True):
            for group in groups:
                for strategy in ("always/hold-random", "always/clamp"):
                    mine = table[
                        (table["world"] == world)
                        & (table["latents_of"] == group)
                        & (table["strategy"] == strategy)
                    ]
                    fill = colours[group] if strategy == "always/clamp" else "none"
                    edge = colours[group] if strategy == "always/clamp" else "grey"
                    look = {"facecolor": fill, "edgecolor": edge, "s": 16, "linewidth": 0.8}
                    panel.scatter(
                        mine["forget"], mine[retained], marker=LATENT_GROUPS[group], **look
                    )
            panel.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
            panel.set_title(f"{tidy.WORLDS.get(world, world)}: {retained}", fontsize="small")
        row[0].set_ylabel("retain accuracy")
    for panel in axes[-1]:
        panel.set_xlabel("forget accuracy")
    handles = [
        Line2D([], [], ls="", marker=LATENT_GROUPS[g], color=colours[g], ms=4, label=g)
        for g in groups
    ]
    blank: dict[str, Any] = {"ls": "", "marker": "o", "mfc": "none", "mec": "grey", "ms": 4}
    handles.append(Line2D([], [], label="random control", **blank))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
