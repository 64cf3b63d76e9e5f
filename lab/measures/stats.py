"""Seeds, intervals, and when a difference may be called one."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

EVERY_DOCUMENT = ("fvu", "l0", "ce_sae", "ce_clean")
"""Metrics with a row for every document evaluated: a missing one means other tokens."""


class Interval(NamedTuple):
    """A paired difference a − b with its 95% (or other) percentile interval."""

    diff: float
    lo: float
    hi: float
    n_documents: int
    n_cells: int

    @property
    def differs(self) -> bool:
        """True when the interval excludes 0."""
        return self.lo > 0 or self.hi < 0


def paired_bootstrap(
    a_rows: pd.DataFrame,
    b_rows: pd.DataFrame,
    n_boot: int = 2000,
    seed: int = 0,
    *,
    level: float = 0.95,
    resample_seeds: bool = False,
    nulls: tuple[pd.DataFrame, pd.DataFrame] | None = None,
) -> Interval:
    """Bootstrap over documents of the difference between two SAEs, paired by document and seed.

    a_rows, b_rows: document rows of ONE metric each, columns doc, num, den, group and, optionally,
    seed. A cell is a (seed, group) pair; its value is the ratio of sums r = Σ num / Σ den over
    documents, and an SAE's value is the mean of r over cells (so F1 of 100 variables and 3 seeds
    is a mean of 300). Each resample draws documents with replacement, the same ones for a, b and
    every cell: diff* = mean_cells(r_a* − r_b*), over cells with both denominators above 0. A
    document that is absent from a cell adds 0 to both sums there; a resample without any such
    cell is passed over. ``resample_seeds`` draws the
    seeds too; without it the claim is about these trained SAEs. ``nulls`` holds the null rows of
    a and of b: then r is the excess over the null, so that a difference in how often latents fire
    is not taken for one in what they say.

    Returns diff (all documents once) and the percentile interval. Raises ValueError when columns
    are missing, metrics are mixed, or seeds, groups or documents are not the same for a and b.
    """
    a, b = _checked(a_rows, "a"), _checked(b_rows, "b")
    cells = _same(a, b, ["seed", "group"], "seeds and groups")
    every = "metric" in a and a["metric"].iloc[0] in EVERY_DOCUMENT
    docs = _same(a, b, ["doc"], "documents", whole=every)
    a_num, a_den = _matrices(a, docs, cells)
    b_num, b_den = _matrices(b, docs, cells)
    minus = [_matrices(_checked(rows, "the null"), docs, cells) for rows in nulls or ()]
    seeds = cells.get_level_values("seed")
    which_seed = pd.Categorical(seeds).codes.astype(int)
    n_docs, n_seeds = len(docs), which_seed.max() + 1
    generator = np.random.default_rng(seed)

    def difference(weight: np.ndarray, seed_weight: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = (weight @ a_num) / (weight @ a_den) - (weight @ b_num) / (weight @ b_den)
            for sign, (num, den) in zip((-1, 1), minus, strict=False):
                gap = gap + sign * (weight @ num) / (weight @ den)
        cell_weight = seed_weight[:, which_seed] * np.isfinite(gap)
        total = cell_weight.sum(1)
        sums = (np.nan_to_num(gap, posinf=0, neginf=0) * cell_weight).sum(1)
        return np.divide(sums, total, out=np.full(len(sums), np.nan), where=total > 0)

    once = np.ones((1, n_seeds))
    diff = float(difference(np.ones((1, n_docs)), once)[0])
    if np.isnan(diff):
        raise ValueError("every denominator of a or b is 0; there is nothing to compare")
    found = []
    for start in range(0, n_boot, 500):
        n = min(500, n_boot - start)
        weight = generator.multinomial(n_docs, np.full(n_docs, 1 / n_docs), size=n).astype(float)
        seed_weight = np.broadcast_to(once, (n, n_seeds))
        if resample_seeds:
            seed_weight = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n)
        found.append(difference(weight, seed_weight))
    lo, hi = np.nanquantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return Interval(diff, float(lo), float(hi), n_docs, len(cells))


def _checked(rows: pd.DataFrame, side: str) -> pd.DataFrame:
    missing = [c for c in ("doc", "group", "num", "den") if c not in rows]
    if missing or rows.empty:
        lacks = f"lack {', '.join(missing)}" if missing else "are empty"
        raise ValueError(f"document rows of {side} {lacks}; allowed are non-empty rows with both")
    if "metric" in rows and rows["metric"].nunique() > 1:
        raise ValueError(f"document rows of {side} mix metrics {sorted(rows['metric'].unique())}")
    return rows if "seed" in rows else rows.assign(seed=0)


def _same(
    a: pd.DataFrame, b: pd.DataFrame, keys: list[str], what: str, whole: bool = True
) -> pd.Index:
    left, right = (pd.MultiIndex.from_frame(f[keys].drop_duplicates()) for f in (a, b))
    shared, every = left.intersection(right), left.union(right)
    # F1 rows with an empty denominator are not written, so a document may be on one side alone
    if len(shared) == 0 or (whole and len(shared) < len(every)):
        odd = [str(k) for k in every.difference(shared)[:3]]
        raise ValueError(f"a and b do not have the same {what} ({', '.join(odd) or 'none'} differ)")
    return every


def _matrices(rows: pd.DataFrame, docs: pd.Index, cells: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    i = docs.get_indexer(pd.MultiIndex.from_frame(rows[["doc"]]))
    j = cells.get_indexer(pd.MultiIndex.from_frame(rows[["seed", "group"]]))
    num, den = np.zeros((2, len(docs), len(cells)))
    np.add.at(num, (i, j), rows["num"].to_numpy(float))
    np.add.at(den, (i, j), rows["den"].to_numpy(float))
    return num, den


def mean_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and s / √n of values over seeds (s with n − 1); the error is NaN for one seed."""
    x = np.asarray(values, dtype=float)
    if not len(x):
        raise ValueError("values are empty; allowed is one number a seed")
    error = x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return float(x.mean()), float(error)


def over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """Results table → mean, standard error and number of seeds of every row but for its seed.

    Keys: every column except seed, value and n. Missing keys count as a key of their own.
    """
    keys = [c for c in results.columns if c not in ("seed", "value", "n")]
    grouped = results.groupby(keys, dropna=False, sort=False)["value"]
    return grouped.agg(mean="mean", se="sem", seeds="count").reset_index()
