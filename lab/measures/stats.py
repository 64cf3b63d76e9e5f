"""Differences between two systems, with an interval over documents, seeds and world models."""

from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import Any, NamedTuple

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


class Sums:
    """Σ num and Σ den of ONE metric by document and cell, a cell being a (model, seed, group).

    rows: columns doc, num, den, group and, optionally, seed and model (the seed of the world's
    language model, whose documents are its own). Raises ValueError when there is no row, columns
    are missing or metrics are mixed.
    """

    def __init__(self, rows: pd.DataFrame):
        missing = [c for c in ("doc", "group", "num", "den") if c not in rows]
        if missing or rows.empty:
            raise ValueError(f"document rows lack {', '.join(missing) or 'any row'}; give them")
        if "metric" in rows and rows["metric"].nunique() > 1:
            raise ValueError(f"document rows mix metrics {sorted(rows['metric'].unique())}")
        self.every = "metric" in rows and rows["metric"].iloc[0] in EVERY_DOCUMENT
        self.docs, doc = _numbered(rows, "model", "doc")
        self.cells, cell = _numbered(rows, "model", "seed", "group")
        self.sums_3DC = np.zeros((3, len(self.docs), len(self.cells)))  # num, den, and rows
        for part_DC, value in zip(self.sums_3DC, (rows["num"], rows["den"], 1.0), strict=True):
            np.add.at(part_DC, (doc, cell), value)
        self._drawn: dict[Any, np.ndarray] = {}

    def only(self, cells: Sequence[tuple]) -> "Sums":
        """The sums of those of its cells alone that are among ``cells``."""
        keep = [i for i, cell in enumerate(self.cells) if cell in cells]
        if len(keep) == len(self.cells):
            return self
        part, part_3DC = copy(self), self.sums_3DC[:, :, keep]
        keep_D = np.flatnonzero(part_3DC[2].any(1))
        part.cells, part.docs = [self.cells[i] for i in keep], [self.docs[i] for i in keep_D]
        part.sums_3DC, part._drawn = part_3DC[:, keep_D], {}
        return part

    def over(self, docs: list, cells: list, n_boot: int, seed: int) -> np.ndarray:
        """num and den of all documents, then of every resample [2, 1 + n_boot, cells].

        A document that is absent from a cell adds 0 to both. Kept where it is its own documents.
        """
        own = docs == self.docs and cells == self.cells and (n_boot, seed)
        if own and own in self._drawn:
            return self._drawn[own]
        placed_2DC = np.zeros((2, len(docs), len(cells)))
        at = np.ix_((0, 1), _places(self.docs, docs), _places(self.cells, cells))
        placed_2DC[at] = self.sums_3DC[:2]
        drawn = resamples(len(docs), n_boot, seed) @ placed_2DC
        if own:
            self._drawn[own] = drawn
        return drawn


def _numbered(rows: pd.DataFrame, *names: str) -> tuple[list[tuple], list[int]]:
    """The distinct keys as they appear, and the place of every row's among them."""
    place: dict[tuple, int] = {}
    columns = [rows[name].tolist() if name in rows else [0] * len(rows) for name in names]
    at = [place.setdefault(key, len(place)) for key in zip(*columns, strict=True)]
    return list(place), at


def _places(of: list, among: list) -> list[int]:
    """Where each of one list of keys stands in another."""
    place = {key: i for i, key in enumerate(among)}
    return [place[key] for key in of]


@lru_cache(maxsize=4)
def resamples(n: int, n_boot: int, seed: int) -> np.ndarray:
    """How often each of n documents is drawn [1 + n_boot, n]; in the first row, once."""
    generator = np.random.default_rng(seed)
    sizes = [min(500, n_boot - start) for start in range(0, n_boot, 500)]
    drawn = [generator.multinomial(n, np.full(n, 1 / n), size=size) for size in sizes]
    return np.concatenate([np.ones((1, n)), *drawn])


def paired_bootstrap(
    a: pd.DataFrame | Sums, b: pd.DataFrame | Sums, n_boot: int = 1000, seed: int = 0
) -> Interval:
    r"""The 95% interval of the difference between two systems, paired by document and seed.

    a, b: document rows of :class:`Sums`, or those already summed. The value of a cell is Σ num / Σ
    den over documents, a system's value the mean over cells.

    The variance of diff is V_d + V_s: V_d is that of ``n_boot`` resamples of the documents, the
    same ones for a, b and every cell; V_s = s² / S, with s² the spread of the difference over S
    seeds (over models, where there are several: their spread holds the seeds' too). The interval is
    Student's t with Satterthwaite's degrees of freedom, since a percentile of three seeds covers
    too little. One seed leaves V_s out, so that the interval is about these trained SAEs alone.

    Raises ValueError when seeds, groups or documents are not the same for a and b.
    """
    a, b = (side if isinstance(side, Sums) else Sums(side) for side in (a, b))
    cells = _same(a.cells, b.cells, "seeds and groups")
    docs = _same(a.docs, b.docs, "documents", whole=a.every)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [num / den for num, den in (s.over(docs, cells, n_boot, seed) for s in (a, b))]
        gap_BC = ratios[0] - ratios[1]
        gap_BC[~np.isfinite(gap_BC)] = np.nan
        whole_C, values = gap_BC[0], gap_BC[1:]
        if np.isnan(whole_C).all():
            raise ValueError("every denominator of a or b is 0; there is nothing to compare")
        values = values[~np.isnan(values).all(1)]
        v_documents = float(np.nanmean(values, 1).var()) if len(values) > 1 else 0.0
        several = len({model for model, *_ in cells}) > 1
        level_C = np.unique([cell[0 if several else 1] for cell in cells], return_inverse=True)[1]
        counted_C = np.isfinite(whole_C)
        means = np.bincount(level_C, np.where(counted_C, whole_C, 0)) / np.bincount(
            level_C, counted_C
        )
    diff, s, n = float(np.nanmean(whole_C)), len(means), len(docs)
    v_seeds = float(means.var(ddof=1)) / s if s > 1 else 0.0
    v = v_documents + v_seeds
    if v <= (1e-9 * max(np.abs(whole_C).max(initial=0), 1e-30)) ** 2:
        known = np.nan if s < 2 and diff else float(diff == 0)
        return Interval(diff, diff, diff, known, n, s)
    inverse = v_seeds**2 / max(s - 1, 1) + v_documents**2 / max(n - 1, 1)
    df, se = v**2 / inverse, np.sqrt(v)
    half = float(stats.t.ppf(0.975, df) * se)
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


def _same(left: list, right: list, what: str, whole: bool = True) -> list:
    if left == right:
        return left
    shared, every = set(left) & set(right), set(left) | set(right)
    # F1 rows with an empty denominator are not written, so a document may be on one side alone
    if not shared or (whole and len(shared) < len(every)):
        odd = [str(k) for k in sorted(every - shared)[:3]]
        raise ValueError(f"a and b do not have the same {what} ({', '.join(odd)} differ)")
    return sorted(every)
