r"""Which latent depends on which, at which lag: a table of edges with effect sizes and p-values.

For binary series i and j (active or not; with ``onsets``: newly active) and all positions t whose
t − ℓ lies in the same document, with counts turned into probabilities p:

    C     = p(i_t | j_{t−ℓ})                 lift = C / p(i_t)
    TE    = Σ p(i_t, i_{t−1}, j_{t−ℓ}) log2 [ p(i_t | i_{t−1}, j_{t−ℓ}) / p(i_t | i_{t−1}) ]

TE is Schreiber's (2000) transfer entropy, in bits, with one step of the target's own past. Its
null: in every document j is shifted in a circle by a random offset of its own, which keeps both
series' frequencies and autocorrelations, and the topic they may share. Edges to test are chosen on
every other document and measured on the rest, so that choosing them does not make them significant.
Works on the codes of any SAE, and on true labels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from scipy.stats import false_discovery_control
from torch import Tensor

from tsae.saes.base import DOCUMENT, FilledContext, require

ENOUGH = 10
"""Shifts that reach the observed value after which an edge's p-value is settled."""
LEVEL = 0.05
"""The q at which no further shift is drawn once it would change no decision."""


@dataclass(frozen=True)
class Activity:
    """When each latent was active: N consecutive positions, in documents that time does not cross.

    active_NF: sparse booleans (CSC); piece_N: the document of each position, ascending; within it
    positions follow one another without a gap.
    """

    active_NF: scipy.sparse.csc_array
    piece_N: np.ndarray

    @classmethod
    def of(
        cls,
        batches: Iterable[tuple[Tensor, FilledContext]],
        onsets: bool = True,
        threshold: float | Tensor = 0.0,
    ) -> "Activity":
        """From pairs (codes [B, T, F], context); a masked token ends its document.

        ``onsets``: a latent counts only where it was silent at the token before, so that a lag is
        from start to start. ``threshold``, one or [F]: a latent is active above it. Raises
        ValueError when there is no batch.
        """
        parts, pieces, n_pieces = [], [], 0
        for z_BTF, context in batches:
            whole = context.filled(z_BTF)
            mask_BT, new_BT = whole.mask_BT, whole.boundary_BT >= DOCUMENT
            new_BT[:, 1:] |= ~mask_BT[:, :-1]
            piece_N = new_BT.flatten().cumsum(0) + n_pieces
            n_pieces = int(piece_N[-1]) + 1
            on_BTF = z_BTF > threshold
            if onsets:
                before = on_BTF[:, :-1] & ~new_BT[:, 1:, None]
                on_BTF = torch.cat([on_BTF[:, :1], on_BTF[:, 1:] & ~before], 1)
            keep = mask_BT.flatten().cpu()
            parts.append(scipy.sparse.csr_array(on_BTF.flatten(0, 1).cpu()[keep].numpy()))
            pieces.append(piece_N.cpu()[keep].numpy())
        require(len(parts) > 0, "batches", 0, "at least one pair of codes and context")
        return cls(scipy.sparse.vstack(parts).tocsc(), np.concatenate(pieces))

    def half(self, odd: bool) -> "Activity":
        """The documents at odd or even places."""
        keep = (np.unique(self.piece_N, return_inverse=True)[1] % 2 == 1) == odd
        return Activity(self.active_NF.tocsr()[keep].tocsc(), self.piece_N[keep])


def transfer_entropy(n_EJIP: np.ndarray) -> np.ndarray:
    """TE in bits of E tables of counts [E, 2, 2, 2] over (j_{t−ℓ}, i_t, i_{t−1})."""
    n = n_EJIP.sum((1, 2, 3), keepdims=True)
    given_past = n_EJIP.sum((1, 2), keepdims=True)
    of_both = n_EJIP.sum(2, keepdims=True)
    of_target = n_EJIP.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = n_EJIP * np.log2(n_EJIP * given_past / (of_both * of_target))
    return np.where(n_EJIP > 0, terms, 0.0).sum((1, 2, 3)) / np.maximum(n[:, 0, 0, 0], 1)


def candidates(
    activity: Activity, lags: tuple[int, ...], max_edges: int, min_count: int, min_z: float
) -> np.ndarray:
    """Rows (source, target, lag) [E, 3] that rise most above chance, strongest first: n ≥
    ``min_count`` co-occurrences meet e expected ones and z = (n − e) / √e ≥ ``min_z``."""
    A, piece = activity.active_NF.tocsr().astype(np.int32), activity.piece_N
    found, scores = [], []
    for lag in lags:
        if lag >= len(piece):
            continue
        linked = np.flatnonzero(piece[lag:] == piece[:-lag])
        before, now = A[linked], A[linked + lag]
        together = (before.T @ now).tocoo()
        n_source, n_target = before.sum(0), now.sum(0)
        source, target, n = together.row, together.col, together.data
        expected = n_source[source] * (n_target[target] / max(len(linked), 1))
        z = (n - expected) / np.sqrt(expected)
        keep = (source != target) & (n >= min_count) & (z >= min_z)
        found.append(np.stack([source, target, np.full(len(n), lag)], 1)[keep])
        scores.append(z[keep])
    if not found:
        return np.zeros((0, 3), np.int64)
    order = np.argsort(-np.concatenate(scores), kind="stable")[:max_edges]
    return np.concatenate(found).astype(np.int64)[order]


class Counter:
    """Tables of counts of given edges, with the sources as they are or shifted in a circle."""

    def __init__(self, activity: Activity, edges_E3: np.ndarray):
        A, piece = activity.active_NF, activity.piece_N
        self.n, self.edges_E3 = len(piece), edges_E3
        first = np.flatnonzero(np.r_[True, piece[1:] != piece[:-1]])
        length = np.diff(np.r_[first, self.n])
        self.piece_N = np.repeat(np.arange(len(first)), length)
        self.first_P, self.length_P = first, length
        # State 2 i_t + i_{t−1} of every target, in one row each.
        targets, self.row_E = np.unique(edges_E3[:, 1], return_inverse=True)
        on = A[:, targets].toarray().T.astype(np.uint8)
        past = np.zeros_like(on)
        past[:, 1:] = on[:, :-1] * (piece[1:] == piece[:-1])
        self.state_KN = 2 * on + past
        # n of each state over the positions that have a predecessor at the edge's lag.
        place_N = np.arange(self.n) - first[self.piece_N]
        self.all_E4 = np.zeros((len(edges_E3), 4))
        for lag in np.unique(edges_E3[:, 2]):
            states = self.state_KN[:, place_N >= lag]
            per_row = np.stack([(states == s).sum(1) for s in range(4)], 1)
            of_lag = edges_E3[:, 2] == lag
            self.all_E4[of_lag] = per_row[self.row_E[of_lag]]

        times = [A.indices[A.indptr[s] : A.indptr[s + 1]] for s in edges_E3[:, 0]]
        self.edge_X = np.repeat(np.arange(len(times)), [len(t) for t in times])
        self.time_X = np.concatenate(times) if times else np.zeros(0, np.int64)

    def tables(self, keep_E: np.ndarray, shift_P: np.ndarray | None = None) -> np.ndarray:
        """[E', 2, 2, 2] over (j, i_t, i_{t−1}) of the edges ``keep_E`` (bool), sources shifted."""
        chosen = keep_E[self.edge_X]
        edge, time = self.edge_X[chosen], self.time_X[chosen].astype(np.int64)
        piece = self.piece_N[time]
        place = time - self.first_P[piece]
        if shift_P is not None:
            place = (place + shift_P[piece]) % self.length_P[piece]
        place = place + self.edges_E3[edge, 2]
        inside = place < self.length_P[piece]
        edge, place, piece = edge[inside], place[inside], piece[inside]
        state = self.state_KN[self.row_E[edge], self.first_P[piece] + place]
        size = 4 * len(keep_E)
        active = np.bincount(4 * edge + state, minlength=size).reshape(-1, 4)[keep_E]
        both = np.stack([self.all_E4[keep_E] - active, active], 1)
        return both.reshape(-1, 2, 2, 2)

    def shifts(self, rng: np.random.Generator, least: int = 0) -> np.ndarray:
        """A random offset from ``least`` (1 or 0) to length − 1 for every document (0 where it has
        one token)."""
        return np.where(
            self.length_P > 1, least + (rng.random(len(self.length_P)) * (self.length_P - least)), 0
        ).astype(np.int64)


def excess(n_EJIP: np.ndarray) -> np.ndarray:
    """TE, negative where the target is rarer after the source than without it."""
    n_source, n_both = n_EJIP[:, 1].sum((1, 2)), n_EJIP[:, 1, 1].sum(1)
    n, n_target = n_EJIP.sum((1, 2, 3)), n_EJIP[:, :, 1].sum((1, 2))
    return np.where(n_both * n >= n_source * n_target, 1, -1) * transfer_entropy(n_EJIP)


def dependencies(
    activity: Activity,
    *,
    lags: Iterable[int] = (1, 2, 3, 4),
    edges: np.ndarray | None = None,
    max_edges: int = 2000,
    min_count: int = 10,
    min_z: float = 3.0,
    shifts: int | None = None,
    least: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """The edges of the module's equations, those with the largest TE first.

    Columns: source, target, lag, count, C, lift, te, p, q. p = (1 + reached) / (1 + shifts),
    where reached counts null values of the signed TE that are no smaller; an edge that was reached
    ``ENOUGH`` times is settled earlier (Besag & Clifford 1991), which keeps p valid. q is p after
    Benjamini & Hochberg over the edges of the table. ``shifts``: None for 20 times the edges, with
    which a single true edge can reach q = .05, but from 200 to 2000; fewer are drawn when all edges
    still open are significant at q = .05 whatever comes. ``least``: the least offset. 1 never leaves a
    document as it is, so that p is too small for pairs that few documents hold; 0 is exact where
    positions are exchangeable. ``edges`` [E, 3] (source,
    target, lag) replaces the candidates of the first half. Raises ValueError on a bad number.
    """
    lags = tuple(lags)
    require(bool(lags) and min(lags) >= 1, "lags", lags, "whole numbers of at least 1")
    require(least in (0, 1), "least", least, "0 or 1")
    require(shifts is None or shifts >= 1, "shifts", shifts, "None or at least 1")
    if edges is None:
        edges = candidates(activity.half(False), lags, max_edges, min_count, min_z)
    if shifts is None:
        shifts = min(max(200, 20 * len(edges)), 2000)
    counter = Counter(activity.half(True), edges)
    everything = np.ones(len(edges), bool)
    n = counter.tables(everything)
    observed = excess(n)
    rng = np.random.default_rng(seed)
    reached, drawn = np.zeros(len(edges)), np.zeros(len(edges))
    for done in range(shifts):
        open_E = reached < ENOUGH
        # Settled as well: all open edges pass Benjamini & Hochberg even if each is reached again.
        if ENOUGH * len(edges) <= LEVEL * int(open_E.sum()) * (done + 1) or not open_E.any():
            break
        null = excess(counter.tables(open_E, counter.shifts(rng, least)))
        # Equal tables may differ in the last bit.
        reached[open_E] += null >= observed[open_E] - 1e-12
        drawn[open_E] += 1
    p = np.where(reached >= ENOUGH, reached / np.maximum(drawn, 1), (reached + 1) / (drawn + 1))
    count, n_source = n[:, 1, 1].sum(1), n[:, 1].sum((1, 2))
    share = count / np.maximum(n_source, 1)
    base = n[:, :, 1].sum((1, 2)) / np.maximum(n.sum((1, 2, 3)), 1)
    return pd.DataFrame(
        {
            "source": edges[:, 0],
            "target": edges[:, 1],
            "lag": edges[:, 2],
            "count": count.astype(np.int64),
            "C": share,
            "lift": np.where(base > 0, share / np.maximum(base, 1e-30), 0.0),
            "te": transfer_entropy(n),
            "p": p,
            "q": false_discovery_control(p) if len(p) else p,
        }
    ).sort_values("te", ascending=False, kind="stable", ignore_index=True)


def direct(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with a column ``direct``: False where an edge is explained by two stronger ones.

    j → i at lag ℓ is indirect when some k has edges j → k at a and k → i at b with a + b = ℓ, and
    TE summed over lags is larger for both pairs than for j → i: by the data processing inequality
    the end of a chain j → k → i tells no more of its start than its middle does (ARACNE: Margolin
    et al. 2006). Give significant rows only.
    """
    total = table.groupby(["source", "target"])["te"].sum().to_dict()
    rows = set(zip(table["source"], table["target"], table["lag"], strict=True))
    steps: dict[int, list[tuple[int, int]]] = {}
    for s, t, lag in rows:
        steps.setdefault(s, []).append((t, lag))

    def explained(s: int, t: int, lag: int) -> bool:
        return any(
            (k, t, lag - a) in rows and min(total[s, k], total[k, t]) > total[s, t]
            for k, a in steps[s]
            if a < lag and k != t
        )

    columns = zip(table["source"], table["target"], table["lag"], strict=True)
    return table.assign(direct=np.array([not explained(*edge) for edge in columns], bool))
