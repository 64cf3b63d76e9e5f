"""System E: what parents are composed of, on which time scale both levels live, what editing does."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.plots import Case
from lab.paper.register import Found, register
from lab.paper.tables import Column, Table, by_ablation
from lab.paper.topics.slowfast import study
from lab.paper.topics.time import survival
from lab.results import tidy
from lab.results.systems import ordered
from tsae.errors import UserError

CODINGS = {"level1": "level 1", "level2": "level 2 (parents)", "level3": "level 3",
           "leaves": "leaves, as many"}  # fmt: skip
N_PARENTS, N_CHILDREN = 6, 5


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


@register("composition", needs=("composition", "parents"))
def graph(found: Found) -> Figure:
    """The strongest parents and their strongest children with their top tokens, a row a world.

    Line width: weight over the parent's largest; below a parent its best label with the share of
    its tokens of that class. First seed.
    """
    worlds = ordered(found["composition"]["world"])
    figure, axes = style.panels(len(worlds), 2, style.PAGE, 2.6 * len(worlds))
    for row, world in zip(axes, worlds, strict=True):
        edges, nodes = (first_run(found[name], world) for name in ("composition", "parents"))
        strongest = nodes.sort_values("energy", ascending=False).head(N_PARENTS)
        for panel, half in zip(row, np.array_split(np.arange(len(strongest)), 2), strict=True):
            panel.axis("off")
            if len(half):
                bipartite(panel, strongest.iloc[half], edges)
        style.title(row[0], world)
    return figure


def bipartite(panel: Axes, parents: pd.DataFrame, edges: pd.DataFrame) -> None:
    """Parents on the left, their children on the right, a child of several parents once."""
    kept = edges[edges["parent"].isin(parents["parent"])]
    kept = kept.sort_values("weight", ascending=False).groupby("parent").head(N_CHILDREN)
    place: dict[int, float] = {}
    for n, parent in enumerate(parents["parent"]):
        for child in kept.loc[kept["parent"] == parent, "child"]:
            place.setdefault(child, -len(place) - 0.6 * n)
    for (_, node), colour in zip(parents.iterrows(), style.HUES, strict=False):
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


def plain(text: str) -> str:
    """The first three words, in which a dollar sign does not begin a formula."""
    return " ".join(str(text).split()[:3]).replace("$", r"\$")


@register("level_time", needs=("level_dwell",))
def level_time(found: Found) -> Figure:
    """The share of stays of at least n tokens by level, beside as many leaves of like frequency."""
    frame = tidy.main(tidy.prepare(found["level_dwell"], ("world", "ablation", "group", "dwell")))
    rows = survival(frame[frame["count"] > 0], "group")
    names = [name for name in CODINGS if name in set(rows["group"])]
    figure = plots.lines(
        rows, "n", ("n (tokens)", "share of stays ≥ n tokens"), by="group", log=True,
        look=lambda name: {**style.setting(names.index(name)), "marker": ""},
        name=lambda name: CODINGS[name], band=False,
    )  # fmt: skip
    for panel in figure.axes:
        panel.set_yscale("log")
    return figure


@register("hierarchical", "fve")
def hierarchical(found: Found) -> Figure:
    """Composition loss, curriculum, levels and shares of Hierarchical, one changed at a time."""
    cases = (Case("fve"), Case("composition_r2"), Case("parent_purity_excess"),
             Case("level_mean_dwell", "level2"), Case("ap", "domain"))  # fmt: skip
    return study(found, ("hierarchical",), cases)


@register("table_composition", "composition_r2", figure=False)
def table(found: Found, smoke: bool) -> str:
    """What parents are, by setting."""
    names = ("fve", "fve_parents", "l0_level1", "l0_level2", "composition_small",
             "composition_r2", "parent_purity", "parent_purity_excess", "child_given_parent",
             "child_given_parent_null")  # fmt: skip
    heads = {"fve_parents": "by parents", "l0_level1": "L0 (1)", "l0_level2": "L0 (2)",
             "composition_small": "W < .001", "child_given_parent_null": "by chance"}  # fmt: skip
    table = Table(
        "composition",
        "Parents and what they are composed of. Purity*: beyond random groups of as many leaves. "
        "{seeds}",
        [Column(name, head=heads.get(name, "")) for name in names],
        first="Setting",
    )
    frame = tidy.prepare(found["results"])
    frame = frame[frame["variant"] == "hierarchical"]

    def entries(here: pd.DataFrame):
        yield "hierarchical", "full budget", tidy.main(here)
        yield from by_ablation("hierarchical")(here)

    return table.latex(frame, entries, smoke)
