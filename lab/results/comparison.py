"""Which system differs from which: paired bootstrap over documents."""

from typing import Any

import pandas as pd

from lab.measures.stats import Interval, paired_bootstrap
from tsae.sequences import SCALES

EXCESS = "recovery_f1_excess"


def differences(
    documents: pd.DataFrame,
    baselines: tuple[str, ...] = ("topk", "batchtopk", "ema(topk)"),
    n_boot: int = 1000,
) -> pd.DataFrame:
    """Paired bootstrap differences of every system to each baseline, by world and metric.

    ``fvu`` and ``smoothness`` (lower is better), ``recovery_f1`` by time scale and the same in
    excess of its frequency-matched null, over documents and shared seeds;
    a temporal variant is also compared with its own ``shuffled`` null. Columns: world, variant,
    baseline, metric, group, diff, lo, hi.
    """
    main = documents[documents["ablation"] == ""]
    rows = []
    for world, here in main.groupby("world"):
        systems = list(dict.fromkeys(here["variant"]))
        for variant in systems:
            others = [*baselines, f"shuffled({variant})"]
            for baseline in (b for b in others if b in systems and b != variant):
                a, b = (here[here["variant"] == name] for name in (variant, baseline))
                cases = [("fvu", "all"), ("smoothness", "all")]
                cases += [(m, scale) for m in ("recovery_f1", EXCESS) for scale in SCALES]
                for metric, group in cases:
                    if (found := paired(a, b, metric, group, n_boot)) is not None:
                        keys = (world, variant, baseline, metric, group)
                        rows.append((*keys, found.diff, found.lo, found.hi))
    columns = ["world", "variant", "baseline", "metric", "group", "diff", "lo", "hi"]
    return pd.DataFrame(rows, columns=columns)


def paired(
    a: pd.DataFrame, b: pd.DataFrame, metric: str, group: str, n_boot: int
) -> Interval | None:
    """a − b of one metric with its paired bootstrap interval over documents and shared seeds;
    ``recovery_f1_excess`` is F1 beyond its frequency-matched null. None where they share no rows."""
    plain = "recovery_f1" if metric == EXCESS else metric
    sides = shared(*(rows_of(frame, plain, group) for frame in (a, b)))
    if sides[0].empty:
        return None
    nulls = None
    if metric == EXCESS:
        nulls = tuple(rows_of(frame, "recovery_f1_matched", group) for frame in (a, b))
    return paired_bootstrap(*sides, n_boot=n_boot, nulls=nulls)


def told(row: Any) -> str:
    """What a row of :func:`differences` says: the measure, the difference, its interval, and
    whether it is one."""
    measures = {
        "fvu": "unexplained variance",
        "smoothness": "smoothness",
        "recovery_f1": f"F1 of {row.group} latents",
        EXCESS: f"F1 of {row.group} latents beyond frequency",
    }
    verdict = "a difference" if row.lo > 0 or row.hi < 0 else "no difference shown"
    return f"{measures[row.metric]}: {row.diff:+.3f} [{row.lo:+.3f}, {row.hi:+.3f}] ({verdict})"


def rows_of(documents: pd.DataFrame, metric: str, group: str) -> pd.DataFrame:
    """Document rows of one metric: group ``all``, or every ``group:label=class``."""
    rows = documents[documents["metric"] == metric]
    if group != "all":
        rows = rows[rows["group"].str.startswith(f"{group}:")]
    return rows


def shared(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of both whose (seed, group) the other has too."""
    keys = [pd.MultiIndex.from_frame(side[["seed", "group"]]) for side in (a, b)]
    return a[keys[0].isin(keys[1])], b[keys[1].isin(keys[0])]
