"""Unlearning by clamping: what is forgotten against what is kept."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.paper.figures import style
from lab.results import tidy


@style.styled
def unlearning(results: pd.DataFrame) -> Figure:
    """Retained against forget accuracy, one point a setting; up and to the left is better.

    Panels: near retain set (same words, benign) and far retain set (other subjects), a row a
    world. Filled: ``clamp`` on latents chosen by forget/retain sparsity; hollow: other strategies
    (``random``: as many random latents). Dashed: the 0.99 that the score asks of retained
    accuracy. Needs ``unlearn_forget_accuracy``, ``unlearn_near_accuracy`` and
    ``unlearn_far_accuracy`` with groups ``strategy|n=…|m=…``.
    """
    table = tidy.unlearning(results)
    worlds, systems = tidy.ordered(table["world"]), tidy.ordered(table["system"])
    strategies = sorted(table["strategy"].unique(), key=lambda name: (name != "clamp", name))
    figure, axes = style.panels(
        len(worlds), 2, style.COLUMN, 0.6 + 1.6 * len(worlds), sharex=True, sharey=True
    )
    for row, world in zip(axes, worlds, strict=True):
        for panel, kept in zip(row, ("near", "far"), strict=True):
            panel.axhline(0.99, color="black", linewidth=0.7, linestyle="--")
            for system in systems:
                for strategy in strategies:
                    mine = table[(table["world"] == world) & (table["system"] == system)]
                    mine = mine[mine["strategy"] == strategy]
                    panel.plot(mine["forget"], mine[kept], **look(system, strategy))
            panel.set(title=f"{kept} retain set", xlabel="forget accuracy")
            panel.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.05))
        row[0].set_ylabel(f"retained accuracy\n({tidy.WORLDS.get(world, world)})")
    handles = [
        Line2D([], [], label=f"{tidy.display(system)}, {strategy}", **look(system, strategy))
        for system in systems
        for strategy in strategies
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def look(system: str, strategy: str) -> dict:
    """A system's colour and marker, hollow for every strategy but ``clamp``."""
    chosen = {**style.look(system), "linestyle": "none", "ms": 4, "alpha": 0.9}
    return chosen if strategy == "clamp" else {**chosen, "markerfacecolor": "none"}
