"""Is a known variable readable from one latent? Per label, with its levels and its readings."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.register import Found, register, tables
from lab.paper.tables import Column, Table
from lab.results import tidy
from lab.results.metrics import metric
from lab.results.systems import display, ordered
from tsae.errors import UserError
from tsae.sequences import SCALES


@register("recovery")
def recovery(found: Found) -> Figure:
    """AP of the best latent, a row a system, a column a label, a panel a reading, a row a world.

    Darker: nearer to the ceiling (a supervised probe on the averaged residual) from the constant
    latent; levels that are no system's stand on top. Labels: slowest scale first.
    """
    frame = tidy.main(tidy.prepare(found["results"]))
    rows = frame[frame["metric"].isin(["ap", *plots.LEVELS]) & frame["group"].str.contains(":")]
    rows = rows[~rows["group"].str.contains("=") & rows["world"].ne("order")]
    measured = set(rows.loc[rows["metric"] == "ap", "how"])
    readings = [how for how in (tidy.OWN, "ema", "average") if how in measured]
    if not readings:
        raise UserError("The results hold no 'ap' of a label: run the family that measures it.")
    worlds = ordered(rows["world"])
    systems = {w: ordered(rows.loc[rows["world"].eq(w), "of"]) for w in worlds}
    sizes = [len(names) + 3 for names in systems.values()]
    figure, axes = style.panels(
        len(worlds), len(readings), style.PAGE, 0.7 * len(worlds) + 0.125 * sum(sizes),
        sharey="row", gridspec_kw={"height_ratios": sizes},
    )  # fmt: skip
    for row, world in zip(axes, worlds, strict=True):
        here = rows[rows["world"] == world]
        labels = sorted(here["group"].unique(), key=lambda g: (SCALES.index(g.split(":")[0]), g))
        means = here.groupby(["metric", "how", "of", "group"])["value"].mean().unstack("group")
        means = means.reindex(columns=labels)
        levels = {word.split(" ")[0]: means.loc[name].mean()
                  for name, (word, _) in plots.LEVELS.items() if name in means.index}  # fmt: skip
        for panel, how in zip(row, readings, strict=True):
            own = means.loc["ap"].loc[how].reindex(systems[world]).rename(index=display)
            matrix(panel, pd.concat([pd.DataFrame(levels).T, own]), len(levels))
            names = [label.split(":")[1] for label in labels]
            panel.set_xticks(
                range(len(labels)), names, rotation=40, ha="right", rotation_mode="anchor"
            )
            style.title(panel, world, plots.HOW[how][0])
    return figure


def matrix(panel: Axes, table: pd.DataFrame, n_levels: int) -> None:
    """Values in cells, shaded from the first level's to the last level's of their column."""
    low, high = table.iloc[0], table.iloc[n_levels - 1]
    shade = ((table - low) / (high - low).replace(0, 1)).clip(0, 1)
    panel.imshow(shade, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for y, x in np.ndindex(table.shape):
        value = table.iat[y, x]
        if np.isfinite(value):
            colour = "white" if shade.iat[y, x] > 0.75 else "black"
            text = f"{value:.2f}".lstrip("0")
            panel.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    panel.set_yticks(range(len(table)), table.index)
    panel.grid(False)
    panel.axhline(n_levels - 0.5, color="black", linewidth=0.8)


@register("order")
def order(found: Found) -> Figure:
    """World order: how well each label is read from one latent; tick: by a probe on the token. The
    hidden step v stands in no single token and no sum over tokens."""
    frame = tidy.main(tidy.prepare(found["results"]))
    frame = frame[frame["world"] == "order"]
    labels = ("v", "position", "distractor", "topic")
    shown = [Column("ap", label, f"AP of {label}", tick="ap_probe") for label in labels]
    figure = plots.dots(plots.of_systems(frame), shown)
    for panel in figure.axes:
        panel.set_xlim(0, 1.05)
    return figure


@register("structure")
def structure(found: Found) -> Figure:
    """Gain over TopK against the share of tokens that keep their place, a column a metric.

    At 0 tokens are i.i.d. draws and order can give nothing. Needs temporal, variant, baseline,
    metric, diff.
    """
    rows = found["structure"]
    rows = rows[rows["baseline"] == "topk"].rename(columns={"diff": "value", "variant": "system"})
    pairs = zip(rows["metric"], rows["group"], strict=True)
    rows = rows.assign(world="microworld", head=[Column(*p).title().split(" ↑")[0] for p in pairs])
    labels = ("share of tokens in place", "gain over TopK")
    return plots.lines(rows, "temporal", labels, "head", width=style.PAGE, share_y=False)


tables(
    Table(
        "recovery",
        "Recovery of known variables by the value of the best single latent, chosen on validation "
        "documents, averaged over the variables of a time scale (D document, S section, T token). "
        "{seeds} Bold: better than TopK by the paired interval and the smallest effect of interest; "
        "slanted: worse.",
        [Column(name, scale, f"{scale[0].upper()} {metric(name).head}")
         for name in ("ap", "auroc", "f1", "mcc") for scale in SCALES],
        verdicts="topk",
    )
)  # fmt: skip
