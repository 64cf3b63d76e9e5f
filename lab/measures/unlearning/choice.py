"""A strategy judged at a setting that was picked on other facts than it is judged on."""

from typing import Any

import numpy as np
import pandas as pd

from lab.measures.stats import paired_bootstrap
from lab.measures.tokens import row
from lab.worlds.knowledge import NEIGHBOURHOODS

KEPT = {"near": 0.95, "far": 0.99}
"""Share of the clean model's right answers that a picked setting keeps."""


def chosen_documents(documents: pd.DataFrame) -> pd.DataFrame:
    """The accuracies of each strategy on facts that its setting was not picked on.

    ``documents``: doc (fact), metric ``unlearn_{forget,near,far}_accuracy``, group
    ``strategy|setting``, num, den. Facts of each neighbourhood are parted by turns into two halves;
    on each the setting with the lowest forget accuracy is picked among those that keep near ≥ .95
    and far ≥ .99 (none: the model is left as it is), and judged on the other. Returns document rows
    ``unlearn_chosen_{forget,near,far}_accuracy`` with group = strategy.
    """
    wanted = {f"unlearn_{name}_accuracy": name for name in NEIGHBOURHOODS}
    rows = documents[documents["metric"].isin(list(wanted))].copy()
    rows["name"] = rows["metric"].map(wanted)
    rows["strategy"] = rows["group"].str.split("|").str[0]
    order: dict[tuple[str, Any], int] = {}
    for name, part in rows.groupby("name"):
        order |= {(name, doc): i % 2 for i, doc in enumerate(sorted(part["doc"].unique()))}
    keys = zip(rows["name"], rows["doc"], strict=True)
    rows["half"] = [order[key] for key in keys]
    parts = []
    for strategy, mine in rows.groupby("strategy", sort=False):
        for half in (0, 1):
            seen, judged = mine[mine["half"] == half], mine[mine["half"] != half]
            if judged.empty:
                continue
            share = shares(seen)
            good = np.all([share[name] >= least for name, least in KEPT.items()], axis=0)
            if good.any():
                found = judged[judged["group"] == share.loc[good, "forget"].idxmin()]
            else:
                found = judged[judged["group"] == judged["group"].iloc[0]]
                found = found.assign(num=found["den"].astype(float))
            metric = "unlearn_chosen_" + found["name"] + "_accuracy"
            parts.append(found.assign(metric=metric, group=strategy))
    return pd.concat(parts, ignore_index=True)[["doc", "num", "den", "metric", "group"]]


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies by group (rows) and neighbourhood; 1 where nothing of it was asked."""
    if rows.empty:
        return pd.DataFrame(columns=list(NEIGHBOURHOODS), dtype=float)
    sums = rows.pivot_table(["num", "den"], "group", "name", "sum", sort=False)
    return (sums["num"] / sums["den"]).reindex(columns=list(NEIGHBOURHOODS)).fillna(1.0)


def best_settings(documents: pd.DataFrame) -> list[str]:
    """For each strategy the setting with the lowest forget accuracy over all facts among those
    that keep near ≥ .95 and far ≥ .99, else the one that keeps most of them."""
    wanted = {f"unlearn_{name}_accuracy": name for name in NEIGHBOURHOODS}
    rows = documents[documents["metric"].isin(list(wanted))]
    share = shares(rows.assign(name=rows["metric"].map(wanted)))
    short = sum((least - share[name]).clip(lower=0) for name, least in KEPT.items())
    order = pd.DataFrame({"short": short.round(9), "forget": share["forget"]})
    order["strategy"] = order.index.str.split("|").str[0]
    first = order.sort_values(["short", "forget"], kind="stable").drop_duplicates("strategy")
    return list(first.index)


def chosen_rows(
    chosen: pd.DataFrame, baseline: str = "clamp", n_boot: int = 2000
) -> list[dict[str, Any]]:
    """Rows ``unlearn_chosen_…_accuracy`` (group = strategy), and the paired difference of every
    other strategy from ``baseline`` with its 95% bootstrap interval over facts: metrics
    ``unlearn_difference``, ``…_lo``, ``…_hi``, group ``strategy|forget``, ``|near``, ``|far``."""
    rows = []
    for (metric, strategy), part in chosen.groupby(["metric", "group"], sort=False):
        rows.append(row(metric, strategy, part["num"].sum() / part["den"].sum(), len(part)))
    if baseline not in set(chosen["group"]):
        return rows
    for (metric, strategy), part in chosen.groupby(["metric", "group"], sort=False):
        if strategy == baseline:
            continue
        base = chosen[(chosen["metric"] == metric) & (chosen["group"] == baseline)]
        found = paired_bootstrap(part.assign(group="all"), base.assign(group="all"), n_boot)
        group = f"{strategy}|{metric.split('_')[2]}"
        for name, value in (("", found.diff), ("_lo", found.lo), ("_hi", found.hi)):
            rows.append(row(f"unlearn_difference{name}", group, value, len(part)))
    return rows
