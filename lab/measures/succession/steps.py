"""Which latents together tell where a step begins, and which arrows between steps are found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from sklearn.metrics import average_precision_score

from lab.measures.reading import Encoder, Reading, row
from lab.measures.succession.events import Activity
from lab.worlds.base import ChainEdge, World

LABEL, KIND = "step", "domain"
"""The label that arrows connect, and the one that exchanged documents share."""
MEMBERS = 3
"""Latents of a conjunction at most."""
QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Text:
    """N valid positions of one split: codes (CSC [N, F]), documents, tokens, and a class each."""

    codes: Activity
    id_N: np.ndarray
    label_N: np.ndarray

    def steps(self, n_classes: int) -> Activity:
        """[N, classes]: the first token of each run of a class."""
        at = np.flatnonzero(self.label_N >= 0)
        shape = (len(self.label_N), n_classes)
        on = scipy.sparse.csc_array((np.ones(len(at), np.int32), (at, self.label_N[at])), shape)
        return Activity(on, self.codes.piece_N).begins()


def read(
    sae: Encoder, reading: Reading, split: str, label: str | None, limit: int | None = None
) -> Text:
    """The first ``limit`` valid tokens of a split; class −1 where there is no label."""
    values, parts, n_pieces = [], [], 0
    for t in reading.tokens(sae, split, limit):
        values.append(scipy.sparse.csr_array(t.z_NF.cpu().numpy()))
        label_N = t.labels[label] if label else t.id_N.new_full(t.id_N.shape, -1)
        parts.append([a.cpu().numpy() for a in (t.piece_N + n_pieces, t.id_N, label_N)])
        n_pieces += int(t.piece_N[-1]) + 1 if len(t) else 0
    piece, ids, classes = (np.concatenate(a) for a in zip(*parts, strict=True))
    return Text(Activity(scipy.sparse.vstack(values).tocsc(), piece), ids, classes.astype(int))


def arrows(world: World | None) -> list[ChainEdge]:
    """The world's true arrows between classes of :data:`LABEL`; none without a world."""
    return [e for e in world.chains() or [] if e.label == LABEL] if world is not None else []


def matching_split(reading: Reading) -> str:
    """Where steps are matched: validation, or test in a store that has none."""
    return "test" if reading.choices == "train" else reading.choices


class Match(NamedTuple):
    """Latents and their thresholds that together stand for one class, and their F1."""

    latents: tuple[int, ...]
    thresholds: tuple[float, ...]
    f1: float


def match(text: Text, n_classes: int, members: int, min_count: int = 10) -> dict[int, Match]:
    """For each class that begins ``min_count`` times, greedily up to ``members`` latents whose
    conjunction has the largest F1; a latent that does not raise it is not taken."""
    truth, codes = text.steps(n_classes).active_NF, text.codes.active_NF
    levels = np.zeros((1 + len(QUANTILES), codes.shape[1]))
    for latent in np.flatnonzero(np.diff(codes.indptr)):
        values = codes.data[codes.indptr[latent] : codes.indptr[latent + 1]]
        levels[1:, latent] = np.quantile(values, QUANTILES)
    column_n = np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))
    states = [
        scipy.sparse.csc_array((codes.data > level_F[column_n], codes.indices, codes.indptr), codes.shape)
        for level_F in levels
    ]  # fmt: skip
    hits = np.stack([(on.T.astype(int) @ truth.astype(int)).toarray() for on in states])
    fires, found = np.stack([on.astype(int).sum(0) for on in states]), {}
    for c, n in enumerate(np.asarray(truth.astype(int).sum(0))):
        if n < min_count:
            continue
        # A member of a conjunction has to be on where the class is; precision comes together.
        f1_F = (2 * hits[..., c] / np.maximum(fires + n, 1)).max(0)
        ranked = np.argsort(-np.maximum(f1_F, 0.5 * hits[0, :, c] / n), kind="stable")[:30]
        is_true = truth[:, [c]].toarray()[:, 0]
        held, chosen, best = np.ones(len(is_true), bool), [], 0.0
        on = {(i, q): states[q][:, [i]].toarray()[:, 0] for i in ranked for q in range(len(levels))}
        for _ in range(members):
            step = None
            for (latent, q), on_N in on.items():
                both = held & on_N
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


def matched_events(text: Text, matches: Mapping[int, Match]) -> tuple[Activity, dict[int, int]]:
    """Where each distinct conjunction begins, one column each, and the column of every class."""
    distinct = {m: place for place, m in enumerate(dict.fromkeys(m[:2] for m in matches.values()))}
    events = [
        text.codes.active_NF[:, list(latents)].toarray() > np.array(thresholds)
        for latents, thresholds in distinct
    ]
    on_NE = scipy.sparse.csc_array(np.stack([on_NM.all(1) for on_NM in events], 1))
    columns = {c: distinct[m[:2]] for c, m in matches.items()}
    return Activity(on_NE, text.codes.piece_N).begins(), columns


def pattern_detection(
    table: pd.DataFrame,
    chains: Iterable[ChainEdge],
    columns: Mapping[str, int],
    classes: Sequence[str],
    score: str = "te",
) -> list[dict[str, Any]]:
    """How well the edges of ``table`` (source, target, lag and ``score``) are the true ones.

    ``columns``: class name → the event that stands for it in the table. All ordered pairs of the
    world's ``classes`` are ranked by their largest score over lags, 0 if there is none: a class of
    which nothing is known, or two that share an event, leave their arrows unfound and in the
    denominator, so that every way of reading steps is asked the same question.

    - ``chain_ap``: average precision; ``chain_ap_chance``: share of true pairs, which ranking at
      random would give. ``chain_precision``, ``chain_recall``: of the pairs with a score above 0.
    - ``chain_lag_accuracy``: of the true pairs found, the share whose strongest lag lies within
      lag_min … lag_max. n = pairs, or the number that a share is taken of.

    Raises ValueError when no true edge connects two of the classes.
    """
    true = {(e.source, e.target): e for e in chains if {e.source, e.target} <= set(classes)}
    if not true:
        raise ValueError("no true edge connects two of the given classes")
    best = table[table[score] > 0].sort_values(score, ascending=False, kind="stable")
    best = best.drop_duplicates(["source", "target"]).set_index(["source", "target"])
    values, lags = best[score].to_dict(), best["lag"].to_dict()
    pairs = [(a, b) for a in classes for b in classes if a != b]
    at = [(columns.get(a), columns.get(b)) for a, b in pairs]
    scores = np.array([values.get(pair, 0.0) if pair[0] != pair[1] else 0.0 for pair in at])
    truth = np.array([pair in true for pair in pairs])
    hits = [(true[pairs[i]], lags[at[i]]) for i in np.flatnonzero((scores > 0) & truth)]
    right = sum(e.lag_min <= lag <= e.lag_max for e, lag in hits)
    n_found = int((scores > 0).sum())
    values = {
        "chain_ap": (average_precision_score(truth, scores), len(pairs)),
        "chain_ap_chance": (truth.mean(), len(pairs)),
        "chain_precision": (len(hits) / n_found if n_found else np.nan, n_found),
        "chain_recall": (len(hits) / truth.sum(), truth.sum()),
        "chain_lag_accuracy": (right / len(hits) if hits else np.nan, len(hits)),
    }
    return [row(name, "token", *value) for name, value in values.items()]
