"""When latents begin, in documents that time does not cross, and texts in which nothing depends.

shuffled    the tokens of the whole text in random order, events and all
exchanged   half of the series are those of another document of the same kind, cut to equal
            length: bursts, topic and place in the document stay, but no arrow can run between
            the halves, and only edges between them are asked for
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse


@dataclass(frozen=True)
class Activity:
    """What happens at N consecutive positions.

    active_NF: sparse booleans or codes (CSC); piece_N: the document of each position, ascending;
    within it positions follow one another without a gap.
    """

    active_NF: scipy.sparse.csc_array
    piece_N: np.ndarray

    def half(self, odd: bool) -> "Activity":
        """The documents at odd or even places."""
        keep = (np.unique(self.piece_N, return_inverse=True)[1] % 2 == 1) == odd
        return Activity(self.active_NF.tocsr()[keep].tocsc(), self.piece_N[keep])

    def begins(self) -> "Activity":
        """What is on less what was on one row before in the same piece, as booleans."""
        on_NF = (self.active_NF.tocsr() > 0).astype(np.int32)
        before = scipy.sparse.vstack([on_NF[:1] * 0, on_NF[:-1]]).tocsr()
        same_N = np.r_[False, self.piece_N[1:] == self.piece_N[:-1]].astype(np.int32)
        fresh = (on_NF - on_NF.multiply(before.multiply(same_N[:, None]))).tocsc()
        fresh.eliminate_zeros()
        return Activity(fresh.astype(bool), self.piece_N)


def shuffled(activity: Activity, rng: np.random.Generator) -> Activity:
    """The rows in random order; documents keep their lengths."""
    order = rng.permutation(activity.active_NF.shape[0])
    return Activity(activity.active_NF.tocsr()[order].tocsc(), activity.piece_N)


def exchanged(
    activity: Activity, kind_N: np.ndarray, moved_F: np.ndarray, rng: np.random.Generator
) -> tuple[Activity, np.ndarray]:
    """The columns ``moved_F`` (bool) taken from another document whose first token has the same
    ``kind_N``; both are cut to the shorter one. A document without a partner is left out. Beside
    it the kind of every position left."""
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
    piece, rows = np.concatenate(pieces), activity.active_NF.tocsr()
    own, others = rows[np.concatenate(here)], rows[np.concatenate(there)]
    order = np.argsort(piece, kind="stable")
    both = (own.multiply(~moved_F) + others.multiply(moved_F)).tocsr()[order]
    made = Activity(both.astype(rows.dtype).tocsc(), piece[order])
    return made, kind_N[first][piece[order]]
