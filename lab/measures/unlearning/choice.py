"""What counts as retained, and a strategy judged at a setting picked on other facts."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from lab.measures.reading import row
from lab.measures.stats import paired_bootstrap
from lab.results.metrics import RETAINED
from lab.worlds.knowledge import NEIGHBOURHOODS

LEAST = dict(zip(("", "_95"), RETAINED, strict=True))
"""What has to be retained in the two columns of every table, by the suffix of their metrics."""


def retained(near: Any, far: Any) -> Any:
    """How much is retained: of the right answers on near and on far facts, the smaller share.

    A setting qualifies where this is at least a value of :data:`LEAST`: both have to be.
    """
    return np.minimum(near, far)


def answers(documents: pd.DataFrame) -> pd.DataFrame:
    """The document rows of accuracies with ``name`` (neighbourhood), ``strategy``, and ``half``:
    facts of each neighbourhood are parted by turns into two halves."""
    wanted = {f"unlearn_{name}_accuracy": name for name in NEIGHBOURHOODS}
    rows = documents[documents["metric"].isin(list(wanted))].copy()
    rows["name"] = rows["metric"].map(wanted)
    rows["strategy"] = rows["group"].str.split("|").str[0]
    order: dict[tuple[str, Any], int] = {}
    for name, part in rows.groupby("name"):
        order |= {(name, doc): i % 2 for i, doc in enumerate(sorted(part["doc"].unique()))}
    rows["half"] = [order[key] for key in zip(rows["name"], rows["doc"], strict=True)]
    return rows


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies by group (rows) and neighbourhood; 1 where nothing of it was asked."""
    if rows.empty:
        return pd.DataFrame(columns=list(NEIGHBOURHOODS), dtype=float)
    sums = rows.pivot_table(["num", "den"], "group", "name", "sum", sort=False)
    return (sums["num"] / sums["den"]).reindex(columns=list(NEIGHBOURHOODS)).fillna(1.0)


def picked(rows: pd.DataFrame, least: float) -> pd.DataFrame:
    """For each strategy and each half that is judged, the group picked on the *other* half: the
    lowest forget accuracy among those that retain ``least``; None where none does. ``rows``:
    :func:`answers`. Columns strategy, half, group."""
    out = []
    for strategy, mine in rows.groupby("strategy", sort=False):
        for half in sorted(mine["half"].unique()):
            share = shares(mine[mine["half"] != half])
            good = share[retained(share["near"], share["far"]) >= least - 1e-9]
            group = good["forget"].idxmin() if len(good) else None
            out.append({"strategy": strategy, "half": half, "group": group})
    return pd.DataFrame(out, columns=["strategy", "half", "group"])


def chosen_documents(documents: pd.DataFrame) -> pd.DataFrame:
    """Document rows ``unlearn_chosen_{forget,near,far}_accuracy`` (and ``…_95``), group = strategy:
    each half of the facts under the setting that was picked on the other. Where none was, the model
    is left as it is. ``documents``: doc (fact), metric ``unlearn_{…}_accuracy``, group
    ``strategy|setting``, num, den."""
    rows, parts = answers(documents), []
    for suffix, least in LEAST.items():
        for pick in picked(rows, least).itertuples():
            judged = rows[(rows["half"] == pick.half) & (rows["strategy"] == pick.strategy)]
            if isinstance(pick.group, str):
                found = judged[judged["group"] == pick.group]
            else:
                found = judged[judged["group"] == judged["group"].iloc[0]]
                found = found.assign(num=found["den"].astype(float))
            metric = "unlearn_chosen_" + found["name"] + "_accuracy" + suffix
            parts.append(found.assign(metric=metric, group=pick.strategy))
    return pd.concat(parts, ignore_index=True)[["doc", "num", "den", "metric", "group"]]


def control(strategy: str, have: Iterable[str]) -> str | None:
    """The random edit behind the same gate: ``gate/edit-random`` where it was run, else
    ``gate/hold-random``; None for what is random itself or has no control."""
    gate, _, edit = strategy.partition("/")
    names = (f"{gate}/{edit}-random", f"{gate}/hold-random")
    return None if edit.endswith("random") else next((n for n in names if n in have), None)


def chosen_rows(chosen: pd.DataFrame, n_boot: int = 2000) -> list[dict[str, Any]]:
    """Rows ``unlearn_chosen_…_accuracy`` (group = strategy), and each strategy's paired difference
    from its :func:`control` with its 95% bootstrap interval over facts: metrics
    ``unlearn_difference``, ``…_lo``, ``…_hi``, group ``strategy|forget``, ``|near``, ``|far``."""
    rows, have = [], set(chosen["group"])
    by = {key: part.assign(group="all") for key, part in chosen.groupby(["metric", "group"])}
    for (metric, strategy), part in by.items():
        rows.append(row(metric, strategy, part["num"].sum() / part["den"].sum(), len(part)))
        other = control(strategy, have)
        if other is None:
            continue
        found = paired_bootstrap(part, by[metric, other], n_boot)
        _, _, name, _, *column = metric.split("_")
        for end, value in (("", found.diff), ("_lo", found.lo), ("_hi", found.hi)):
            metric_name = "_".join(["unlearn_difference" + end, *column])
            rows.append(row(metric_name, f"{strategy}|{name}", value, len(part)))
    return rows


def score_rows(documents: pd.DataFrame) -> list[dict[str, Any]]:
    """``unlearn_score`` (1 − the lowest forget accuracy of the settings that retain .99; 0 without
    any) and ``unlearn_qualifying`` (how many do) of each strategy, and both with ``_95``.

    The setting is picked on the facts that are reported: what SAEBench does, for comparison alone.
    """
    rows, out = answers(documents), []
    for strategy, mine in rows.groupby("strategy", sort=False):
        share = shares(mine)
        n = mine.loc[mine["name"] == "forget", "doc"].nunique()
        for suffix, least in LEAST.items():
            good = share[retained(share["near"], share["far"]) >= least - 1e-9]
            best = 1 - good["forget"].min() if len(good) else 0.0
            out.append(row(f"unlearn_score{suffix}", strategy, best, n))
            out.append(row(f"unlearn_qualifying{suffix}", strategy, len(good), len(share)))
    return out
