"""Which system differs from which, and by a verdict that another seed cannot turn."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from lab.measures.stats import Interval, Sums, holm, paired_bootstrap
from lab.results.metrics import VERDICTS, metric, verdict
from lab.results.systems import is_null
from lab.results.tidy import OWN, prepare

BASELINES = ("topk", "batchtopk", "rounds", "ema(topk)", "average(topk)", "ema(rounds)")
"""What every system is compared with, where it was run: static ones, and what an EMA gives them."""
KEYS = ["world", "variant", "baseline", "metric", "group"]
COLUMNS = [*KEYS, *Interval._fields, "p_holm", "verdict"]


def systems(documents: pd.DataFrame) -> pd.DataFrame:
    """Document rows with their system, ``ema(topk)`` for a reading other than the code itself."""
    keys = ("world", "variant", "ablation", "doc", "metric", "group")
    return prepare(documents, keys)


def differences(
    documents: pd.DataFrame, baselines: Sequence[str] = BASELINES, n_boot: int = 1000
) -> pd.DataFrame:
    """Every system, by its own code, against each baseline, its own EMA and its shuffled null.

    For every metric of the document rows in which more or less is better, by world and group, over
    documents and the seeds that both have. The family of Holm's correction is one metric and group
    of one world against one baseline. Columns: :data:`COLUMNS`.
    """
    main = systems(documents)
    main = main[main["ablation"] == ""]
    rows = []
    for (world, name, group), here in main.groupby(["world", "metric", "group"], sort=False):
        if not metric(name).better:
            continue
        found = {system: Sums(rows) for system, rows in here.groupby("system", sort=False)}
        for system in (name for name in found if not is_null(name)):
            mine = found[system]
            others = (*baselines, f"ema({system})", f"shuffled({system})")
            for baseline in (b for b in others if b in found and b != system):
                if (gap := _compared(mine, found[baseline], n_boot)) is not None:
                    rows.append((world, system, baseline, name, group, *gap))
    return judged(pd.DataFrame(rows, columns=COLUMNS[:-2]))


def judged(table: pd.DataFrame, family: Sequence[str] = ("world", "baseline", "metric", "group")):
    """The table with ``p_holm`` within each family, and the ``verdict``.

    equivalent: the interval lies within the metric's smallest effect; better or worse: it excludes
    0, and p_holm is below .05; else undecided, and so is all that rests on one seed.
    """
    by = table.groupby(list(family), sort=False)["p"]
    table = table.assign(p_holm=by.transform(lambda p: holm(p.to_numpy())) if len(table) else [])
    verdicts = []
    for row in table.itertuples():
        said = verdict(row.metric, row.lo, row.hi)
        sure = said == "equivalent" or row.p_holm < 0.05
        verdicts.append(said if sure and not np.isnan(row.p) else "undecided")
    return table.assign(verdict=verdicts)


def paired(a: pd.DataFrame, b: pd.DataFrame, name: str, group: str, n_boot: int) -> Interval | None:
    """a − b of one metric and group with its interval, of the codes themselves where there are
    several readings; None where they share no rows."""
    sides = [f[(f["metric"] == name) & (f["group"] == group)] for f in (a, b)]
    sides = [f[f["reading"] == OWN] if "reading" in f else f for f in sides]
    if any(f.empty for f in sides):
        return None
    return _compared(Sums(sides[0]), Sums(sides[1]), n_boot)


def _compared(a: Sums, b: Sums, n_boot: int) -> Interval | None:
    """a − b over the seeds (and models) that both have; None where they share none."""
    a, b = a.only(b.cells), b.only(a.cells)
    return paired_bootstrap(a, b, n_boot) if len(a.cells) else None


def told(row: Any) -> str:
    """What a row of :func:`differences` says: measure, difference, interval, verdict."""
    what = metric(row.metric).phrase.format(group=row.group)
    return f"{what}: {row.diff:+.3f} [{row.lo:+.3f}, {row.hi:+.3f}] ({row.verdict})"


def against_itself(
    documents: pd.DataFrame, twins: Sequence[tuple[str, str]] = (("topk", "causal"),), n_boot=1000
) -> pd.DataFrame:
    """The A/A test: comparisons of systems that are the same, judged as any others.

    ``twins``: systems that differ in name alone (``causal`` without feedback, as it is by default),
    paired by seed; and of every system with four seeds or more, all ways to part them into halves (at most
    ten), each half's seeds renumbered. Columns of :func:`differences`; ``baseline`` says which.
    """
    rows = systems(documents)
    rows = rows[rows["ablation"] == ""]
    pairs = list(_halves(rows))
    for one, other in twins:
        sides = (rows[rows["system"] == name] for name in (other, one))
        pairs.append((f"{other}, its twin", one, *sides))
    found = []
    for label, system, a, b in pairs:
        for key, mine in a.groupby(["world", "metric", "group"], sort=False):
            world, name, group = key
            if metric(name).better:
                same = (b["world"] == world) & (b["metric"] == name) & (b["group"] == group)
                gap = _compared(Sums(mine), Sums(b[same]), n_boot) if same.any() else None
                if gap is not None:
                    found.append((world, system, label, name, group, *gap))
    # As many comparisons in a family as a table makes against one baseline.
    family = ("world", "variant", "metric", "group")
    return judged(pd.DataFrame(found, columns=COLUMNS[:-2]), family)


def _halves(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    for system, here in rows.groupby("system", sort=False):
        seeds = sorted(here["seed"].unique())
        half = len(seeds) // 2
        if half < 2:
            continue
        for chosen in list(combinations(seeds, half))[:10]:
            others = [seed for seed in seeds if seed not in chosen][:half]
            sides = [
                here[here["seed"].isin(part)].assign(seed=lambda f, p=part: f["seed"].map(p.index))
                for part in (list(chosen), others)
            ]
            yield f"{system}, seeds {[int(s) for s in chosen]}", system, *sides


def verdict_shares(table: pd.DataFrame) -> pd.Series:
    """Share of each verdict; of an A/A test, better and worse together should be at most 5%."""
    return table["verdict"].value_counts(normalize=True).reindex(VERDICTS, fill_value=0.0)
