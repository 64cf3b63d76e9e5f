"""How codes move in time: stays, smoothness, switches, stability, and one passage in two codes."""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from lab.measures.time.lifecycle import kaplan_meier
from lab.paper import plots, style
from lab.paper.register import Found, register, tables
from lab.paper.tables import Column, Table, columns
from lab.results import tidy
from lab.results.systems import display, ordered
from tsae.errors import UserError
from tsae.sequences import SCALES

BOUNDARIES = {1: ("sentence", ":"), 2: ("section", "--"), 3: ("document", "-")}
TEMPORAL = ("slowfast", "conv", "contrastive")
"""The temporal dictionary that :func:`heatmap` shows: the first of these that there is."""
STAYS = ("n (tokens)", "share of stays ≥ n tokens")


@register("smoothness")
def smoothness(found: Found) -> Figure:
    """Smoothness, mean stay and switch detection, a row a world; tick: the same on shuffled tokens."""
    blocks = plots.of_systems(tidy.compared(found["results"]))
    shown = [Column("smoothness", tick="smoothness_null"), Column("smoothness_normalised"),
             Column("mean_dwell", head="mean stay (tokens)"), Column("switch_auroc")]  # fmt: skip
    return plots.dots(blocks, shown)


@register("dwell")
def dwell(found: Found) -> Figure:
    """The share of stays that last at least n tokens, a panel a world."""
    frame = tidy.prepare(found["dwell"], ("world", "variant", "group", "dwell", "count"))
    frame = frame[frame["group"].eq("all") & frame["how"].eq(tidy.OWN)]
    rows = survival(frame, "system")
    return plots.lines(rows, "n", STAYS, width=style.PAGE, log="xy")


def survival(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """world, ``by``, seed, n, value: the share of stays of at least n tokens, of the main runs.

    Kaplan–Meier over all latents of a run, since a stay may be cut off by the end of its text
    (``censored``).
    """
    frame = tidy.main(frame)[lambda rows: rows["count"] > 0]
    if frame.empty:
        raise UserError("The table holds no stays: run the evaluate stage.")
    parts = []
    for (world, key, seed), run in frame.groupby(["world", by, "seed"], sort=False):
        share = at_least(run)
        keys = {"world": world, by: key, "seed": seed, "n": share.index, "value": share}
        parts.append(pd.DataFrame(keys))
    return pd.concat(parts, ignore_index=True)


def at_least(run: pd.DataFrame) -> pd.Series:
    """Kaplan–Meier share of stays of at least n tokens, by n, from dwell, count and censored."""
    counts = run.groupby("dwell")[["count", "censored"]].sum()
    counts = counts.reindex(range(counts.index.max() + 1), fill_value=0)
    ended = torch.as_tensor((counts["count"] - counts["censored"]).to_numpy(copy=True))
    share = kaplan_meier(ended, torch.as_tensor(counts["censored"].to_numpy(copy=True))).numpy()
    return pd.Series(share[:-1], index=counts.index[1:]).loc[lambda share: share > 0]


@register("context_stability")
def context_stability(found: Found) -> Figure:
    """What is left of a token's active latents when the text before it is cut (Jaccard index)."""
    frame = tidy.compared(found["results"])
    frame = frame[frame["metric"] == "context_jaccard"]
    frame = frame.assign(tokens=frame["group"].str.removeprefix("context=").astype(int))
    labels = ("tokens of context", "Jaccard with whole context")
    return plots.lines(frame, "tokens", labels, width=style.PAGE, log="x")


@register("heatmap")
def heatmap(found: Found, n_tokens: int = 44, n_latents: int = 12) -> Figure:
    """Token × latent maps of one passage: the static dictionary above the temporal one.

    Rows: the latents with most mass on the passage, each divided by its maximum there; columns: its
    tokens; vertical lines: boundaries that start at a token. First world, first sequence.
    """
    frame = tidy.prepare(found["heatmap"], ("world", "variant", "sequence", "position", "name"))
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
    height = 0.9 + len(shown) * (0.2 + 0.125 * n_latents)
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
        panel.pcolormesh(grid.div(grid.max(axis=1).replace(0, 1), axis=0), cmap="Greys", vmin=0,
                         vmax=1, edgecolors="#EEEEEE", linewidth=0.2)  # fmt: skip
        panel.invert_yaxis()
        words = [clean(str(names[i]))[:26] or f"latent {i}" for i in grid.index]
        panel.set_yticks(np.arange(len(grid)) + 0.5, words)
        panel.set_xticks(np.arange(len(tokens)) + 0.5, [clean(t) for t in tokens["token"]])
        for place, level in enumerate(tokens["boundary"]):
            if level in BOUNDARIES:
                panel.axvline(place, color="#D55E00", linewidth=1.0, ls=BOUNDARIES[level][1])
        style.title(panel, tokens["world"].iloc[0], display(variant))
        panel.grid(False)
        panel.tick_params(length=0, labelsize=7)
        panel.tick_params(axis="x", labelrotation=90)
    looks = {f"{n} starts": {"color": "#D55E00", "linestyle": ls} for n, ls in BOUNDARIES.values()}
    style.legend(figure, looks, 3)
    return figure


def clean(text: str) -> str:
    """A token as one printable line: control characters named, ``$`` not read as mathematics."""
    named = text.replace("\n", "↵").replace("\t", "→").replace("$", r"\$")
    return "".join(letter if letter.isprintable() else "·" for letter in named).strip()


tables(
    Table(
        "time",
        "Time. Shuffled: the same codes with their tokens shuffled. TSS: cosine of neighbouring "
        "codes inside segments minus across boundaries; consistency: agreement of lagged "
        "dependencies between halves of the documents. {seeds}",
        columns("smoothness", ("smoothness_null", "all", "shuffled"), "smoothness_normalised",
                "mean_dwell", "half_life", "reactivation_gap", "returns", "tss",
                ("tss_null", "all", "shuffled"), "boundary_f1", "temporal_consistency",
                "switch_auroc", "switch_delay"),
        verdicts="topk",
    ),
    Table(
        "lifecycle",
        "The life of a latent: births in 100 tokens, mean stay and half-life, silence before a "
        "return, share of births that are returns. $\\Delta$KL: effect on the next token of "
        "ablating the latents of longest and shortest stays, beside random latents that fire as "
        "often. {seeds}",
        columns("births_per_100", "mean_dwell", "half_life", "reactivation_gap", "returns",
                *(("lifetime_error", scale) for scale in SCALES),
                ("effect_kl", "ablate|long", "ΔKL long"),
                ("effect_kl", "ablate|random_long", "ΔKL as often"),
                ("effect_kl", "ablate|short", "ΔKL short"),
                ("effect_kl", "ablate|random_short", "ΔKL as often"),
                ("effect_logit", "ablate|long", "Δlogit long"),
                ("effect_logit", "ablate|short", "Δlogit short")),
    ),
)  # fmt: skip
