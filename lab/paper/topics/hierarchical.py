"""System E: what parents are composed of, and on which time scale both levels live."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.register import Found, register, tables
from lab.paper.tables import Entry, Table, by_ablation, columns
from lab.paper.topics.time import STAYS, survival
from lab.results import tidy
from lab.results.systems import ordered

LEVELS = {"level1": "level 1", "level2": "level 2 (parents)", "level3": "level 3",
          "leaves": "leaves, as many"}  # fmt: skip
N_PARENTS, N_CHILDREN = 6, 5


@register("composition")
def composition(found: Found) -> Figure:
    """The strongest parents and their strongest children with their top tokens, a row a world.

    Line width: weight over the parent's largest; below a parent its best label with the share of
    its tokens of that class. Of the main run of lowest seed.
    """
    parts = [tidy.main(found[name].fillna({"ablation": ""})) for name in ("composition", "parents")]
    parts = [part[part["seed"] == part["seed"].min()] for part in parts]
    worlds = ordered(parts[0]["world"])
    figure, axes = style.panels(len(worlds), 2, style.PAGE, 2.45 * len(worlds))
    for row, world in zip(axes, worlds, strict=True):
        edges, nodes = (part[part["world"] == world] for part in parts)
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
    kept = kept.sort_values(
        "parent", key=lambda p: p.map(list(parents["parent"]).index), kind="stable"
    )
    places: dict[tuple[str, int], tuple[float, float]] = {}
    nodes, lines = {}, []
    for row in kept.drop_duplicates("child").itertuples():
        part = list(parents["parent"]).index(row.parent)
        places["child", row.child] = (0.54, -len(places) - 0.6 * part)
        text = f"$\\bf{{{row.child}}}$  {plain(row.tokens)}"
        nodes["child", row.child] = {"s": text, "ha": "left"}
    for row, colour in zip(parents.itertuples(), style.HUES, strict=False):
        mine = kept[kept["parent"] == row.parent]
        height = np.mean([places["child", child][1] for child in mine["child"]])
        places["parent", row.parent] = (0.43, float(height))
        text = f"$\\bf{{{row.parent}}}$  {plain(row.tokens)}"
        if isinstance(row.label, str):
            text += f"\n{plain(row.label)} = {plain(row.cls)} ({row.share:.0%})"
        nodes["parent", row.parent] = {"s": text, "ha": "right", "color": colour}
        for child, weight in zip(mine["child"], mine["weight"] / mine["weight"].max(), strict=True):
            look = {"color": colour, "linewidth": 0.4 + 2.6 * weight, "alpha": 0.75}
            lines.append((("parent", row.parent), ("child", child), look))
    plots.graph(panel, places, nodes, lines)
    panel.set(xlim=(0, 1), ylim=(min(y for _, y in places.values()) - 0.7, 0.7))


def plain(text: str) -> str:
    """The first three words, in which a dollar sign does not begin a formula."""
    return " ".join(str(text).split()[:3]).replace("$", r"\$")


@register("level_time")
def level_time(found: Found) -> Figure:
    """The share of stays of at least n tokens by level, beside as many leaves of like frequency."""
    frame = tidy.prepare(found["level_dwell"], ("world", "ablation", "group", "dwell"))
    rows = survival(frame[frame["group"].isin(LEVELS)], "group")
    rows = rows.assign(system="hierarchical", group=rows["group"].map(LEVELS))
    looks = {word: {**style.setting(n), "marker": ""} for n, word in enumerate(LEVELS.values())}
    return plots.lines(rows, "n", STAYS, "", "group", looks, log="xy")


def parents_first(frame: pd.DataFrame) -> Iterable[Entry]:
    """The main run, then each setting below the run that it changes."""
    frame = frame[frame["variant"] == "hierarchical"]
    yield "hierarchical", "full budget", tidy.main(frame)
    yield from by_ablation("hierarchical")(frame)


tables(
    Table(
        "composition",
        "Parents and what they are composed of. Purity*: beyond random groups of as many leaves. "
        "{seeds}",
        columns("fve", ("fve_parents", "all", "by parents"), ("l0_level1", "all", "L0 (1)"),
                ("l0_level2", "all", "L0 (2)"), ("composition_small", "all", "W < .001"),
                "composition_r2", "parent_purity", "parent_purity_excess", "child_given_parent",
                ("child_given_parent_null", "all", "by chance")),
        parents_first, tidy.prepare, first="Setting",
    )
)  # fmt: skip
