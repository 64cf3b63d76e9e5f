"""The main table: every system, the metrics that matter most, both worlds."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from lab.paper.tables.latex import floated, panel, rows_of_systems
from lab.results import tidy
from lab.results.comparison import paired


class Column(NamedTuple):
    """One metric at a glance."""

    metric: str
    group: str
    head: str
    """Its name in the table."""
    name: str
    """Its name in the figure."""
    more: bool
    """Whether more is better."""
    counts: str = ""
    """The metric of the document rows by which it is compared; empty: it has none."""


COLUMNS = (
    Column("fve", "all", "FVE", "FVE", True, "fvu"),
    Column("ce_score", "all", "CE", "CE score", True, "ce_sae"),
    Column("alive", "all", "Alive", "alive", True),
    *(
        Column("recovery_f1_excess", s, s[:3].title() + ".", f"{s} F1*", True, "recovery_f1_excess")
        for s in tidy.SCALES
    ),
    *(
        Column("probe_sparse", f"{s}|k=5", s[:3].title() + ".", f"probe, {s}", True, "probe_sparse")
        for s in tidy.SCALES
    ),
    Column("scr", "n=10", "SCR", "SCR", True),
    Column("tpp", "n=10", "TPP", "TPP", True),
    Column("absorption_fraction", "all", "Abs.", "absorption", False),
    Column("detection", "all", "Det.", "detection", True),
    Column("smoothness", "all", "Smo.", "smoothness", False, "smoothness"),
    Column("tss", "all", "TSS", "stability (TSS)", True),
    Column("temporal_consistency", "all", "Cons.", "consistency", True),
    Column("context_jaccard", "context=16", "Ctx.", "context, 16", True),
)
FEWER_IS_BETTER = ("fvu", "ce_sae", "smoothness")
HEADS = {"recovery_f1_excess": "F1* by scale", "probe_sparse": "5-latent probes"}
N_BOOT = 1000


def made(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, str]:
    """The table, where probes and concept removal were measured."""
    measured = set(found["results"]["metric"])
    if not {"probe_sparse", "tpp"} <= measured:
        return {}
    compared = verdicts(found["documents"])
    return {"table_glance": glance_table(found["results"], compared, smoke=smoke)}


def verdicts(documents: pd.DataFrame, baseline: str = "topk") -> dict[tuple[str, ...], int]:
    """(world, variant, metric, group) → 1 better than the baseline, −1 worse, 0 not told apart.

    Decided by the paired bootstrap interval over documents (95%) of the column's counts.
    """
    main = documents[documents["ablation"] == ""]
    verdict: dict[tuple[str, ...], int] = {}
    for world, here in main.groupby("world"):
        reference = here[here["variant"] == baseline]
        for variant in (v for v in here["variant"].unique() if v != baseline):
            mine = here[here["variant"] == variant]
            for column in (c for c in COLUMNS if c.counts):
                scale = column.group.split("|")[0]
                found = paired(mine, reference, column.counts, scale, N_BOOT)
                if found is not None:
                    sign = (found.lo > 0) - (found.hi < 0)
                    sign = -sign if column.counts in FEWER_IS_BETTER else sign
                    verdict[world, variant, column.metric, column.group] = sign
    return verdict


def glance_table(
    results: pd.DataFrame, verdict: Mapping[tuple[str, ...], int], smoke: bool = False
) -> str:
    r"""Systems × :data:`COLUMNS`, a panel a world, nulls below a rule.

    ``verdict``: as :func:`verdicts` gives it; better than TopK is bold, worse is slanted. At L0, a
    dagger: not within 2% of TopK's; a double one: brought there by its threshold.
    """
    frame = tidy.main(tidy.prepare(results))
    matched = tidy.matched_l0(frame)
    moved = set(
        frame.loc[
            (frame["metric"] == "l0_as_trained") & (frame["group"] == "threshold"),
            ["world", "system"],
        ].itertuples(index=False, name=None)
    )
    pairs = set(zip(frame["metric"], frame["group"], strict=True))
    columns = [column for column in COLUMNS if (column.metric, column.group) in pairs]
    body = [*heads(columns)]
    for world in tidy.ordered(frame["world"]):
        here = frame[frame["world"] == world]
        body += [r"\midrule", panel(world, len(columns) + 2)]

        def row(system: str, here=here, world=world) -> list[str]:
            mine = here[here["system"] == system]
            mark = "" if matched[world, system] else r"\rlap{$^\dagger$}"
            mark = r"\rlap{$^\ddagger$}" if (world, system) in moved and not mark else mark
            cells = [mean(mine, "l0", "all") + mark]
            for column in columns:
                sign = verdict.get((world, system, column.metric, column.group), 0)
                cells.append(told(short(mean(mine, column.metric, column.group)), sign))
            return cells

        body += rows_of_systems(here, len(columns) + 2, row)
    seeds = frame["seed"].nunique()
    shown = "one seed" if seeds == 1 else f"means over up to {seeds} seeds"
    caption = (
        f"All systems at a glance, {shown}. Bold: better than TopK, "
        r"slanted: worse, by the 95\% bootstrap interval of the paired difference over documents; "
        "alive, SCR, TPP, absorption (Abs.), detection (Det.), TSS, consistency (Cons.) and context "
        r"(Ctx.) have no counts by document and are not tested. $\ddagger$: threshold moved to "
        r"reach TopK's L0; $\dagger$: not within 2\% of it. F1*: beyond the frequency-matched null. "
        "Below the rule: nulls. Less is better for absorption and smoothness (Smo.)."
    )
    made = floated(body, "l" + "r" * (len(columns) + 1), caption, "glance", smoke)
    return made.replace(r"\setlength{\tabcolsep}{3.5pt}", r"\setlength{\tabcolsep}{2.1pt}")


def heads(columns: list[Column]) -> list[str]:
    """Two lines: what several columns share, and each column's own head."""
    upper, rules, start = ["", ""], "", 0
    while start < len(columns):
        metric = columns[start].metric
        width = sum(column.metric == metric for column in columns[start:])
        if metric in HEADS:
            upper.append(rf"\multicolumn{{{width}}}{{c}}{{{HEADS[metric]}}}")
            rules += rf"\cmidrule(lr){{{start + 3}-{start + 2 + width}}}"
        else:
            upper += [""] * width
        start += width
    lower = ["System", "L0", *(column.head for column in columns)]
    return [" & ".join(upper) + r"\\" + rules, " & ".join(lower) + r"\\"]


def mean(frame: pd.DataFrame, metric: str, group: str) -> str:
    """Mean over seeds, or ``--`` when not measured."""
    rows = frame[(frame["metric"] == metric) & (frame["group"] == group)]
    return tidy.number(metric, rows["value"].mean())


def short(text: str) -> str:
    """``.950`` for ``0.950``, ``$-$.012`` for ``$-$0.012``."""
    return text.removeprefix("0") if text.startswith("0.") else text.replace("$-$0.", "$-$.")


def told(text: str, sign: int) -> str:
    """Bold for 1, slanted for −1."""
    return rf"\textbf{{{text}}}" if sign > 0 else rf"\textit{{{text}}}" if sign < 0 else text
