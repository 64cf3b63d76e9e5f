"""Differences between two systems, with an interval over documents, seeds and world models."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

EVERY_DOCUMENT = ("fvu", "l0", "ce_sae", "ce_delta")
"""Metrics with a row for every document evaluated: a missing one means other tokens."""


class Interval(NamedTuple):
    """A paired difference a − b with its interval and what it rests on."""

    diff: float
    lo: float
    hi: float
    p: float
    """Two-sided, of no difference; NaN for one seed, which leaves the spread of seeds unknown."""
    n_documents: int
    n_seeds: int

    @property
    def differs(self) -> bool:
        """True when the interval excludes 0."""
        return self.lo > 0 or self.hi < 0


def paired_bootstrap(
    a_rows: pd.DataFrame,
    b_rows: pd.DataFrame,
    n_boot: int = 1000,
    seed: int = 0,
    *,
    level: float = 0.95,
    nulls: tuple[pd.DataFrame, pd.DataFrame] | None = None,
) -> Interval:
    r"""The difference between two systems, paired by document and seed, over both.

    a_rows, b_rows: document rows of ONE metric each, columns doc, num, den, group and, optionally,
    seed and model (the seed of the world's language model, whose documents are its own). A cell is
    a (model, seed, group); its value is Σ num / Σ den over documents, a system's value the mean
    over cells. ``nulls``: rows whose values are taken off a and off b.

    The variance of diff is V_d + V_s: V_d is that of ``n_boot`` resamples of the documents, the
    same ones for a, b and every cell, a document that is absent from a cell adding 0 to both sums;
    V_s = s² / S, with s² the spread of the difference over S seeds (over models, where there are
    several: their spread holds the seeds' too). The interval is Student's t with Satterthwaite's
    degrees of freedom, since a percentile of three seeds covers too little. One seed leaves V_s
    out, so that the interval is about these trained SAEs alone.

    Raises ValueError when columns are missing, metrics are mixed, or seeds, groups or documents are
    not the same for a and b.
    """
    a, b = _checked(a_rows, "a"), _checked(b_rows, "b")
    cells = _same(a, b, ["model", "seed", "group"], "seeds and groups")
    every = "metric" in a and a["metric"].iloc[0] in EVERY_DOCUMENT
    docs = _same(a, b, ["model", "doc"], "documents", whole=every)
    sides = [(1, a), (-1, b)]
    sides += [(s, _checked(r, "the null")) for s, r in zip((-1, 1), nulls or (), strict=False)]
    sums = [(sign, *_matrices(rows, docs, cells)) for sign, rows in sides]

    def gaps(weight_BD: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = (s * (weight_BD @ num) / (weight_BD @ den) for s, num, den in sums)
            gap = sum(parts, np.zeros(()))
        return np.where(np.isfinite(gap), gap, np.nan)

    whole_C = gaps(np.ones((1, len(docs))))[0]
    if np.isnan(whole_C).all():
        raise ValueError("every denominator of a or b is 0; there is nothing to compare")
    models = cells.get_level_values("model")
    level_of = models if models.nunique() > 1 else cells.get_level_values("seed")
    means = pd.Series(whole_C).groupby(level_of).mean().to_numpy()
    diff, drawn = float(np.nanmean(whole_C)), []
    generator, n = np.random.default_rng(seed), len(docs)
    for start in range(0, n_boot, 500):
        size = min(500, n_boot - start)
        drawn.append(gaps(generator.multinomial(n, np.full(n, 1 / n), size=size).astype(float)))
    with np.errstate(invalid="ignore"):
        values = np.concatenate(drawn)
        values = values[~np.isnan(values).all(1)]
        v_documents = float(np.nanmean(values, 1).var()) if len(values) > 1 else 0.0
    s = len(means)
    v_seeds = float(means.var(ddof=1)) / s if s > 1 else 0.0
    v = v_documents + v_seeds
    if v <= (1e-9 * max(np.abs(whole_C).max(initial=0), 1e-30)) ** 2:
        known = np.nan if s < 2 and diff else float(diff == 0)
        return Interval(diff, diff, diff, known, n, s)
    inverse = v_seeds**2 / max(s - 1, 1) + v_documents**2 / max(n - 1, 1)
    df, se = v**2 / inverse, np.sqrt(v)
    half = float(stats.t.ppf((1 + level) / 2, df) * se)
    p = float(2 * stats.t.sf(abs(diff) / se, df)) if s > 1 else np.nan
    return Interval(diff, diff - half, diff + half, p, n, s)


def holm(p: np.ndarray) -> np.ndarray:
    """p values of a family, adjusted by Holm (1979): p_(i) · (m − i + 1), never falling, at most 1.

    NaN stays NaN and counts as no member.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)
    order = order[~np.isnan(p[order])]
    adjusted = np.full(len(p), np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else []
    return adjusted


def _checked(rows: pd.DataFrame, side: str) -> pd.DataFrame:
    missing = [c for c in ("doc", "group", "num", "den") if c not in rows]
    if missing or rows.empty:
        lacks = f"lack {', '.join(missing)}" if missing else "are empty"
        raise ValueError(f"document rows of {side} {lacks}; allowed are non-empty rows with both")
    if "metric" in rows and rows["metric"].nunique() > 1:
        raise ValueError(f"document rows of {side} mix metrics {sorted(rows['metric'].unique())}")
    return rows.assign(**{name: 0 for name in ("model", "seed") if name not in rows})


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
    i = docs.get_indexer(pd.MultiIndex.from_frame(rows[["model", "doc"]]))
    j = cells.get_indexer(pd.MultiIndex.from_frame(rows[["model", "seed", "group"]]))
    num, den = np.zeros((2, len(docs), len(cells)))
    np.add.at(num, (i, j), rows["num"].to_numpy(float))
    np.add.at(den, (i, j), rows["den"].to_numpy(float))
    return num, den
