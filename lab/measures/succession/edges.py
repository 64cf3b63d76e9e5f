r"""Which event depends on which, at which lag: a table of edges with effect sizes and p-values.

For binary series i and j and all positions t whose t − ℓ lies in the same document:

    C     = p(i_t | j_{t−ℓ})
    TE    = Σ p(i_t, i_{t−1}, j_{t−ℓ}) log2 [ p(i_t | i_{t−1}, j_{t−ℓ}) / p(i_t | i_{t−1}) ]

TE is Schreiber's (2000) transfer entropy, in bits, with one step of the target's own past. An edge
has to beat two nulls at once. In the one j is shifted in a circle, in every document by a random
offset of its own, which keeps both series' frequencies and autocorrelations, and the topic they may
share; in the other j is that of another document (of the same kind, where kinds are given), which
keeps the place in a document that both may have. Edges to test are chosen on every other document
and measured on the rest, so that choosing them does not make them significant.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from lab.measures.reading import row
from lab.measures.succession.events import Activity, exchanged, shuffled
from tsae.saes.config import require

ENOUGH = 10
"""Shifts that reach the observed value after which an edge's p-value is settled."""
LEVEL = 0.05
"""The q below which an edge counts as found."""
MANY = 20
"""Documents from which on a source is also put into another one."""
TESTED = 50
"""Edges tested in a text in which nothing depends."""


def transfer_entropy(n_EJIP: np.ndarray) -> np.ndarray:
    """TE in bits of E tables of counts [E, 2, 2, 2] over (j_{t−ℓ}, i_t, i_{t−1})."""
    n = n_EJIP.sum((1, 2, 3), keepdims=True)
    given_past = n_EJIP.sum((1, 2), keepdims=True)
    of_both = n_EJIP.sum(2, keepdims=True)
    of_target = n_EJIP.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = n_EJIP * np.log2(n_EJIP * given_past / (of_both * of_target))
    return np.where(n_EJIP > 0, terms, 0.0).sum((1, 2, 3)) / np.maximum(n[:, 0, 0, 0], 1)


def excess(n_EJIP: np.ndarray) -> np.ndarray:
    """TE, negative where the target is rarer after the source than without it."""
    n_source, n_both = n_EJIP[:, 1].sum((1, 2)), n_EJIP[:, 1, 1].sum(1)
    n, n_target = n_EJIP.sum((1, 2, 3)), n_EJIP[:, :, 1].sum((1, 2))
    return np.where(n_both * n >= n_source * n_target, 1, -1) * transfer_entropy(n_EJIP)


def candidates(
    activity: Activity, lags: Iterable[int], max_edges: int, min_count: int, min_z: float
) -> np.ndarray:
    """Rows (source, target, lag) [E, 3] that rise most above chance, strongest first: n ≥
    ``min_count`` co-occurrences meet e expected ones and z = (n − e) / √e ≥ ``min_z``."""
    A, piece = activity.active_NF.tocsr().astype(np.int32), activity.piece_N
    found, scores = [np.zeros((0, 3), np.int64)], [np.zeros(0)]
    for lag in (lag for lag in lags if lag < len(piece)):
        linked = np.flatnonzero(piece[lag:] == piece[:-lag])
        before, now = A[linked], A[linked + lag]
        together = (before.T @ now).tocoo()
        source, target, n = together.row, together.col, together.data
        expected = before.sum(0)[source] * (now.sum(0)[target] / max(len(linked), 1))
        z = (n - expected) / np.sqrt(expected)
        keep = (source != target) & (n >= min_count) & (z >= min_z)
        found.append(np.stack([source, target, np.full(len(n), lag)], 1)[keep])
        scores.append(z[keep])
    order = np.argsort(-np.concatenate(scores), kind="stable")[:max_edges]
    return np.concatenate(found).astype(np.int64)[order]


class Counter:
    """Tables of counts of given edges, with the sources as they are or as in a null."""

    def __init__(self, activity: Activity, edges_E3: np.ndarray):
        A, piece = activity.active_NF, activity.piece_N
        self.edges_E3 = edges_E3
        first = np.flatnonzero(np.r_[True, piece[1:] != piece[:-1]])
        length = np.diff(np.r_[first, len(piece)])
        self.piece_N = np.repeat(np.arange(len(first)), length)
        self.first_P, self.length_P = first, length
        # State 2 i_t + i_{t−1} of every target, in one row each.
        targets, self.row_E = np.unique(edges_E3[:, 1], return_inverse=True)
        on = A[:, targets].toarray().T.astype(np.uint8)
        past = np.zeros_like(on)
        past[:, 1:] = on[:, :-1] * (piece[1:] == piece[:-1])
        self.state_KN = 2 * on + past
        # n of each state over the positions that have a predecessor at the edge's lag.
        place_N = np.arange(len(piece)) - first[self.piece_N]
        self.all_E4 = np.zeros((len(edges_E3), 4))
        for lag in np.unique(edges_E3[:, 2]):
            states = self.state_KN[:, place_N >= lag]
            per_row = np.stack([(states == s).sum(1) for s in range(4)], 1)
            of_lag = edges_E3[:, 2] == lag
            self.all_E4[of_lag] = per_row[self.row_E[of_lag]]
        times = [A.indices[A.indptr[s] : A.indptr[s + 1]] for s in edges_E3[:, 0]]
        self.edge_X = np.repeat(np.arange(len(times)), [len(t) for t in times])
        self.time_X = np.concatenate([*times, np.zeros(0, np.int64)]).astype(np.int64)

    def tables(
        self,
        keep_E: np.ndarray,
        shift_P: np.ndarray | None = None,
        document_P: np.ndarray | None = None,
    ) -> np.ndarray:
        """[E', 2, 2, 2] over (j, i_t, i_{t−1}) of the edges ``keep_E`` (bool).

        Sources are shifted by ``shift_P`` within their document, or put into ``document_P``.
        """
        chosen = keep_E[self.edge_X]
        edge, time = self.edge_X[chosen], self.time_X[chosen]
        piece = self.piece_N[time]
        place = time - self.first_P[piece]
        if shift_P is not None:
            place = (place + shift_P[piece]) % self.length_P[piece]
        if document_P is not None:
            piece = document_P[piece]
        place = place + self.edges_E3[edge, 2]
        inside = place < self.length_P[piece]
        edge, place, piece = edge[inside], place[inside], piece[inside]
        state = self.state_KN[self.row_E[edge], self.first_P[piece] + place]
        size = 4 * len(keep_E)
        active = np.bincount(4 * edge + state, minlength=size).reshape(-1, 4)[keep_E]
        both = np.stack([self.all_E4[keep_E] - active, active], 1)
        return both.reshape(-1, 2, 2, 2)

    def shifts(self, rng: np.random.Generator) -> np.ndarray:
        """A random offset from 0 to length − 1 for every document. 0 is one of them: without it p
        would be too small for pairs that few documents hold."""
        return (rng.random(len(self.length_P)) * self.length_P).astype(np.int64)

    def others(self, rng: np.random.Generator, kind_N: np.ndarray) -> np.ndarray:
        """A random document of the same kind (that of its first token) for every document."""
        kind_P, other_P = kind_N[self.first_P], np.arange(len(self.first_P))
        for kind in np.unique(kind_P):
            other_P[kind_P == kind] = rng.permutation(other_P[kind_P == kind])
        return other_P


def dependencies(
    activity: Activity,
    *,
    lags: Iterable[int] = (1, 2, 3, 4),
    edges: np.ndarray | None = None,
    kind_N: np.ndarray | None = None,
    max_edges: int = 2000,
    min_count: int = 10,
    min_z: float = 3.0,
    shifts: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """The edges of the module's equations, those with the largest TE first.

    Columns: source, target, lag, C, te, p, q. p = (1 + reached) / (1 + shifts), where reached
    counts pairs of null values of the signed TE of which one is no smaller; an edge that was reached ``ENOUGH``
    times is settled earlier (Besag & Clifford 1991), which keeps p valid. q is p after Benjamini &
    Hochberg over the edges of the table. ``shifts``: None for 20 times the edges, with which a
    single true edge can reach q = .05, but from 200 to 2000; fewer are drawn when all edges still
    open are significant at q = .05 whatever comes. ``edges`` [E, 3] (source, target, lag) replaces
    the candidates of the first half; ``kind_N``: the kind of each position's document. Raises
    ValueError on a bad number.
    """
    lags = tuple(lags)
    require(bool(lags) and min(lags) >= 1, "lags", lags, "whole numbers of at least 1")
    if edges is None:
        edges = candidates(activity.half(False), lags, max_edges, min_count, min_z)
    shifts = shifts or min(max(200, 20 * len(edges)), 2000)
    tested = activity.half(True)
    counter = Counter(tested, edges)
    kind_n = np.zeros(len(tested.piece_N), int)
    if kind_N is not None:
        kind_n = kind_N[np.isin(activity.piece_N, tested.piece_N)]
    n = counter.tables(np.ones(len(edges), bool))
    observed, rng = excess(n), np.random.default_rng(seed)
    reached, drawn = np.zeros(len(edges)), np.zeros(len(edges))
    for done in range(shifts):
        open_E = reached < ENOUGH
        # Settled as well: all open edges pass Benjamini & Hochberg even if each is reached again.
        if ENOUGH * len(edges) <= LEVEL * int(open_E.sum()) * (done + 1) or not open_E.any():
            break
        shifted = counter.tables(open_E, counter.shifts(rng))
        null = excess(shifted)
        if len(counter.length_P) >= MANY:
            moved = counter.tables(open_E, document_P=counter.others(rng, kind_n))
            null = np.maximum(null, excess(moved))
        # Equal tables may differ in the last bit.
        reached[open_E] += null >= observed[open_E] - 1e-12
        drawn[open_E] += 1
    p = np.where(reached >= ENOUGH, reached / np.maximum(drawn, 1), (reached + 1) / (drawn + 1))
    share = n[:, 1, 1].sum(1) / np.maximum(n[:, 1].sum((1, 2)), 1)
    table = pd.DataFrame(edges, columns=["source", "target", "lag"])
    q = false_discovery_control(p) if len(p) else p
    table = table.assign(C=share, te=transfer_entropy(n), p=p, q=q)
    return table.sort_values("te", ascending=False, kind="stable", ignore_index=True)


def direct(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with a column ``direct``: False where an edge is explained by two stronger ones.

    j → i at lag ℓ is indirect when some k has edges j → k at a and k → i at b with a + b = ℓ, and
    TE summed over lags is larger for both pairs than for j → i: by the data processing inequality
    the end of a chain j → k → i tells no more of its start than its middle does (ARACNE: Margolin
    et al. 2006). Give significant rows only.
    """
    total = table.groupby(["source", "target"])["te"].sum().to_dict()
    columns = list(zip(table["source"], table["target"], table["lag"], strict=True))
    rows, steps = set(columns), dict[int, list[tuple[int, int]]]()
    for s, t, lag in columns:
        steps.setdefault(s, []).append((t, lag))

    def explained(s: int, t: int, lag: int) -> bool:
        return any(
            (k, t, lag - a) in rows and min(total[s, k], total[k, t]) > total[s, t]
            for k, a in steps[s]
            if a < lag and k != t
        )

    return table.assign(direct=np.array([not explained(*edge) for edge in columns], bool))


def false_discovery(
    activity: Activity, kind_N: np.ndarray, texts: int, group: str, lags: Iterable[int], seed: int
) -> list[dict[str, Any]]:
    """How often edges are found where there are none.

    Rows with group ``group|shuffled`` and ``group|exchanged``: ``unchained_false_texts``, the share
    of ``texts`` in which any edge has q ≤ .05, which is the false discovery rate where nothing is
    true.
    """
    rng, rows, lags = np.random.default_rng(seed), [], tuple(lags)
    for name in ("shuffled", "exchanged"):
        found = 0
        for _ in range(texts):
            moved_F = rng.permutation(activity.active_NF.shape[1]) % 2 == 0
            text, kinds = shuffled(activity, rng), None
            if name == "exchanged":
                text, kinds = exchanged(activity, kind_N, moved_F, rng)
            # The most suspect ones, however few their co-occurrences; few enough that one alone can
            # reach q = .05 with the shifts that are drawn.
            edges = candidates(text.half(False), lags, 4 * TESTED, 1, 0.0)
            if name == "exchanged":
                edges = edges[moved_F[edges[:, 0]] != moved_F[edges[:, 1]]]
            q = dependencies(text, lags=lags, edges=edges[:TESTED], kind_N=kinds, seed=seed)["q"]
            found += bool((q <= LEVEL).any())
        rows.append(row("unchained_false_texts", f"{group}|{name}", found / texts, texts))
    return rows
