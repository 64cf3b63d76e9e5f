"""Chains in time: the graph of dependencies, a chain firing over a text, the adaptive score."""

from collections.abc import Mapping
from typing import Any

import igraph
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError

RIGHT, WRONG = "#0072B2", "#999999"


def first(table: pd.DataFrame, what: str) -> tuple[pd.DataFrame, str]:
    """The rows of one run, the first of the first world, and a title that names it."""
    if table.empty:
        raise UserError(f"The {what} table is empty: run the evaluate stage with its family.")
    keys = ["world", "variant", "act", "seed", "ablation"]
    keys = [key for key in keys if key in table.columns]
    head = table.sort_values(keys, kind="stable").iloc[0]
    for key in keys:
        table = table[table[key] == head[key]]
    return table, f"{tidy.WORLDS.get(head['world'], head['world'])}, {head['variant']}"


@style.styled
def graph(edges: pd.DataFrame, n_edges: int = 32) -> Figure:
    """The strongest direct dependencies, a node a step, an arrow an edge with its lag in tokens.

    Blue arrows: true ones of the world; grey, dashed: others. Width: transfer entropy. Layers
    follow the arrows (Sugiyama's layout). Needs the table ``edges`` of the family ``dependencies``,
    group ``joint``.
    """
    rows, name = first(edges[edges["group"] == "joint"], "edges")
    rows = rows[rows["direct"]].sort_values("te", ascending=False, kind="stable")
    rows = rows.drop_duplicates(["source_name", "target_name"]).head(n_edges)
    names = list(dict.fromkeys([*rows["source_name"], *rows["target_name"]]))
    number = {step: i for i, step in enumerate(names)}
    pairs = [
        (number[a], number[b])
        for a, b in zip(rows["source_name"], rows["target_name"], strict=True)
    ]
    whole = igraph.Graph(len(names), pairs, directed=True)
    place: dict[int, tuple[float, float]] = {}
    left = 0.0
    for part in sorted(whole.connected_components("weak"), key=len, reverse=True):
        layout = whole.induced_subgraph(part).layout_sugiyama(maxiter=200)
        xs = [x for x, _ in layout.coords[: len(part)]]
        for node, (x, y) in zip(part, layout.coords, strict=False):
            place[node] = (left + x - min(xs), -y)
        left += max(xs) - min(xs) + 1.0
    figure, ((axes,),) = style.panels(1, 1, style.PAGE, 3.6)
    for row, (a, b) in zip(rows.itertuples(), pairs, strict=True):
        width = 0.6 + 2.0 * row.te / rows["te"].max()
        bend = 0.0 if abs(place[a][1] - place[b][1]) <= 1 else 0.12  # around the layers between
        axes.add_patch(
            FancyArrowPatch(
                place[a], place[b], arrowstyle="-|>", mutation_scale=8, shrinkA=9, shrinkB=9,
                connectionstyle=f"arc3,rad={bend}", linewidth=width,
                color=RIGHT if row.true else WRONG, linestyle="-" if row.true else "--",
            )
        )  # fmt: skip
        middle = [(p + q) / 2 for p, q in zip(place[a], place[b], strict=True)]
        axes.text(*middle, f"{row.lag}", fontsize=5.5, ha="center", va="center",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4})  # fmt: skip
    for node, (x, y) in place.items():
        axes.text(x, y, names[node], fontsize=6.5, ha="center", va="center",
                  bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "linewidth": 0.6})  # fmt: skip
    across, up = zip(*place.values(), strict=True)
    axes.set(xlim=(min(across) - 0.6, max(across) + 0.6), ylim=(min(up) - 0.5, max(up) + 0.5))
    axes.axis("off")
    axes.set_title(
        f"Strongest dependencies between steps ({name}); number: lag in tokens, width: "
        "transfer entropy"
    )
    lines: dict[str, Any] = {
        "true arrow": {"color": RIGHT, "linestyle": "-"},
        "not in the world's graph": {"color": WRONG, "linestyle": "--"},
    }
    style.legend(figure, [], lines=lines)
    return figure


@style.styled
def firing(table: pd.DataFrame) -> Figure:
    """One chain over one text: a column a token, a row a member, dark where the member begins.

    Needs the table ``firing`` of the family ``dependencies``.
    """
    rows, name = first(table, "firing")
    grid = rows.pivot_table("on", "place", "position", "max").astype(float)
    members = rows.drop_duplicates("place").sort_values("place")["member"]
    tokens = rows.drop_duplicates("position").sort_values("position")["token"]
    height = 0.9 + 0.2 * len(members)
    figure, ((axes,),) = style.panels(1, 1, style.PAGE, height)
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=1.2, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=5.5)
    axes.set_yticks(range(len(members)), members)
    axes.grid(False)
    axes.set(
        title=f"A chain over a text, dark where a member begins ({name})",
        xlabel="token", ylabel="member",
    )  # fmt: skip
    return figure


@style.styled
def score(table: pd.DataFrame) -> Figure:
    """The detector's running score over two texts, with its threshold.

    Shaded: text of the subject that is to be forgotten. Needs the table ``score`` of the family
    ``traces``.
    """
    rows, name = first(table, "score")
    sequences = list(dict.fromkeys(rows["sequence"]))
    figure, axes = style.panels(len(sequences), 1, style.PAGE, 0.4 + 1.25 * len(sequences))
    for (panel,), sequence in zip(axes, sequences, strict=True):
        mine = rows[rows["sequence"] == sequence]
        at = mine["position"].to_numpy()
        panel.fill_between(
            at, 0, 1, where=mine["forget"], transform=panel.get_xaxis_transform(),
            color="#E69F00", alpha=0.25, step="mid", label="forget text",
        )  # fmt: skip
        panel.plot(at, mine["score"], color=RIGHT, linewidth=1.0, label="running score")
        limit = float(mine["threshold"].iloc[0])
        panel.axhline(limit, color="black", linestyle="--", linewidth=0.8, label="threshold")
        panel.set(ylabel="score", xlim=(at.min(), at.max()))
    axes[0, 0].set_title(f"The detector over two held-out texts ({name})")
    axes[-1, 0].set_xlabel("token")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, Figure]:
    """Every figure of this file that the tables allow."""
    out = {}
    edges = found.get("edges")
    if edges is not None and len(edges) and (edges["group"] == "joint").any():
        out["chain_graph"] = graph(edges, smoke=smoke)
    for name, draw in (("firing", firing), ("score", score)):
        table = found.get(name)
        if table is not None and len(table):
            out[f"chain_{name}"] = draw(table, smoke=smoke)
    return out
