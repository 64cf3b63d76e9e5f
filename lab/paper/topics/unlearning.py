"""Unlearning: what each gate keeps and forgets with each edit, under attack, and at what price."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.paper import style
from lab.paper.register import Found, register
from lab.paper.tables import Column, Entry, Table
from lab.results import tidy
from lab.results.metrics import RETAINED
from lab.results.systems import display, ordered

CHANCE = 0.25
"""Accuracy among four choices of a model that knows nothing."""
GATES = {"always": "no gate", "share": "share of tokens", "window": "window", "ema": "EMA",
         "cusum": "CUSUM", "token": "token"}  # fmt: skip
EVIDENCE = {"codes": "of chosen latents", "logistic": "of all codes", "residual": "of the residual",
            "random": "of random latents", "chain": "of chains"}  # fmt: skip


def split(strategies: pd.Series) -> pd.DataFrame:
    """``gate`` and ``edit`` of strategies ``gate/edit``; one without a gate is always open."""
    parts = strategies.str.rpartition("/")
    return pd.DataFrame({"gate": parts[0].replace("", "always"), "edit": parts[2]})


def gate_name(gate: str) -> str:
    """``cusum-residual`` in words."""
    score, _, kind = gate.partition("-")
    return " ".join(filter(None, (GATES.get(score, score), EVIDENCE.get(kind, kind))))


def front(points: pd.DataFrame) -> pd.DataFrame:
    """The points that no other beats in both forget (lower) and retained (higher), by forget."""
    points = points.sort_values(["forget", "retained"], ascending=[True, False], kind="stable")
    return points[points["retained"] > points["retained"].cummax().shift(fill_value=-1.0)]


def cases(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The (world, system) pairs of a table, in the order of print."""
    pairs = table.groupby("world")["system"].unique()
    return [(world, s) for world in ordered(pairs.index) for s in ordered(pairs[world])]


@register("unlearning", "unlearn_forget_accuracy", "unlearn_near_accuracy", "unlearn_far_accuracy")
def unlearning(found: Found) -> Figure:
    """Retained against forget accuracy, a panel a world and system, a colour a gate.

    A point a setting, mean over seeds; retained: the lesser of near and far accuracy; a line is a
    gate's frontier over all its edits, hollow points are random edits behind it. Left and up is
    better; shaded: what the bar asks, .99 and .95 of both.
    """
    table = tidy.unlearning(found["results"])
    table = table.join(split(table["strategy"]))
    gates = list(dict.fromkeys(sorted(table["gate"], key=lambda g: (g != "always", g))))
    shown = cases(table)
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    figure, axes = style.panels(
        down, across, style.PAGE, 0.5 + 2.0 * down, sharex=True, sharey=True
    )
    for panel in axes.flat[len(shown) :]:
        panel.set_axis_off()
    for panel, (world, system) in zip(axes.flat, shown, strict=False):
        here = table[(table["world"] == world) & (table["system"] == system)]
        for bar in RETAINED:
            panel.axhspan(bar, 1.05, color="#009E73", alpha=0.12, linewidth=0)
        for place, gate in enumerate(gates):
            draw_gate(panel, here[here["gate"] == gate], place)
        panel.set(xlim=(-0.03, 1.05), ylim=(max(table["retained"].min(), 0.3) - 0.03, 1.02))
        panel.set_xlabel("forget accuracy (lower: better)")
        style.title(panel, world, display(system))
    for row in axes:
        row[0].set_ylabel("retained accuracy")
    entries = {gate_name(gate): {**style.setting(n), "ms": 4} for n, gate in enumerate(gates)}
    entries["random edit behind it"] = {"marker": "o", "mfc": "white", "mec": "0.3", "ls": "none"}
    style.legend(figure, [], 4, entries)
    return figure


def draw_gate(panel: Axes, points: pd.DataFrame, place: int) -> None:
    """One gate's settings and the frontier over those that are not random."""
    random = points["edit"].str.contains("random")
    for mine, hollow in ((points[random], True), (points[~random], False)):
        look = {**style.setting(place, hollow), "linestyle": "none", "ms": 3, "alpha": 0.7}
        panel.plot(mine["forget"], mine["retained"], **look)
    best = front(points[~random])
    look = {**style.setting(place), "marker": "", "lw": 0.9}
    panel.plot(best["forget"], best["retained"], **look)


@register("dilution", "unlearn_attack_forget_accuracy")
def dilution(found: Found) -> Figure:
    """Forget accuracy against benign tokens before the question, a panel a world and system.

    A line a gate, of its edit that forgets most undiluted (mean over seeds); dashed: chance.
    """
    frame = tidy.compared(found["results"])
    rows = frame[frame["metric"] == "unlearn_attack_forget_accuracy"].copy()
    rows = rows[rows["group"].str.contains("attack=dilution")]
    padding = rows["group"].str.extract(r"padding=(\d+)")[0].astype(float)
    strategy = rows["group"].str.split("|").str[0]
    rows = rows.assign(padding=padding.fillna(25), strategy=strategy)
    rows = rows.join(split(rows["strategy"]))
    rows = rows[~rows["edit"].str.contains("random")]
    shown, gates = cases(rows), sorted(rows["gate"].unique(), key=lambda g: (g != "always", g))
    width = style.COLUMN if len(shown) == 1 else style.PAGE
    figure, axes = style.panels(1, len(shown), width, 2.3, sharey=True)
    for panel, (world, system) in zip(axes[0], shown, strict=True):
        here = rows[(rows["world"] == world) & (rows["system"] == system)]
        for place, gate in enumerate(gates):
            table = here[here["gate"] == gate].pivot_table("value", "padding", "strategy", "mean")
            if len(table):
                line = table[table.iloc[0].idxmin()]
                panel.plot(line.index, line, **{**style.setting(place), "ms": 3})
        panel.axhline(CHANCE, color="black", linewidth=0.7, linestyle="--")
        panel.set_ylim(-0.03, 1.05)
        panel.set_xlabel("benign tokens in front")
        style.title(panel, world, display(system))
    axes[0, 0].set_ylabel("forget accuracy")
    looks = {gate_name(gate): {**style.setting(n), "ms": 3} for n, gate in enumerate(gates)}
    style.legend(figure, [], 2 if width == style.COLUMN else 4, looks)
    return figure


@register("table_unlearning", "unlearn_chosen_forget_accuracy", figure=False)
def table(found: Found, smoke: bool) -> str:
    """A row a strategy: settings picked on other facts, the price, and every attack."""
    frame = tidy.compared(found["results"])
    attack = frame["metric"].eq("unlearn_attack_forget_accuracy")
    names = frame.loc[attack, "group"].str.extract(r"attack=(.+)$")[0].dropna().unique()
    columns = [Column(f"unlearn_chosen_{name}_accuracy", head=name) for name in SIDES]
    columns += [Column(f"unlearn_chosen_{name}_accuracy_95", head=f"{name}, .95") for name in SIDES]
    columns += [Column("unlearn_attack_forget_accuracy", f"attack={name}", word(name))
                for name in sorted(names, key=tidy.natural)]  # fmt: skip
    table = Table(
        "unlearning",
        "Unlearning: settings picked on one half of the facts (lowest forget accuracy with near and "
        "far both at least .99, or .95; none: no edit) and judged on the other; then forget accuracy "
        "under each attack. {seeds}",
        columns,
        first="Gate, edit",
    )
    return table.latex(frame, by_strategy, smoke)


SIDES = ("forget", "near", "far")


def word(attack: str) -> str:
    """An attack's head: ``dilution|padding=100`` is ``+100``."""
    return "+" + attack.rsplit("=", 1)[1] if "padding=" in attack else attack


def by_strategy(frame: pd.DataFrame) -> Iterable[Entry]:
    """A row a system and strategy; an attack's group is what stands behind the strategy."""
    chosen = frame[frame["metric"] == "unlearn_chosen_forget_accuracy"]
    for system in ordered(chosen["system"]):
        here = frame[frame["system"] == system]
        own = here["group"].str.split("|").str[0]
        for strategy in sorted(chosen.loc[chosen["system"] == system, "group"].unique()):
            rows = here[own == strategy]
            rest = rows["group"].str.partition("|")[2].replace("", "all")
            parts = split(pd.Series([strategy])).iloc[0]
            name = f"{display(system)}: {gate_name(parts['gate'])}, {parts['edit']}"
            yield strategy, name, rows.assign(group=rest)
