"""System B: the graph of dependencies, arrows found against rates and norms, a chain firing."""

from typing import Any

import igraph
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from lab.paper import plots, style
from lab.paper.register import Found, register
from lab.paper.tables import Column, Table, by_group, by_system
from lab.results import tidy
from lab.results.systems import WORLDS, display, is_null
from tsae.errors import UserError

RIGHT, WRONG = "#0072B2", "#999999"
ALONE = {"base": "tracker, learned", "learning=norm": "tracker, norms alone",
         "learning=rates": "rates alone", "own": "Causal's own tracker"}  # fmt: skip
READ = {"labels": "true labels", "single": "one latent", "joint": "conjunctions"}
DETECTION = ("chain_ap", "chain_ap_chance", "chain_precision", "chain_recall",
             "chain_lag_accuracy")  # fmt: skip


def first_run(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of one run, the first of the first world, and a title that names it."""
    keys = ["world", "variant", "act", "seed", "ablation"]
    head = table.sort_values(keys, kind="stable").iloc[0]
    for key in keys:
        table = table[table[key] == head[key]]
    return table, f"{WORLDS.get(head['world'], head['world'])}, {display(head['variant'])}"


@register("chain_graph", needs=("edges",))
def graph(found: Found, n_edges: int = 32) -> Figure:
    """The strongest direct dependencies, a node a step, an arrow an edge with its lag in tokens.

    Blue arrows: true ones of the world; grey, dashed: others. Width: transfer entropy. Layers
    follow the arrows (Sugiyama's layout). Needs group ``joint`` of the family ``dependencies``.
    """
    joint = found["edges"][found["edges"]["group"] == "joint"]
    if joint.empty:
        raise UserError("The edges hold none of conjunctions: run the family dependencies.")
    rows, name = first_run(joint)
    rows = rows[rows["direct"]].sort_values("te", ascending=False, kind="stable")
    rows = rows.drop_duplicates(["source_name", "target_name"]).head(n_edges)
    names = list(dict.fromkeys([*rows["source_name"], *rows["target_name"]]))
    number = {step: i for i, step in enumerate(names)}
    pairs = [(number[a], number[b])
             for a, b in zip(rows["source_name"], rows["target_name"], strict=True)]  # fmt: skip
    whole = igraph.Graph(len(names), pairs, directed=True)
    place: dict[int, tuple[float, float]] = {}
    left = 0.0
    for part in sorted(whole.connected_components("weak"), key=len, reverse=True):
        layout = whole.induced_subgraph(part).layout_sugiyama(maxiter=200)
        xs = [x for x, _ in layout.coords[: len(part)]]
        for node, (x, y) in zip(part, layout.coords, strict=False):
            place[node] = (left + x - min(xs), -y)
        left += max(xs) - min(xs) + 1.0
    figure, ((axes,),) = style.panels(1, 1, style.PAGE, 3.3)
    for row, (a, b) in zip(rows.itertuples(), pairs, strict=True):
        bend = 0.0 if abs(place[a][1] - place[b][1]) <= 1 else 0.12  # around the layers between
        axes.add_patch(
            FancyArrowPatch(
                place[a], place[b], arrowstyle="-|>", mutation_scale=8, shrinkA=9, shrinkB=9,
                connectionstyle=f"arc3,rad={bend}", linewidth=0.6 + 2.0 * row.te / rows["te"].max(),
                color=RIGHT if row.true else WRONG, linestyle="-" if row.true else "--",
            )
        )  # fmt: skip
        middle = [(p + q) / 2 for p, q in zip(place[a], place[b], strict=True)]
        box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
        axes.text(*middle, f"{row.lag}", fontsize=5.5, ha="center", va="center", bbox=box)
    for node, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "linewidth": 0.6}
        axes.text(x, y, names[node], fontsize=6.5, ha="center", va="center", bbox=box)
    across, up = zip(*place.values(), strict=True)
    axes.set(xlim=(min(across) - 0.6, max(across) + 0.6), ylim=(min(up) - 0.5, max(up) + 0.5))
    axes.axis("off")
    axes.set_title(f"Strongest dependencies between steps ({name}); number: lag in tokens, width: "
                   "transfer entropy")  # fmt: skip
    arrows = {"true arrow": (RIGHT, "-"), "not in the world's graph": (WRONG, "--")}
    style.legend(figure, [], 2, {n: {"color": c, "linestyle": d} for n, (c, d) in arrows.items()})
    return figure


@register("edges", "chain_ap")
def edges(found: Found) -> Figure:
    """Average precision of the world's arrows, by how steps are read from codes; of the tracker
    alone, beside what norms and rates give without its learning. The tick is chance."""
    frame = tidy.compared(found["results"])
    frame = frame[~frame["system"].map(is_null)]
    rows = []
    for name, words in (("chain_ap", READ), ("tracker_ap", ALONE)):
        for metric, shown in ((name, "chain_ap"), (f"{name}_chance", "chain_ap_chance")):
            mine = frame[(frame["metric"] == metric) & frame["group"].isin(words)]
            rows.append(mine.assign(system=mine["group"].map(words), metric=shown, group="all"))
    case = plots.Case("chain_ap", label="AP of the world's arrows", tick="chain_ap_chance")
    return plots.bars(pd.concat(rows), [case])


@register("table_chains", "chain_ap", figure=False)
def detection(found: Found, smoke: bool) -> str:
    """Pattern detection: a row a system and way of reading steps from its codes."""
    frame = tidy.compared(found["results"])
    table = Table(
        "chains",
        "Succession: arrows of the world found from codes, by how a step is read (the system's "
        "name stands before it). {seeds}",
        [Column(name) for name in DETECTION],
        first="Read from",
    )

    def entries(here: pd.DataFrame):
        for key, name, rows in by_system(here[~here["system"].map(is_null)]):
            for group, word in READ.items():
                mine = rows[rows["group"] == group].assign(group="all")
                yield f"{key}|{group}", f"{name}: {word}", mine

    return table.latex(frame, entries, smoke)


@register("table_trackers", "tracker_ap", figure=False)
def trackers(found: Found, smoke: bool) -> str:
    """What C alone tells of the true arrows, a row a setting of the tracker."""
    heads = {"tracker_ap": "AP by C", "tracker_lag_accuracy": "lag right", "tracker_firm_recall": "firm recall",
             "tracker_firm_precision": "firm precision",
             "tracker_ap_chance": "chance", "tracker_recall": "recall", "tracker_mib": "MiB"}  # fmt: skip
    table = Table(
        "trackers",
        "Arrows ranked by the tracker alone, one setting changed at a time; all read the same "
        "codes. Norm: nothing is learned; rates: no $C$ at all. {seeds}",
        [Column(name, head=head) for name, head in heads.items()],
        first="Tracker",
    )
    frame = tidy.compared(found["results"])
    return table.latex(frame, by_group("tracker_ap"), smoke)
