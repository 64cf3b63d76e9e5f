"""System B: the graph of dependencies, arrows found against rates and norms, a chain firing."""

from collections.abc import Iterable

import igraph
import pandas as pd
from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.register import Found, register, tables
from lab.paper.tables import Column, Entry, Table, by_group, by_system, columns
from lab.results import tidy
from lab.results.systems import display
from tsae.errors import UserError

RIGHT = {"color": "#0072B2", "linestyle": "-"}
WRONG = {"color": "#999999", "linestyle": "--"}
READ = {"labels": "true labels", "single": "one latent", "joint": "conjunctions"}
WAYS = READ | {"base": "tracker, learned", "learning=norm": "tracker, norms alone",
               "learning=rates": "rates alone", "own": "Causal's own tracker"}  # fmt: skip


@register("chain_graph")
def chain_graph(found: Found, n_edges: int = 32) -> Figure:
    """The strongest direct dependencies, a node a step, an arrow an edge with its lag in tokens.

    Blue arrows: true ones of the world; grey, dashed: others. Width: transfer entropy. Layers
    follow the arrows (Sugiyama's layout). Of the first run with group ``joint``.
    """
    rows = found["edges"][found["edges"]["group"] == "joint"]
    if rows.empty:
        raise UserError("The edges hold none of conjunctions: run the family dependencies.")
    for key in ("world", "variant", "act", "seed", "ablation"):
        rows = rows[rows[key] == rows[key].min()]
    world, variant = rows[["world", "variant"]].iloc[0]
    rows = rows[rows["direct"]].sort_values("te", ascending=False, kind="stable")
    rows = rows.drop_duplicates(["source_name", "target_name"]).head(n_edges)
    names = list(dict.fromkeys([*rows["source_name"], *rows["target_name"]]))
    pairs = [(names.index(a), names.index(b))
             for a, b in zip(rows["source_name"], rows["target_name"], strict=True)]  # fmt: skip
    whole = igraph.Graph(len(names), pairs, directed=True)
    places: dict[int, tuple[float, float]] = {}
    left = 0.0
    for part in sorted(whole.connected_components("weak"), key=len, reverse=True):
        layout = whole.induced_subgraph(part).layout_sugiyama(maxiter=200)
        xs = [x for x, _ in layout.coords[: len(part)]]
        for node, (x, y) in zip(part, layout.coords, strict=False):
            places[node] = (left + x - min(xs), -y)
        left += max(xs) - min(xs) + 1.0
    across, up = zip(*places.values(), strict=True)
    figure, ((panel,),) = style.panels(1, 1, style.PAGE, 0.7 + 0.5 * (max(up) - min(up)))
    edges = []
    for row, (a, b) in zip(rows.itertuples(), pairs, strict=True):
        bend = 0.0 if abs(places[a][1] - places[b][1]) <= 1 else 0.12  # around layers between
        look = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 9, "shrinkB": 9, "label": row.lag,
                "linewidth": 0.6 + 2.0 * row.te / rows["te"].max(),
                "connectionstyle": f"arc3,rad={bend}", **(RIGHT if row.true else WRONG)}  # fmt: skip
        edges.append((a, b, look))
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "linewidth": 0.6}
    plots.graph(panel, places, {n: {"s": names[n], "bbox": box} for n in places}, edges)
    panel.set(xlim=(min(across) - 0.6, max(across) + 0.6), ylim=(min(up) - 0.4, max(up) + 0.4))
    style.title(panel, world, f"{display(variant)}; on an arrow its lag in tokens")
    style.legend(figure, {"true arrow": RIGHT, "not in the world's graph": WRONG}, 2)
    return figure


@register("edges")
def edges(found: Found) -> Figure:
    """Average precision of the world's arrows, by how steps are read from codes; of the tracker
    alone, beside what norms and rates give without its learning. The tick is chance."""
    frame = tidy.compared(found["results"])
    frame = frame[frame["how"].eq(tidy.OWN) & frame["group"].isin(WAYS)]
    frame = frame.assign(metric=frame["metric"].str.replace("tracker_ap", "chain_ap"), group="all",
                         line=frame["group"].map(WAYS))  # fmt: skip
    rows = frame[frame["metric"].isin(["chain_ap", "chain_ap_chance"])]
    names = [word for word in WAYS.values() if word in set(rows["line"])]
    looks = {name: style.setting(0) for name in names}
    blocks = [plots.Block(world, "", here, looks) for world, here in rows.groupby("world")]
    return plots.dots(blocks, [Column("chain_ap", head="AP of the world's arrows",
                                      tick="chain_ap_chance")])  # fmt: skip


def by_reading(frame: pd.DataFrame) -> Iterable[Entry]:
    """A row a system and way of reading steps from its codes."""
    for key, name, rows in by_system(frame[frame["how"] == tidy.OWN]):
        for group, word in READ.items():
            mine = rows[rows["group"] == group].assign(group="all")
            yield f"{key}|{group}", f"{name}: {word}", mine


tables(
    Table(
        "chains",
        "Succession: arrows of the world found from codes, by how a step is read (the system's "
        "name stands before it). {seeds}",
        columns("chain_ap", ("chain_ap_chance", "all", "by chance"), "chain_precision",
                "chain_recall", "chain_lag_accuracy"),
        by_reading, first="Read from",
    ),
    Table(
        "trackers",
        "Arrows ranked by the tracker alone, one setting changed at a time; all read the same "
        "codes. Norm: nothing is learned; rates: no $C$ at all. {seeds}",
        columns(("tracker_ap", "all", "AP by C"), ("tracker_lag_accuracy", "all", "lag right"),
                ("tracker_ap_chance", "all", "chance"), ("tracker_recall", "all", "recall"),
                ("tracker_mib", "all", "MiB")),
        by_group("tracker_ap"), first="Tracker",
    ),
)  # fmt: skip
