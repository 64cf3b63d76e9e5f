"""Reading the tidy results table: selection, mean and standard error, numbers in print.

A row is ``world, layer, variant, act, seed, ablation, reading, metric, group, value, n``. Group
``""`` and ``"all"`` are the same thing. ``reading`` is ``own`` (the code itself), ``ema`` (the code
through a causal moving average) or ``average`` (the averaged residual encoded).
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lab.results.metrics import metric
from lab.results.systems import inside, is_null
from tsae.errors import UserError

SMOKE = "smoke size: not results"
BASE = "base"
OWN = "own"
BARS = ("ema(topk)", "ema(batchtopk)")
MATCHED = 0.02  # two L0s within this share of each other count as matched
COLUMNS = ("world", "layer", "variant", "act", "seed", "ablation", "metric", "group", "value", "n")
# A run of the L0 sweep carries the swept setting as its ablation.
SWEEP = re.compile(r"^(k|l1\w*|sparsity\w*)=")


def natural(text: str) -> list:
    """Sort key by which ``window=8`` comes before ``window=16``."""
    parts = [part for part in re.split(r"(\d+)", text) if part]
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def prepare(results: pd.DataFrame, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """The table with one spelling of the overall group and the columns ``system``, ``of``, ``how``.

    ``system`` is the variant; the act is joined on (``conv+jumprelu``) where the same variant was
    run with several acts and this one is not ``topk``; a reading other than ``own`` wraps it
    (``ema(topk)``). ``of`` is the system that is read (``topk``) and ``how`` its reading (``ema``).
    Raises :class:`UserError` for a missing column.
    """
    if absent := [name for name in columns if name not in results.columns]:
        raise UserError(
            f"The table lacks the column(s) {', '.join(absent)}: "
            "write it again with the evaluate stage."
        )
    frame = results.copy()
    if "group" in frame:
        frame["group"] = frame["group"].fillna("all").replace("", "all")
    if "ablation" in frame:
        frame["ablation"] = frame["ablation"].fillna("")
    frame["system"] = frame["variant"]
    if "act" in frame:
        several = (
            (main(frame) if "ablation" in frame else frame).groupby("variant")["act"].nunique()
        )
        joined = frame["variant"].map(several).fillna(1).gt(1) & frame["act"].ne("topk")
        frame["system"] = frame["variant"].where(~joined, frame["variant"] + "+" + frame["act"])
    if "reading" in frame:
        frame["reading"] = frame["reading"].fillna(OWN).replace("", OWN)
        wrapped = frame["reading"] + "(" + frame["system"] + ")"
        frame["system"] = frame["system"].where(frame["reading"].eq(OWN), wrapped)
    how = {s: s.split("(")[0] if is_null(s) else OWN for s in frame["system"].unique()}
    return frame.assign(of=frame["system"].map(inside), how=frame["system"].map(how))


def pick(frame: pd.DataFrame, metric: str, group: str = "all") -> pd.DataFrame:
    """Rows of one metric and group; without any, a :class:`UserError` that names them."""
    rows = of_group(frame[frame["metric"] == metric], group)
    if rows.empty:
        raise UserError(
            f"The results hold no '{metric}' rows of group '{group}': run the stage that measures "
            "it, or leave out what shows it."
        )
    return rows


def of_group(rows: pd.DataFrame, group: str) -> pd.DataFrame:
    """The rows of a group by its whole name (``section``, a time scale), or else of the label that
    it names (``domain`` for ``document:domain``): a label may be called like a time scale."""
    exact = rows["group"] == group
    return rows[exact] if exact.any() else rows[rows["group"].str.endswith(f":{group}")]


def heading(name: str, group: str = "all", head: str = "") -> str:
    """A metric's head in plain text, or ``head`` in its place, with its group and an arrow to the
    better side."""
    found = metric(name)
    label = "" if group == "all" else f"{group.split(':')[-1]} "
    return f"{head or label + found.head} {found.arrow}".strip()


def main(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the main runs: no ablation."""
    return frame[frame["ablation"] == ""]


def compared(results: pd.DataFrame) -> pd.DataFrame:
    """The rows that figures and tables compare: main runs, each by its own code, beside the one
    null that is the bar, ``ema(topk)``. Other readings and nulls are shown where they are asked for."""
    frame = main(prepare(results))
    return frame[frame["how"].eq(OWN) | frame["system"].isin(BARS)]


def unchanged(case: pd.DataFrame) -> pd.DataFrame:
    """The run that a system's ablations change: ablation ``base`` (the same choices at the
    ablations' own budget) where there is one, else the main run."""
    base = case[case["ablation"] == BASE]
    return main(case) if base.empty else base


def settings(case: pd.DataFrame) -> list[str]:
    """The ablations of one system that change it, in natural order, L0 sweeps left out."""
    names = [n for n in case["ablation"].unique() if n not in ("", BASE) and not SWEEP.match(n)]
    return sorted(names, key=natural)


def summary(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds, standard error s/√n (NaN for one seed) and number of seeds."""
    grouped = rows.groupby(list(by), sort=False)["value"]
    table = grouped.agg(mean="mean", sd="std", seeds="count").reset_index()
    table["se"] = table["sd"] / np.sqrt(table["seeds"])
    return table.drop(columns="sd")


def seeds(rows: pd.DataFrame) -> str:
    """How many seeds each system of the rows has: ``3 seeds``, or ``1 to 3 seeds``."""
    counts = rows.groupby("system")["seed"].nunique()
    low, high = counts.min(), counts.max()
    return f"{low} to {high} seeds" if low < high else f"{high} seed{'s' if high > 1 else ''}"


def matched_l0(frame: pd.DataFrame, baseline: str = "topk") -> pd.Series:
    """Whether each (world, system)'s mean L0 is within 2% of the baseline's in that world."""
    l0 = pick(main(frame), "l0").groupby(["world", "system"])["value"].mean()
    flags = {}
    for world, system in l0.index:
        if (world, baseline) not in l0.index:
            raise UserError(
                f"The results hold no '{baseline}' run on {world}, to which L0 is matched: "
                "train it, or name another baseline."
            )
        flags[world, system] = abs(l0[world, system] / l0[world, baseline] - 1) <= MATCHED
    return pd.Series(flags)


def number(name: str, value: float, like: float | None = None) -> str:
    """A value in LaTeX print with its metric's decimals, fewer where it is large.

    ``like`` gives a standard error the decimals of its mean.
    """
    size = abs(value if like is None else like)
    if np.isnan(value):
        return "--"
    if np.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    if size >= 1000:
        return f"{value:,.0f}".replace(",", r"\,").replace("-", "$-$")
    places = min(metric(name).decimals, 1 if size >= 10 else 6)
    return f"{value:.{places}f}".replace("-", "$-$")


def unlearning(results: pd.DataFrame) -> pd.DataFrame:
    """One row a (world, system, strategy, group): accuracies forget, near, far, mean over seeds,
    and ``retained``, the lesser of near and far.

    A row's group is a setting, ``clamp|n=10|m=50``; the strategy is what stands before the first
    ``|``. Raises :class:`UserError` when one of ``unlearn_{forget,near,far}_accuracy`` is missing.
    """
    frame = main(prepare(results))
    columns = []
    for name in ("forget", "near", "far"):
        rows = frame[frame["metric"] == f"unlearn_{name}_accuracy"]
        if rows.empty:
            raise UserError(
                f"The results hold no 'unlearn_{name}_accuracy' rows: "
                "run the unlearning stage first."
            )
        columns.append(rows.groupby(["world", "system", "group"])["value"].mean().rename(name))
    table = pd.concat(columns, axis=1, join="inner").reset_index()
    table.insert(2, "strategy", table["group"].str.split("|").str[0])
    table["retained"] = table[["near", "far"]].min(axis=1)
    return table


def judged(differences: pd.DataFrame, baseline: str = "") -> pd.DataFrame:
    """Paired differences with their ``system`` and ``verdict``, of one ``baseline`` if it is given;
    metrics in which neither side is better are left out."""
    columns = ("world", "variant", "baseline", "metric", "group", "diff", "lo", "hi", "verdict")
    frame = prepare(differences, columns)
    frame = frame[[metric(name).better != 0 for name in frame["metric"]]]
    return frame[frame["baseline"] == baseline] if baseline else frame
