"""All systems on all main metrics at a glance, and the gain against how temporal the text is."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tsae.errors import UserError
from tsae.figures import style
from tsae.tables import tidy

# metric, group, name in print, and whether more is better.
METRICS = (
    ("fve", "all", "FVE", True),
    ("ce_score", "all", "CE score", True),
    ("recovery_f1_excess", "document", "document F1*", True),
    ("recovery_f1_excess", "section", "section F1*", True),
    ("recovery_f1_excess", "token", "token F1*", True),
    ("probe_sparse", "document|k=1", "probe, document", True),
    ("probe_sparse", "section|k=1", "probe, section", True),
    ("probe_sparse", "token|k=1", "probe, token", True),
    ("smoothness", "all", "smoothness", False),
    ("boundary_f1", "all", "boundaries", True),
    ("scr", "n=10", "SCR", True),
    ("tpp", "n=10", "TPP", True),
    ("absorption_fraction", "all", "absorption", False),
    ("detection", "all", "detection", True),
)
GAINS = {
    "fve": "FVE",
    "document F1 excess": "document F1*",
    "section F1 excess": "section F1*",
    "token F1 excess": "token F1*",
}


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, Figure]:
    """Every figure of this file that the tables allow."""
    figures = {}
    if found["results"]["metric"].eq("probe_sparse").any():
        figures["arena"] = arena(found["results"], smoke=smoke)
    if len(found.get("structure", ())):
        figures["structure"] = structure(found["structure"], smoke=smoke)
    return figures


def ranks(frame: pd.DataFrame) -> pd.DataFrame:
    """world, system, metric (print name), rank (1 is best, ties share the mean), share in [0, 1].

    Means over seeds are ranked among all systems of a world, nulls included; share is 1 for the
    best and 0 for the last. A metric that fewer than two systems have is left out.
    """
    tables = []
    for metric, group, name, more in METRICS:
        rows = frame[(frame["metric"] == metric) & (frame["group"] == group)]
        means = rows.groupby(["world", "system"])["value"].mean().dropna().reset_index()
        grouped = means.groupby("world")["value"]
        means["rank"] = grouped.rank(ascending=not more)
        means["share"] = 1 - (means["rank"] - 1) / (grouped.transform("size") - 1).clip(lower=1)
        tables.append(means[grouped.transform("size") > 1].assign(metric=name))
    return pd.concat(tables, ignore_index=True)[["world", "system", "metric", "rank", "share"]]


@style.styled
def arena(results: pd.DataFrame) -> Figure:
    """Ranks of all systems on the main metrics, a panel a world.

    A dot a (system, metric), the number its rank: darker is better. Squares: nulls, ranked among
    all the others and listed below the line. Learned systems from the best mean rank down.
    † L0 not within 2% of TopK's. Needs ``l0`` and at least two of the metrics.
    """
    frame = tidy.main(tidy.prepare(results))
    matched, table = tidy.matched_l0(frame), ranks(frame)
    if table.empty:
        raise UserError("The results hold none of the arena's metrics for two systems: evaluate.")
    worlds = tidy.ordered(table["world"])
    order = {}
    for world in worlds:
        mean = table[table["world"] == world].groupby("system")["rank"].mean()
        order[world] = sorted(mean.index, key=lambda s: (tidy.is_null(s), mean[s], s))
    names = [name for *_, name, _ in METRICS if name in set(table["metric"])]
    most = max(map(len, order.values()))
    figure, axes = style.panels(1, len(worlds), style.PAGE, 1.15 + 0.165 * most)
    for panel, world in zip(axes[0], worlds, strict=True):
        systems = order[world]
        here = table[table["world"] == world]
        x = here["metric"].map(names.index)
        y = here["system"].map(systems.index)
        null = here["system"].map(tidy.is_null)
        for marker, chosen in (("o", ~null), ("s", null)):
            panel.scatter(
                x[chosen], y[chosen], s=62, c=here["share"][chosen], marker=marker,
                cmap="Blues", vmin=-0.1, vmax=1.1, edgecolor="black", linewidth=0.4,
            )  # fmt: skip
        for at, height, rank, share in zip(x, y, here["rank"], here["share"], strict=True):
            colour = "white" if share > 0.55 else "black"
            panel.text(
                at,
                height,
                f"{rank:.0f}",
                ha="center",
                va="center_baseline",
                fontsize=5,
                color=colour,
            )
        learned = sum(not tidy.is_null(system) for system in systems)
        if learned < len(systems):
            panel.axhline(learned - 0.5, color="black", linewidth=0.6)
        labels = [tidy.display(s) + ("" if matched[world, s] else "†") for s in systems]
        panel.set_yticks(range(len(systems)), labels)
        panel.set_xticks(range(len(names)), names, rotation=50, ha="right", rotation_mode="anchor")
        panel.set_ylim(len(systems) - 0.4, -0.6)
        panel.set_xlim(-0.6, len(names) - 0.4)
        panel.grid(False)
        style.title(panel, world)
    blue = {"linestyle": "none", "markerfacecolor": "#6BAED6", "markeredgecolor": "black"}
    handles = [
        Line2D([], [], marker="o", label="learned (number: rank)", **blue),
        Line2D([], [], marker="s", label="null", **blue),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@style.styled
def structure(gains: pd.DataFrame) -> Figure:
    """Gain over a static baseline against the share of tokens that keep their place.

    A panel a metric; bars: 95% bootstrap intervals over documents; filled: against the baseline,
    hollow and dotted: against the variant's own shuffled null. F1* is F1 beyond its
    frequency-matched null. At 0 tokens are i.i.d. draws and order can give nothing. Needs
    temporal, variant, baseline, metric, diff, lo, hi.
    """
    metrics = [name for name in GAINS if name in set(gains["metric"])]
    if not metrics:
        raise UserError("The structure table holds no gains: run the structure sweep first.")
    figure, axes = style.panels(1, len(metrics), style.PAGE, 1.95, sharex=True)
    cases = list(dict.fromkeys(zip(gains["variant"], gains["baseline"], strict=True)))
    step = 0.012
    for panel, metric in zip(axes[0], metrics, strict=True):
        panel.axhline(0, color="black", linewidth=0.6)
        for place, (variant, baseline) in enumerate(cases):
            mine = gains[(gains["variant"] == variant) & (gains["baseline"] == baseline)]
            mine = mine[mine["metric"] == metric].sort_values("temporal")
            shown = style.look(baseline if tidy.is_null(baseline) else variant)
            ends = np.abs(mine[["lo", "hi"]].to_numpy().T - mine["diff"].to_numpy())
            at = mine["temporal"] + step * (place - (len(cases) - 1) / 2)
            panel.errorbar(at, mine["diff"], ends, **shown, ms=3.5, elinewidth=0.8, capsize=1.5)
        panel.set_title(f"gain in {GAINS[metric]}")
        panel.set_xlabel("share of tokens in place")
        panel.locator_params(axis="y", nbins=6)
    handles = [
        Line2D(
            [], [], label=f"{tidy.display(v)} − {tidy.display(b)}",
            **style.look(b if tidy.is_null(b) else v),
        )
        for v, b in cases
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure
