"""Which latents together tell where a step begins, and where they say so on other text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch

from lab.measures.succession.events import Activity
from lab.measures.tokens import pieces

QUANTILES = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Read:
    """Codes [N, F] and the token and class of each of N valid positions of one split."""

    values_NF: scipy.sparse.csr_array
    piece_N: np.ndarray
    tokens_N: np.ndarray
    label_N: np.ndarray

    def on(self, threshold_F: np.ndarray | float = 0.0) -> scipy.sparse.csc_array:
        """[N, F] of 0 and 1: above the threshold."""
        values = self.values_NF.tocoo()
        limit = np.broadcast_to(np.asarray(threshold_F, float), values.shape[1])
        keep = values.data > limit[values.col]
        at = (values.row[keep], values.col[keep])
        return scipy.sparse.csc_array((np.ones(len(at[0]), np.int32), at), shape=values.shape)

    def steps(self, n_classes: int) -> scipy.sparse.csc_array:
        """[N, classes] bool: the first token of each run of a class."""
        at = np.flatnonzero(self.label_N >= 0)
        shape = (len(self.label_N), n_classes)
        on = scipy.sparse.csr_array((np.ones(len(at), np.int32), (at, self.label_N[at])), shape)
        return begins(on, self.piece_N)


def begins(on_NF: scipy.sparse.sparray, piece_N: np.ndarray) -> scipy.sparse.csc_array:
    """The rows of a 0/1 matrix less what was on one row before in the same piece, as bool."""
    on_NF = on_NF.tocsr()
    before = scipy.sparse.vstack([on_NF[:1] * 0, on_NF[:-1]]).tocsr()
    same_N = np.r_[False, piece_N[1:] == piece_N[:-1]].astype(np.int32)
    still = on_NF.multiply(before.multiply(same_N[:, None]))
    fresh = (on_NF - still).tocsc()
    fresh.eliminate_zeros()
    return fresh.astype(bool)


@torch.no_grad()
def read(
    sae: Any, store: Any, split: str, label: str | None, limit: int, batch_size: int, device: str
) -> Read:
    """The first ``limit`` valid tokens of a split; class −1 where there is no such label."""
    values, parts, seen, n_pieces = [], [], 0, 0
    for batch in store.batches(split, batch_size):
        batch = batch.to(device)
        keep_BT = batch.context.mask_BT.bool()
        piece_BT = pieces(keep_BT, batch.context.boundary_BT.clone(), batch.doc_BT) + n_pieces
        n_pieces = int(piece_BT.max()) + 1
        z_NF = sae.encode(batch.x_BTD, batch.context)[keep_BT]
        values.append(scipy.sparse.csr_array(z_NF.cpu().numpy()))
        of = batch.labels[label] if label else torch.full_like(batch.tokens_BT, -1)
        parts.append([a[keep_BT].cpu().numpy() for a in (piece_BT, batch.tokens_BT, of)])
        seen += int(keep_BT.sum())
        if seen >= limit:
            break
    piece, tokens, classes = (np.concatenate(a) for a in zip(*parts, strict=True))
    piece = np.unique(piece, return_inverse=True)[1]
    return Read(scipy.sparse.vstack(values).tocsr(), piece, tokens, classes.astype(int))


class Match(NamedTuple):
    """Latents and their thresholds that together stand for one class, and their F1."""

    latents: tuple[int, ...]
    thresholds: tuple[float, ...]
    f1: float


def match(reading: Read, n_classes: int, members: int, min_count: int = 10) -> dict[int, Match]:
    """For each class that begins ``min_count`` times, greedily up to ``members`` latents whose
    conjunction has the largest F1; a latent that does not raise it is not taken."""
    truth = reading.steps(n_classes)
    columns = reading.values_NF.tocsc()
    levels = np.zeros((len(QUANTILES), columns.shape[1]))
    for latent in range(columns.shape[1]):
        values = columns.data[columns.indptr[latent] : columns.indptr[latent + 1]]
        if len(values):
            levels[1:, latent] = np.quantile(values, QUANTILES[1:])
    states = [reading.on(threshold_F) for threshold_F in levels]
    hits = np.stack([(on.T @ truth.astype(np.int32)).toarray() for on in states])
    fires = np.stack([on.sum(0) for on in states])
    found = {}
    for c, n in enumerate(np.asarray(truth.astype(np.int32).sum(0))):
        if n < min_count:
            continue
        f1_QF = 2 * hits[..., c] / np.maximum(fires + n, 1)
        # A member of a conjunction has to be on where the class is; precision comes together.
        recall_QF = hits[..., c] / n
        ranked = np.argsort(-np.maximum(f1_QF.max(0), 0.5 * recall_QF[0]), kind="stable")[:30]
        is_true = truth[:, [c]].toarray()[:, 0]
        held, chosen, best = np.ones(len(is_true), bool), [], 0.0
        for _ in range(members):
            step = None
            for latent, q in ((i, q) for i in ranked for q in range(len(levels))):
                both = held & (states[q][:, [latent]].toarray()[:, 0] > 0)
                f1 = 2 * (both & is_true).sum() / max(both.sum() + n, 1)
                if f1 > best + 1e-9:
                    best, step = f1, (int(latent), float(levels[q, latent]), both)
            if step is None:
                break
            chosen.append(step[:2])
            held = step[2]
        if chosen:
            latents, thresholds = zip(*chosen, strict=True)
            found[c] = Match(latents, thresholds, float(best))
    return found


def matched_events(reading: Read, matches: Mapping[int, Match]) -> tuple[Activity, list[int]]:
    """Where each distinct conjunction begins, one column each, and every class's column."""
    columns = reading.values_NF.tocsc()
    distinct: dict[tuple, int] = {}
    events: list[Any] = []
    for m in matches.values():
        if m[:2] in distinct:
            continue
        distinct[m[:2]] = len(events)
        on_N = np.ones(columns.shape[0], bool)
        for latent, threshold in zip(m.latents, m.thresholds, strict=True):
            on_N &= columns[:, [latent]].toarray()[:, 0] > threshold
        on_N1 = scipy.sparse.csr_array(on_N[:, None].astype(np.int32))
        events.append(begins(on_N1, reading.piece_N))
    activity = Activity(scipy.sparse.hstack(events).tocsc(), reading.piece_N)
    return activity, [distinct[m[:2]] for m in matches.values()]
