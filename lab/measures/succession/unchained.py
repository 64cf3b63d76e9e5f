"""How often edges are found where there are none: events of a text without chains.

    shuffled    the tokens of the whole text in random order, events and all: a microworld with
                ``temporal`` = 0, in which nothing depends on anything
    exchanged   half of the event series are those of another document of the same kind, cut to
                equal length: bursts, topic and place in the document stay, but no arrow can run
                between the halves, and only edges between them are tested

In both every edge found is false. A text counts as false when an edge has q ≤ .05: where nothing
is true, the false discovery rate is that share.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lab.measures.succession.events import Activity, candidates, dependencies
from lab.measures.tokens import row

LEVEL = 0.05
TESTED = 50
"""Edges tested in a text."""


def shuffled(activity: Activity, rng: np.random.Generator) -> Activity:
    """The rows in random order; documents keep their lengths."""
    order = rng.permutation(activity.active_NF.shape[0])
    return Activity(activity.active_NF.tocsr()[order].tocsc(), activity.piece_N)


def exchanged(
    activity: Activity, kind_N: np.ndarray, moved_F: np.ndarray, rng: np.random.Generator
) -> Activity:
    """The columns ``moved_F`` (bool) taken from another document whose first token has the same
    ``kind_N``; both are cut to the shorter one. A document without a partner is left out."""
    piece_N = activity.piece_N
    first = np.flatnonzero(np.r_[True, piece_N[1:] != piece_N[:-1]])
    length = np.diff(np.r_[first, len(piece_N)])
    here, there, pieces = [], [], []
    for kind in np.unique(kind_N[first]):
        of_kind = rng.permutation(np.flatnonzero(kind_N[first] == kind))
        if len(of_kind) < 2:
            continue
        for a, b in zip(of_kind, np.roll(of_kind, 1), strict=True):
            n = min(length[a], length[b])
            here.append(first[a] + np.arange(n))
            there.append(first[b] + np.arange(n))
            pieces.append(np.full(n, a))
    piece = np.concatenate(pieces)
    rows = activity.active_NF.tocsr()
    own, others = rows[np.concatenate(here)], rows[np.concatenate(there)]
    both = own.multiply(~moved_F) + others.multiply(moved_F)
    order = np.argsort(piece, kind="stable")
    return Activity(both.tocsr()[order].tocsc(), piece[order])


def false_discovery(
    activity: Activity,
    kind_N: np.ndarray,
    texts: int,
    group: str,
    *,
    lags: Iterable[int],
    seed: int,
    least: int = 1,
) -> list[dict[str, Any]]:
    """Rows with group ``group|shuffled`` and ``group|exchanged``: ``unchained_false_texts``, the
    share of ``texts`` in which any edge was found; ``unchained_false_edges``, the share of all
    edges tested that were found. ``least``: the null's least offset."""
    rng, rows = np.random.default_rng(seed), []
    lags = tuple(lags)
    for name in ("shuffled", "exchanged"):
        found, tested = [], 0
        for _ in range(texts):
            moved_F = rng.permutation(activity.active_NF.shape[1]) % 2 == 0
            if name == "shuffled":
                text = shuffled(activity, rng)
            else:
                text = exchanged(activity, kind_N, moved_F, rng)
            # The most suspect ones, however few their co-occurrences; few enough that one alone can
            # reach q = .05 with the shifts that are drawn.
            edges = candidates(text.half(False), lags, 4 * TESTED, 1, 0.0)
            if name == "exchanged":
                edges = edges[moved_F[edges[:, 0]] != moved_F[edges[:, 1]]]
            edges = edges[:TESTED]
            q = dependencies(text, lags=lags, edges=edges, seed=seed, least=least)["q"]
            found.append(int((q <= LEVEL).sum()))
            tested += len(edges)
        share = float(np.mean(np.array(found) > 0))
        rows.append(row("unchained_false_texts", f"{group}|{name}", share, texts))
        edges_share = sum(found) / max(tested, 1)
        rows.append(row("unchained_false_edges", f"{group}|{name}", edges_share, tested))
    return rows
