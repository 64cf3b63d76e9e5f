"""Forgetting against keeping, for all strategies; and how often a detector is wrong."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError

ORDER = ("clamp", "adaptive", "hold", "probe", "chain", "hierarchical", "leaves")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
NAMES = {"hold": "adaptive, held", "probe": "adaptive, logistic, held"}


def look(strategy: str) -> dict:
    """Colour and marker of a strategy; a random control is its parent's, hollow."""
    control = strategy.endswith("random")
    parent = strategy.removesuffix("-random") if strategy != "random" else "clamp"
    place = ORDER.index(parent) if parent in ORDER else len(ORDER) - 1
    colour = COLOURS[place]
    return {
        "color": colour,
        "marker": style.MARKERS[place],
        "markerfacecolor": "white" if control else colour,
        "linestyle": "none",
        "ms": 4,
    }


def title(strategy: str) -> str:
    """The strategy's name in a legend."""
    parent = strategy.removesuffix("-random")
    name = NAMES.get(parent, parent)
    return name if parent == strategy else f"{name}, random latents"


def ordered(strategies) -> list[str]:
    """Strategies in the fixed order, controls after their parents."""

    def key(name: str) -> tuple:
        parent = name.removesuffix("-random") if name != "random" else "clamp"
        return (ORDER.index(parent) if parent in ORDER else len(ORDER), name != parent, name)

    return sorted(set(strategies), key=key)


def front(points: pd.DataFrame, kept: str) -> pd.DataFrame:
    """The points that no other beats in both forget (lower) and ``kept`` (higher), by forget."""
    points = points.sort_values(["forget", kept], ascending=[True, False], kind="stable")
    return points[points[kept] > points[kept].cummax().shift(fill_value=-1.0)]


@style.styled
def pareto(results: pd.DataFrame) -> Figure:
    """Retained against forget accuracy, a point a setting; lines: each strategy's Pareto front.

    A row a world and system; panels: near and far retain set. Shaded: the project's bar (forget at
    most .35; near at least .95, far at least .99). Needs ``unlearn_{forget,near,far}_accuracy``
    with groups ``strategy|t=…|n=…|m=…``.
    """
    table = tidy.unlearning(results)
    of_world = table.groupby("world")["system"].unique()
    cases = [(w, s) for w in tidy.ordered(of_world.index) for s in tidy.ordered(of_world[w])]
    strategies = ordered(table["strategy"])
    figure, axes = style.panels(
        len(cases), 2, style.PAGE, 0.7 + 1.7 * len(cases), sharex=True, sharey=True
    )
    for row, (world, system) in zip(axes, cases, strict=True):
        here = table[(table["world"] == world) & (table["system"] == system)]
        for panel, (kept, bar) in zip(row, (("near", 0.95), ("far", 0.99)), strict=True):
            panel.fill_between([-0.05, 0.35], bar, 1.05, color="#009E73", alpha=0.15, linewidth=0)
            for strategy in strategies:
                mine = here[here["strategy"] == strategy]
                chosen = look(strategy)
                panel.plot(mine["forget"], mine[kept], alpha=0.8, **chosen)
                best = front(mine, kept)
                panel.plot(best["forget"], best[kept], color=chosen["color"], linewidth=0.8,
                           linestyle=":" if strategy.endswith("random") else "-")  # fmt: skip
            panel.set(
                xlim=(-0.03, 1.05),
                ylim=(min(0.5, table[["near", "far"]].min(axis=None)) - 0.03, 1.05),
            )
        where = f"{tidy.display(system)}, {tidy.WORLDS.get(world, world)}"
        row[0].set_ylabel(f"{where}\nretained accuracy")
    for column, kept in enumerate(("near", "far")):
        axes[0][column].set_title(f"{kept} retain set")
        axes[-1][column].set_xlabel("forget accuracy")
    handles = [Line2D([], [], label=title(name), **look(name)) for name in strategies]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@style.styled
def attacks(results: pd.DataFrame) -> Figure:
    """Forget accuracy of each strategy's best setting under each attack, beside the plain one.

    A panel a world and system; dashed: chance among four choices. Needs
    ``unlearn_attack_forget_accuracy``, groups ``setting|attack=…``.
    """
    frame = tidy.main(tidy.prepare(results))
    rows = frame[frame["metric"] == "unlearn_attack_forget_accuracy"].copy()
    if rows.empty:
        raise UserError("The results hold no attacks: name them in the unlearning options.")
    parts = rows["group"].str.rsplit("|attack=", n=1)
    rows["setting"], rows["attack"] = parts.str[0], parts.str[1]
    run = ["world", "system", "seed", "setting"]
    plain = frame[frame["metric"] == "unlearn_forget_accuracy"]
    plain = plain.assign(setting=plain["group"], attack="none")
    plain = plain.merge(rows[run].drop_duplicates(), on=run)  # the settings that were attacked
    rows = pd.concat([plain, rows])
    rows["strategy"] = rows["setting"].str.split("|").str[0]
    names = ["none", *sorted(set(rows["attack"]) - {"none"})]
    shown = rows.groupby("world")["system"].unique()
    cases = [(w, s) for w in tidy.ordered(shown.index) for s in tidy.ordered(shown[w])]
    strategies = ordered(rows["strategy"])
    figure, axes = style.panels(
        1, len(cases), style.COLUMN if len(cases) == 1 else style.PAGE, 2.3, sharey=True
    )
    for panel, (world, system) in zip(axes[0], cases, strict=True):
        here = rows[(rows["world"] == world) & (rows["system"] == system)]
        mine = ordered(here["strategy"])
        for i, strategy in enumerate(mine):
            values = here[here["strategy"] == strategy].groupby("attack")["value"].mean()
            shift = 0.6 * (i - (len(mine) - 1) / 2) / max(1, len(mine))
            at = [names.index(name) + shift for name in values.index]
            panel.plot(at, values, **look(strategy))
        panel.axhline(0.25, color="black", linewidth=0.7, linestyle="--")
        panel.set(title=f"{tidy.WORLDS.get(world, world)}, {tidy.display(system)}")
        panel.set(xticks=range(len(names)), ylim=(-0.03, 1.05))
        panel.set_xticklabels(["plain", *names[1:]])
    axes[0][0].set_ylabel("forget accuracy")
    handles = [Line2D([], [], label=title(name), **look(name)) for name in strategies]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(cases) == 1 else 3)
    return figure


@style.styled
def calibration(results: pd.DataFrame) -> Figure:
    """The false-positive rate on held-out retained text against the rate that was asked for.

    Needs ``unlearn_held_out_false_positive`` with groups ``strategy|fpr=…``.
    """
    frame = tidy.main(tidy.prepare(results))
    rows = frame[frame["metric"] == "unlearn_held_out_false_positive"].copy()
    if rows.empty:
        raise UserError("The results hold no 'unlearn_held_out_false_positive' rows.")
    parts = rows["group"].str.split(r"\|fpr=", regex=True)
    rows["strategy"], rows["asked"] = parts.str[0], parts.str[1].astype(float)
    figure, ((axes,),) = style.panels(1, 1, style.COLUMN, 2.2)
    for strategy in ordered(rows["strategy"]):
        mine = rows[rows["strategy"] == strategy].groupby("asked")["value"].mean()
        axes.plot(
            mine.index, mine.clip(lower=1e-4), label=title(strategy),
            **{**look(strategy), "linestyle": "-"},
        )  # fmt: skip
    ends = [rows["asked"].min(), rows["asked"].max()]
    axes.plot(ends, ends, color="black", linewidth=0.7, linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel="asked false-positive rate")
    axes.set_ylabel("on held-out retained text")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, Figure]:
    """Every figure of this file that the tables allow."""
    results = found.get("results")
    if results is None or results.empty:
        return {}
    out, metrics = {}, set(results["metric"])
    if "unlearn_forget_accuracy" in metrics:
        out["strategies"] = pareto(results, smoke=smoke)
    if "unlearn_attack_forget_accuracy" in metrics:
        out["attacks"] = attacks(results, smoke=smoke)
    if "unlearn_held_out_false_positive" in metrics:
        out["false_positives"] = calibration(results, smoke=smoke)
    return out
