"""Unlearning: what each gate keeps and forgets with each edit, under attack, and at what price."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.register import Found, register, tables
from lab.paper.tables import Column, Entry, Table, columns
from lab.results import tidy
from lab.results.metrics import RETAINED
from lab.results.systems import display, ordered
from tsae.errors import UserError

CHANCE = 0.25
"""Accuracy among four choices of a model that knows nothing."""
GATES = {"always": "no gate", "share": "share of tokens", "window": "window", "ema": "EMA",
         "cusum": "CUSUM", "token": "token"}  # fmt: skip
EVIDENCE = {"codes": "of chosen latents", "logistic": "of all codes", "residual": "of the residual",
            "random": "of random latents", "chain": "of chains"}  # fmt: skip
ATTACKED = "unlearn_attack_forget_accuracy"


def gate_name(gate: str) -> str:
    """``cusum-residual`` in words."""
    score, _, kind = gate.partition("-")
    return " ".join(filter(None, (GATES.get(score, score), EVIDENCE.get(kind, kind))))


def split(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with the ``gate`` (in words; ``no gate`` first) and ``edit`` of their strategy
    ``gate/edit``."""
    parts = frame["strategy"].str.rpartition("/")
    frame = frame.assign(gate=parts[0].replace("", "always").map(gate_name), edit=parts[2])
    return frame.sort_values("gate", key=lambda g: g.where(g != "no gate", ""), kind="stable")


def gate_looks(frame: pd.DataFrame) -> dict[str, dict]:
    """What each gate looks like, by its name."""
    return {gate: style.setting(place) for place, gate in enumerate(frame["gate"].unique())}


def front(points: pd.DataFrame) -> pd.DataFrame:
    """The points that no other beats in both forget (lower) and retained (higher), by forget."""
    points = points.sort_values(["forget", "retained"], ascending=[True, False], kind="stable")
    return points[points["retained"] > points["retained"].cummax().shift(fill_value=-1.0)]


@register("unlearning")
def unlearning(found: Found) -> Figure:
    """Retained against forget accuracy, a panel a world and system, a colour a gate.

    A point a setting, mean over seeds; retained: the lesser of near and far accuracy; a line is a
    gate's frontier over all its edits, hollow points are random edits behind it. Left and up is
    better; shaded: what the bar asks, .99 and .95 of both.
    """
    table = split(tidy.unlearning(found["results"]))
    looks = gate_looks(table)
    worlds = ordered(table["world"])
    cases = [(w, s) for w in worlds for s in ordered(table.loc[table["world"] == w, "system"])]
    figure, axes = style.panels(len(cases), 1, style.COLUMN, 0.9 + 1.7 * len(cases), sharex=True)
    for panel, (world, system) in zip(axes.flat, cases, strict=True):
        here = table[(table["world"] == world) & (table["system"] == system)]
        for bar in RETAINED:
            panel.axhspan(bar, 1.05, color="#009E73", alpha=0.12, linewidth=0)
        for gate, look in looks.items():
            draw_gate(panel, here[here["gate"] == gate], look)
        panel.set(xlim=(-0.03, 1.05), ylim=(max(table["retained"].min(), 0.3) - 0.03, 1.02))
        panel.set_ylabel("retained accuracy")
        style.title(panel, world, display(system))
    axes[-1, 0].set_xlabel("forget accuracy (lower: better)")
    random = {"marker": "o", "mfc": "white", "mec": "0.3", "ls": "none"}
    style.legend(figure, looks | {"random edit behind it": random}, 2)
    return figure


def draw_gate(panel: Axes, points: pd.DataFrame, look: dict) -> None:
    """One gate's settings and the frontier over those that are not random."""
    random = points["edit"].str.contains("random")
    for mine, fill in ((points[random], "white"), (points[~random], look["color"])):
        dot = {"linestyle": "none", "ms": 3, "alpha": 0.7, "markerfacecolor": fill}
        panel.plot(mine["forget"], mine["retained"], **{**look, **dot})
    best = front(points[~random])
    panel.plot(best["forget"], best["retained"], **{**look, "marker": "", "lw": 0.9})


@register("dilution")
def dilution(found: Found) -> Figure:
    """Forget accuracy against benign tokens before the question, a panel a world and system.

    A line a gate, of its edit that forgets most undiluted (mean over seeds); dashed: chance.
    """
    frame = tidy.compared(found["results"])
    rows = frame[(frame["metric"] == ATTACKED) & frame["group"].str.contains("attack=dilution")]
    if rows.empty:
        raise UserError("The results hold no attack by dilution: ask for it in the profile.")
    padding = rows["group"].str.extract(r"padding=(\d+)")[0].astype(float).fillna(25)
    rows = rows.assign(padding=padding, strategy=rows["group"].str.split("|").str[0])
    rows = split(rows)[lambda f: ~f["edit"].str.contains("random")]
    start = rows[rows["padding"] == rows["padding"].min()]
    keys = ["world", "system", "gate", "strategy"]
    best = start.groupby(keys)["value"].mean().groupby(keys[:3]).idxmin()
    rows = rows[rows.set_index(keys).index.isin(list(best))]
    labels = ("benign tokens in front", "forget accuracy")
    looks = gate_looks(rows)
    figure = plots.lines(rows.assign(head=rows["system"].map(display)), "padding", labels, "head",
                         "gate", looks)  # fmt: skip
    for panel in figure.axes:
        panel.axhline(CHANCE, color="black", linewidth=0.7, linestyle="--")
        panel.set_ylim(-0.03, 1.05)
    return figure


def attacks(frame: pd.DataFrame) -> list[Column]:
    """What is chosen at both bars, then a column an attack."""
    shown = columns(
        *((f"unlearn_chosen_{side}_accuracy{end}", "all", f"{side}{head}")
          for end, head in (("", ""), ("_95", ", .95")) for side in ("forget", "near", "far"))
    )  # fmt: skip
    names = frame.loc[frame["metric"] == ATTACKED, "group"].str.extract(r"attack=(.+)$")[0]
    for name in sorted(names.dropna().unique(), key=tidy.natural):
        word = "+" + name.rsplit("=", 1)[1] if "padding=" in name else name
        shown.append(Column(ATTACKED, f"attack={name}", word))
    return shown


def by_strategy(frame: pd.DataFrame) -> Iterable[Entry]:
    """A row a system and strategy; an attack's group is what stands behind the strategy."""
    parts = frame["group"].str.partition("|")
    frame = split(frame.assign(strategy=parts[0], group=parts[2].replace("", "all")))
    chosen = frame[frame["metric"] == "unlearn_chosen_forget_accuracy"]
    for system in ordered(chosen["system"]):
        here = frame[frame["system"] == system]
        for strategy in chosen.loc[chosen["system"] == system, "strategy"].unique():
            rows = here[here["strategy"] == strategy]
            gate, edit = rows[["gate", "edit"]].iloc[0]
            yield strategy, f"{display(system)}: {gate}, {edit}", rows


tables(
    Table(
        "unlearning",
        "Unlearning: settings picked on one half of the facts (lowest forget accuracy with near and "
        "far both at least .99, or .95; none: no edit) and judged on the other; then forget accuracy "
        "under each attack. {seeds}",
        attacks, by_strategy, first="Gate, edit",
    )
)  # fmt: skip
