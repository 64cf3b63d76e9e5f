"""How codes move in time: stays, smoothness, switches, stability, and one passage in two codes."""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from lab.measures.time.lifecycle import kaplan_meier
from lab.paper import plots, style
from lab.paper.register import Found, register
from lab.paper.tables import Column, Table, by_system
from lab.results import tidy
from lab.results.systems import display, ordered
from tsae.errors import UserError

BOUNDARIES = {1: ("sentence", ":"), 2: ("section", "--"), 3: ("document", "-")}
TEMPORAL = ("slowfast", "conv", "contrastive")
"""The temporal dictionary that :func:`heatmap` shows: the first of these that there is."""


@register("smoothness", "smoothness")
def smoothness(found: Found) -> Figure:
    """Smoothness, mean stay and switch detection, a row a world; tick: the same on shuffled tokens."""
    frame = tidy.compared(found["results"])
    cases = [
        plots.Case("smoothness", tick="smoothness_null"),
        plots.Case("smoothness_normalised"),
        plots.Case("mean_dwell", label="mean stay (tokens)"),
        plots.Case("switch_auroc"),
    ]
    return plots.bars(frame, cases)


@register("dwell", needs=("dwell",))
def dwell(found: Found) -> Figure:
    """The share of stays that last at least n tokens, a panel a world.

    Kaplan–Meier over all latents of a run, since a stay may be cut off by the end of its text
    (``censored``); seeds pooled. Needs dwell, count, censored of group all.
    """
    frame = tidy.prepare(
        found["dwell"], ("world", "variant", "group", "dwell", "count", "censored")
    )
    frame = frame[(frame["group"] == "all") & (frame["count"] > 0)]
    if "ablation" in frame:
        frame = tidy.main(frame)
    if frame.empty:
        raise UserError("The dwell table holds no stays of group 'all': run the evaluate stage.")
    rows = survival(frame, "system")
    figure = plots.lines(
        rows, "n", ("n (tokens)", "share of stays ≥ n tokens"), log=True, band=False
    )
    for panel in figure.axes:
        panel.set_yscale("log")
    return figure


def survival(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """world, ``by``, n, value: the share of stays of at least n tokens."""
    parts = []
    for (world, key), run in frame.groupby(["world", by], sort=False):
        share = at_least(run)
        parts.append(pd.DataFrame({"world": world, by: key, "n": share.index, "value": share}))
    return pd.concat(parts, ignore_index=True)


def at_least(run: pd.DataFrame) -> pd.Series:
    """Kaplan–Meier share of stays of at least n tokens, by n, from dwell, count and censored."""
    counts = run.groupby("dwell")[["count", "censored"]].sum()
    counts = counts.reindex(range(counts.index.max() + 1), fill_value=0)
    ended = torch.as_tensor((counts["count"] - counts["censored"]).to_numpy(copy=True))
    share = kaplan_meier(ended, torch.as_tensor(counts["censored"].to_numpy(copy=True))).numpy()
    return pd.Series(share[:-1], index=counts.index[1:]).loc[lambda share: share > 0]


@register("context_stability", "context_jaccard")
def context_stability(found: Found) -> Figure:
    """What is left of a token's active latents when the text before it is cut (Jaccard index)."""
    frame = tidy.compared(found["results"])
    frame = frame[frame["metric"] == "context_jaccard"]
    frame = frame.assign(tokens=frame["group"].str.removeprefix("context=").astype(int))
    labels = ("tokens of context", "Jaccard with whole context")
    return plots.lines(frame, "tokens", labels, log=True)


@register("table_time", "smoothness", figure=False)
def table(found: Found, smoke: bool) -> str:
    """Systems × measures of time."""
    frame = tidy.compared(found["results"])
    names = ("smoothness", "smoothness_null", "smoothness_normalised", "mean_dwell", "half_life",
             "reactivation_gap", "returns", "tss", "tss_null", "boundary_f1",
             "temporal_consistency", "switch_auroc", "switch_delay")  # fmt: skip
    heads = {"smoothness_null": "shuffled", "tss_null": "shuffled"}
    table = Table(
        "time",
        "Time. Shuffled: the same codes with their tokens shuffled. TSS: cosine of neighbouring "
        "codes inside segments minus across boundaries; consistency: agreement of lagged "
        "dependencies between halves of the documents. {seeds}",
        [Column(name, head=heads.get(name, "")) for name in names],
        verdicts="topk",
    )
    return table.latex(frame, by_system, smoke, found.get("differences"))


@register("heatmap", needs=("heatmap",))
def heatmap(found: Found, n_tokens: int = 44, n_latents: int = 12) -> Figure:
    """Token × latent maps of one passage: the static dictionary above the temporal one.

    Rows: the latents with most mass on the passage, each divided by its maximum there; columns: its
    tokens; vertical lines: boundaries that start at a token. First world, first sequence.
    """
    columns = ("world", "variant", "sequence", "position", "token", "boundary", "latent", "value")
    frame = tidy.prepare(found["heatmap"], (*columns, "name"))
    frame = frame[frame["world"] == ordered(frame["world"])[0]]
    frame = frame[frame["sequence"] == frame["sequence"].min()]
    shown = [next((v for v in names if v in set(frame["variant"])), "")
             for names in (("topk", "batchtopk"), TEMPORAL)]  # fmt: skip
    if not all(shown):
        raise UserError(
            "The heat map needs codes of topk and of a temporal dictionary: evaluate both."
        )
    frame = frame[frame["position"] < frame["position"].min() + n_tokens]
    tokens = frame.drop_duplicates("position").set_index("position").sort_index()
    height = 0.75 + len(shown) * (0.2 + 0.11 * n_latents)
    figure, axes = style.panels(len(shown), 1, style.PAGE, height, sharex=True)
    for panel, variant in zip(axes[:, 0], shown, strict=True):
        mine = frame[frame["variant"] == variant]
        grid = mine.pivot_table("value", "latent", "position", "sum", fill_value=0)
        grid = grid.reindex(columns=tokens.index, fill_value=0)
        grid = grid.loc[grid.sum(axis=1).nlargest(n_latents, keep="all").index[:n_latents]]
        # Early latents on top, so that a slow latent reads as one bar and a fast one as a dot.
        centre = (grid * np.arange(grid.shape[1])).sum(axis=1) / grid.sum(axis=1)
        grid = grid.loc[centre.sort_values(kind="stable").index]
        names = mine.drop_duplicates("latent").set_index("latent")["name"].fillna("")
        peak = grid.max(axis=1).replace(0, 1)
        panel.pcolormesh(grid.div(peak, axis=0), cmap="Greys", vmin=0, vmax=1,
                         edgecolors="#EEEEEE", linewidth=0.2)  # fmt: skip
        panel.invert_yaxis()
        words = [shorten(clean(str(names[i])) or f"latent {i}", 26) for i in grid.index]
        panel.set_yticks(np.arange(len(grid)) + 0.5, words)
        panel.set_xticks(np.arange(len(tokens)) + 0.5, [clean(t) for t in tokens["token"]])
        for place, level in enumerate(tokens["boundary"]):
            if level in BOUNDARIES:
                panel.axvline(place, color="#D55E00", linewidth=1.0, ls=BOUNDARIES[level][1])
        style.title(panel, tokens["world"].iloc[0], display(variant))
        panel.grid(False)
        panel.tick_params(axis="both", length=0, labelsize=5.5)
        panel.tick_params(axis="x", labelrotation=90)
    lines = {name: {"color": "#D55E00", "linestyle": line} for name, line in BOUNDARIES.values()}
    style.legend(figure, [], 3, lines={f"{name} starts": look for name, look in lines.items()})
    return figure


def clean(text: str) -> str:
    """A token as one printable line: control characters named, ``$`` not read as mathematics."""
    named = text.replace("\n", "↵").replace("\t", "→").replace("$", r"\$")
    return "".join(letter if letter.isprintable() else "·" for letter in named).strip()


def shorten(text: str, most: int) -> str:
    """At most ``most`` characters, the last one an ellipsis where some were cut."""
    return text if len(text) <= most else text[: most - 1] + "…"
