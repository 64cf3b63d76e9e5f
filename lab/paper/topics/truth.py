"""Is a known variable readable from one latent? Per label, with its lines and its readings."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.register import Found, register
from lab.paper.tables import Column, Table, by_system
from lab.results import tidy
from lab.results.metrics import metric
from lab.results.systems import display, is_null, ordered
from tsae.sequences import SCALES

LINES = {"ap_constant": "constant", "ap_chance": "chance", "ap_probe_ema": "ceiling"}
READ = {"": "own code", "ema": "read through EMA", "average": "average, then encode"}


@register("recovery", "ap")
def recovery(found: Found) -> Figure:
    """AP of the best latent, a row a system, a column a label, a panel a reading, a row a world.

    Darker: nearer to the ceiling (a supervised probe on the averaged residual) from the constant
    latent; lines that are no system stand on top. A label's scale is in its name.
    """
    frame = tidy.main(tidy.prepare(found["results"]))
    rows = frame[frame["metric"].isin(["ap", *LINES]) & frame["group"].str.contains(":")]
    rows = rows[~rows["group"].str.contains("=")]
    worlds = ordered(rows["world"])
    kinds = [kind for kind in READ if reading(rows, kind)["metric"].eq("ap").any()]
    counts = [rows.loc[rows["world"] == w, "system"].map(is_null).eq(False) for w in worlds]
    sizes = [rows.loc[c[c].index, "system"].nunique() + 3 for c in counts]
    figure, axes = style.panels(
        len(worlds), len(kinds), style.PAGE, 0.75 * len(worlds) + 0.14 * sum(sizes),
        sharey="row", gridspec_kw={"height_ratios": sizes},
    )  # fmt: skip
    for row, world in zip(axes, worlds, strict=True):
        here = rows[rows["world"] == world]
        labels = by_scale(here["group"])
        lines = {word: level(here, name, labels) for name, word in LINES.items()}
        lines = {word: values for word, values in lines.items() if values.notna().any()}
        systems = [s for s in ordered(here.loc[here["metric"] == "ap", "system"]) if not is_null(s)]
        for panel, kind in zip(row, kinds, strict=True):
            mine = reading(here, kind)
            table = pd.DataFrame({
                **{word: values for word, values in lines.items()},
                **{display(s): level(mine[mine["base"] == s], "ap", labels) for s in systems},
            }).T  # fmt: skip
            matrix(panel, table, lines)
            panel.set_xticks(range(len(labels)), [g.split(":")[1] for g in labels], rotation=40,
                             ha="right", rotation_mode="anchor")  # fmt: skip
            style.title(panel, world, READ[kind])
    return figure


def reading(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Rows of one reading (empty: the own code), with the system that is read as ``base``."""
    match = rows["system"].str.extract(r"^(\w+)\((.+)\)$")
    rows = rows.assign(base=match[1].fillna(rows["system"]))
    return rows[match[0].fillna("") == kind]


def by_scale(groups: pd.Series) -> list[str]:
    """Labels ``scale:name``, slowest scale first."""
    names = sorted(groups.unique())
    return sorted(names, key=lambda g: SCALES.index(g.split(":")[0]) if ":" in g else len(SCALES))


def level(rows: pd.DataFrame, name: str, labels: list[str]) -> pd.Series:
    """The mean over seeds (and systems) of one metric, by label."""
    mine = rows[rows["metric"] == name]
    return mine.groupby("group")["value"].mean().reindex(labels)


def matrix(panel: Axes, table: pd.DataFrame, lines: dict[str, pd.Series]) -> None:
    """Values in cells, shaded from the constant's to the ceiling's of their column."""
    low = lines.get("constant", table.min())
    high = lines.get("ceiling", table.max())
    shade = ((table - low) / (high - low).replace(0, 1)).clip(0, 1)
    panel.imshow(shade, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for y, x in np.ndindex(table.shape):
        value = table.iat[y, x]
        if np.isfinite(value):
            colour = "white" if shade.iat[y, x] > 0.75 else "black"
            panel.text(x, y, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=5.5,
                       color=colour)  # fmt: skip
    panel.set_yticks(range(len(table)), table.index)
    panel.grid(False)
    panel.axhline(len(lines) - 0.5, color="black", linewidth=0.8)


@register("table_recovery", "ap", figure=False)
def recovery_table(found: Found, smoke: bool) -> str:
    """AP, AUROC, tuned F1 by scale, and MCC."""
    names = ("ap", "auroc", "f1", "mcc")
    columns = [Column(n, s, f"{s[0].upper()} {metric(n).head}") for n in names for s in SCALES]
    table = Table(
        "recovery",
        "Recovery of known variables by the value of the best single latent, chosen on validation "
        "documents, averaged over the variables of a time scale (D document, S section, T token). "
        "{seeds} Bold: better than TopK by the paired interval and the smallest effect of interest; "
        "slanted: worse.",
        columns,
        verdicts="topk",
    )
    return table.latex(tidy.compared(found["results"]), by_system, smoke, found.get("differences"))


@register("order", "ap")
def order(found: Found) -> Figure:
    """World order: how well the hidden step v is read from one latent; tick: by a linear probe."""
    frame = tidy.main(tidy.prepare(found["results"]))
    frame = frame[frame["world"] == "order"]
    return plots.bars(frame, [plots.Case("ap", "v", tick="ap_probe"), plots.Case("fve")])


@register("structure", needs=("structure",))
def structure(found: Found) -> Figure:
    """Gain over TopK against the share of tokens that keep their place, a column a metric.

    At 0 tokens are i.i.d. draws and order can give nothing. Needs temporal, variant, baseline,
    metric, diff.
    """
    rows = found["structure"]
    rows = rows[rows["baseline"] == "topk"].rename(columns={"diff": "value", "variant": "system"})
    heads = [
        Column(*pair).title().split(" ↑")[0]
        for pair in zip(rows["metric"], rows["group"], strict=True)
    ]
    rows = rows.assign(world="microworld", head=heads)
    labels = ("share of tokens in place", "gain over TopK")
    return plots.lines(rows, "temporal", labels, column="head", width=style.PAGE, share_y=False)
