"""What parents are composed of, on which time scale both levels live, and what clamping does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.cluster.hierarchy import leaves_list, linkage

from lab.measures.time.lifecycle import kaplan_meier
from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError

CODINGS = {"level1": "level 1", "level2": "level 2 (parents)", "leaves": "leaves, as many"}
COLOURS = {"level1": "#0072B2", "level2": "#D55E00", "leaves": "#777777"}
DASHES = {"level1": "-", "level2": "--", "leaves": ":"}
RIVALS = {"hierarchical": "parents", "leaves": "leaves, gated alike", "clamp": "leaves"}
RIVAL_LOOKS: dict[str, dict[str, Any]] = {
    "hierarchical": {"color": "#D55E00", "marker": "o"},
    "leaves": {"color": "#0072B2", "marker": "s", "markerfacecolor": "none"},
    "clamp": {"color": "#777777", "marker": "^", "markerfacecolor": "none"},
}
N_PARENTS, N_CHILDREN = 6, 5


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, Figure]:
    """Every figure of this file that the tables allow."""
    figures = {}
    if len(found.get("composition", ())) and len(found.get("parents", ())):
        for world in tidy.ordered(found["composition"]["world"]):
            tables = found["composition"], found["parents"], world
            figures[f"composition_graph_{world}"] = graph(*tables, smoke=smoke)
        figures["composition_matrix"] = matrix(found["composition"], smoke=smoke)
    if len(found.get("level_dwell", ())):
        figures["level_time"] = time_scales(found["results"], found["level_dwell"], smoke=smoke)
    if found["results"]["group"].str.startswith("hierarchical|t=").any():
        figures["level_unlearning"] = unlearning(found["results"], smoke=smoke)
    return figures


def first_run(table: pd.DataFrame, world: str) -> pd.DataFrame:
    """The main run of lowest seed on ``world``; :class:`UserError` when there is none."""
    frame = tidy.main(tidy.prepare(table, ("world", "seed", "ablation")))
    frame = frame[frame["world"] == world]
    if frame.empty:
        raise UserError(
            f"The composition tables hold no main run on {world}: evaluate the family 'composition'"
            " for a hierarchical SAE."
        )
    return frame[frame["seed"] == frame["seed"].min()]


@style.styled
def graph(composition: pd.DataFrame, parents: pd.DataFrame, world: str) -> Figure:
    """The six strongest parents and their strongest children, each with its top tokens.

    Line width: weight over the parent's largest; below a parent its best label with the share of
    its tokens of that class. First seed. Needs the tables ``composition`` (parent, child, weight,
    tokens) and ``parents`` (parent, energy, tokens and, with labels, label, cls, share).
    """
    edges, nodes = first_run(composition, world), first_run(parents, world)
    strongest = nodes.sort_values("energy", ascending=False).head(N_PARENTS)
    halves = [strongest.iloc[:3], strongest.iloc[3:]]
    halves = [half for half in halves if len(half)]
    figure, axes = style.panels(1, len(halves), style.PAGE, 2.75)
    for panel, half in zip(axes[0], halves, strict=True):
        _bipartite(panel, half, edges)
    return figure


def _bipartite(panel: Axes, parents: pd.DataFrame, edges: pd.DataFrame) -> None:
    """Parents on the left, their children on the right, a child of several parents once."""
    kept = edges[edges["parent"].isin(parents["parent"])]
    kept = kept.sort_values("weight", ascending=False).groupby("parent").head(N_CHILDREN)
    place: dict[int, float] = {}
    for n, parent in enumerate(parents["parent"]):
        for child in kept.loc[kept["parent"] == parent, "child"]:
            place.setdefault(child, -len(place) - 0.6 * n)
    colours = ["#D55E00", "#0072B2", "#009E73"]
    for (_, node), colour in zip(parents.iterrows(), colours, strict=False):
        mine = kept[kept["parent"] == node["parent"]]
        y = float(np.mean([place[child] for child in mine["child"]]))
        for child, weight in zip(mine["child"], mine["weight"], strict=True):
            width = 0.4 + 2.6 * weight / mine["weight"].max()
            panel.plot([0.43, 0.54], [y, place[child]], color=colour, lw=width, alpha=0.75)
        text = f"$\\bf{{{int(node['parent'])}}}$  {plain(node['tokens'])}"
        if isinstance(node.get("label"), str):
            text += f"\n{plain(node['label'])} = {plain(node['cls'])} ({node['share']:.0%})"
        panel.text(0.42, y, text, ha="right", va="center", color=colour)
    for child, tokens in kept.drop_duplicates("child").set_index("child")["tokens"].items():
        panel.text(0.55, place[child], f"$\\bf{{{child}}}$  {plain(tokens)}", va="center")
    panel.set(xlim=(0, 1), ylim=(min(place.values()) - 0.7, 0.7))
    panel.axis("off")


def plain(text: str) -> str:
    """The first three words, in which a dollar sign does not begin a formula."""
    return " ".join(str(text).split()[:3]).replace("$", r"\$")


@style.styled
def matrix(composition: pd.DataFrame) -> Figure:
    """W with parents in the order of their clustering, a panel a world; first seed.

    Average linkage of cosine distances; children stand below the parent of their largest weight,
    so that marks off the staircase are children shared between parents. Weights over each parent's
    largest; children without an edge are left out. Needs the table ``composition``.
    """
    worlds = tidy.ordered(tidy.main(composition.fillna({"ablation": ""}))["world"])
    figure, axes = style.panels(1, len(worlds), style.PAGE, 2.3)
    for panel, world in zip(axes[0], worlds, strict=True):
        table = first_run(composition, world).pivot_table("weight", "parent", "child", fill_value=0)
        share = table.div(table.max(axis=1), axis=0).to_numpy()
        share = share[clustered(share)]
        columns = np.lexsort((-share.max(0), share.argmax(0)))
        shown = panel.imshow(share[:, columns], aspect="auto", cmap="Greys", vmin=0, vmax=1)
        panel.set(xlabel=f"{share.shape[1]} children", xticks=[], yticks=[])
        panel.set_ylabel(f"{len(share)} parents, clustered")
        panel.grid(False)
        style.title(panel, world)
    figure.colorbar(shown, ax=axes[0].tolist(), label="weight / parent's largest", pad=0.01)
    return figure


def clustered(rows: np.ndarray) -> np.ndarray:
    """The order of rows by which similar ones stand together."""
    if len(rows) < 3:
        return np.arange(len(rows))
    return leaves_list(linkage(rows, method="average", metric="cosine", optimal_ordering=True))


@style.styled
def time_scales(results: pd.DataFrame, dwell: pd.DataFrame) -> Figure:
    """Dwell times of both levels, and how well each recovers labels by scale, a row a world.

    Left: share of stays that last at least n tokens (Kaplan–Meier, latents and seeds pooled).
    Right: F1 of the best latent beyond its frequency-matched null, mean over seeds, dots: seeds.
    Grey: as many latents of level 1 as there are parents, of like frequency. Needs the table
    ``level_dwell`` and, for the right panel, metric ``level_recovery_f1_excess``.
    """
    frame = tidy.main(tidy.prepare(results))
    stays = tidy.main(tidy.prepare(dwell, ("world", "seed", "ablation", "group", "dwell")))
    rows = frame[frame["metric"] == "level_recovery_f1_excess"]
    worlds = tidy.ordered(stays["world"])
    figure, axes = style.panels(len(worlds), 2, style.PAGE, 0.5 + 1.6 * len(worlds))
    for (left, right), world in zip(axes, worlds, strict=True):
        for coding in CODINGS:
            here = stays[(stays["world"] == world) & (stays["group"] == coding)]
            counts = here.groupby("dwell")[["count", "censored"]].sum()
            counts = counts.reindex(range(int(counts.index.max()) + 1), fill_value=0)
            cut = torch.tensor(counts["censored"].to_numpy())
            alive = kaplan_meier(torch.tensor(counts["count"].to_numpy()) - cut, cut).numpy()
            share = np.concatenate([[1.0], alive[1:-1]])
            share = share[share > 0]
            look = {"color": COLOURS[coding], "linestyle": DASHES[coding]}
            left.step(np.arange(1, len(share) + 1), share, where="mid", **look)
        style.log_steps(left, 1, max(2, stays.loc[stays["world"] == world, "dwell"].max()))
        left.set(yscale="log", xlabel="n (tokens)", ylabel="share of stays of at least n")
        style.title(left, world)
        _recovered(right, rows[rows["world"] == world])
    handles = [
        Line2D([], [], label=name, color=COLOURS[key], linestyle=DASHES[key], marker="s", ms=3)
        for key, name in CODINGS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _recovered(panel: Axes, rows: pd.DataFrame) -> None:
    """Grouped bars of ``level_recovery_f1_excess`` by scale and coding."""
    scales = [s for s in tidy.SCALES if rows["group"].str.endswith(f":{s}").any()]
    for n, coding in enumerate(CODINGS):
        for x, scale in enumerate(scales):
            values = rows.loc[rows["group"] == f"{coding}:{scale}", "value"]
            at = x + 0.27 * (n - 1)
            panel.bar(at, values.mean(), 0.25, color=COLOURS[coding], alpha=0.8)
            panel.plot([at] * len(values), values, "o", ms=2.4, mfc="white", mec="black", mew=0.5)
    panel.set_xticks(range(len(scales)), scales)
    panel.set_ylabel("F1 beyond its null")
    panel.grid(False, axis="x")


@style.styled
def unlearning(results: pd.DataFrame) -> Figure:
    """Retained against forget accuracy of hierarchical SAEs: parents against as many leaves.

    One point a setting, mean over seeds; up and to the left is better; dashed: what the score asks
    of retained accuracy. Needs ``unlearn_{forget,near,far}_accuracy`` of the strategies.
    """
    table = tidy.unlearning(results)
    table = table[table["system"].str.startswith("hierarchical")]
    worlds = tidy.ordered(table["world"])
    figure, axes = style.panels(
        len(worlds), 2, style.COLUMN, 0.55 + 1.6 * len(worlds), sharex=True, sharey=True
    )
    for row, world in zip(axes, worlds, strict=True):
        for panel, kept in zip(row, ("near", "far"), strict=True):
            panel.axhline(0.99, color="black", linewidth=0.7, linestyle="--")
            for strategy, look in RIVAL_LOOKS.items():
                mine = table[(table["world"] == world) & (table["strategy"] == strategy)]
                panel.plot(mine["forget"], mine[kept], ls="none", ms=4, alpha=0.85, **look)
            panel.set(title=f"{kept} retain set", xlabel="forget accuracy")
        row[0].set_ylabel(f"retained accuracy\n({tidy.WORLDS.get(world, world)})")
    handles = [
        Line2D([], [], label=RIVALS[strategy], ls="none", ms=4, **look)
        for strategy, look in RIVAL_LOOKS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
