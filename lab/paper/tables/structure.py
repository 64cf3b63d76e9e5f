"""The gain of temporal variants against how temporal the text is, with intervals."""

from collections.abc import Mapping

import pandas as pd

from lab.paper.tables.latex import change, escape, floated
from lab.results import tidy

GAINS = {
    "fve": "FVE",
    "document F1 excess": "document F1*",
    "section F1 excess": "section F1*",
    "token F1 excess": "token F1*",
}


def made(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, str]:
    """The table, where the sweep was run."""
    if not len(found.get("structure", ())):
        return {}
    return {"table_structure": structure_table(found["structure"], smoke)}


def facts(gains: pd.DataFrame) -> pd.DataFrame:
    """Facts of world ``structure`` for the text: each gain of :data:`GAINS` to three decimals
    (``conv fve topk at 0``), and how many intervals at 0 there are, above and below 0 (``null
    above``), against TopK and against the variants' own nulls."""
    gains = gains[gains["metric"].isin(list(GAINS))]
    against = gains["baseline"].map(lambda name: "null" if tidy.is_null(name) else name)
    rows = [
        (f"{row.variant} {row.metric} {other} at {row.temporal:g}", round(row.diff, 3))
        for row, other in zip(gains.itertuples(), against, strict=True)
    ]
    for other, here in gains[gains["temporal"] == 0].groupby(against):
        counts = {"": len(here), " above": (here["lo"] > 0).sum(), " below": (here["hi"] < 0).sum()}
        rows += [(other + key, float(n)) for key, n in counts.items()]
    return pd.DataFrame(rows, columns=["key", "value"]).assign(world="structure")


def structure_table(gains: pd.DataFrame, smoke: bool = False) -> str:
    r"""Variants × gains in FVE and F1*, a panel a (share of tokens in place, baseline).

    Needs temporal, variant, baseline, metric, diff, lo, hi. Bold: the interval excludes 0.
    """
    metrics = [name for name in GAINS if name in set(gains["metric"])]
    body = [" & ".join(["", *(GAINS[name] for name in metrics)]) + r"\\"]
    for strength, here in gains.groupby("temporal"):
        for own in (False, True):
            mine = here[here["baseline"].map(tidy.is_null) == own]
            if mine.empty:
                continue
            other = "its own shuffled null" if own else tidy.display(mine["baseline"].iloc[0])
            head = rf"{strength:.0%} of tokens in place, against {other}".replace("%", r"\%")
            body += [
                r"\midrule",
                rf"\multicolumn{{{len(metrics) + 1}}}{{@{{}}l}}{{\textit{{{head}}}}}\\",
            ]
            for variant in tidy.ordered(mine["variant"]):
                rows = mine[mine["variant"] == variant].set_index("metric")
                cells = [change(rows.loc[name]) if name in rows.index else "--" for name in metrics]
                body.append(" & ".join([escape(tidy.display(variant)), *cells]) + r"\\")
    caption = (
        "Gain of temporal variants in microworlds whose tokens keep their place with the given "
        r"probability: difference with its paired 95\% bootstrap interval over documents, bold "
        "where it excludes 0. F1*: beyond the frequency-matched null. Contrastive and Hierarchical "
        "encode token by token and have no shuffled null."
    )
    return floated(body, "l" + "r" * len(metrics), caption, "structure", smoke)
