r"""Absorption: where a latent for a concept stays off because a latent for a part of it fires.

A *parent* is a class, its *children* the narrower things that imply it. For each parent, over
tokens (documents of the training split to fit, of the test split to score):

1. w: unit direction of a logistic probe for the parent on the residual;
2. *main latents*: the first k latents by mean difference, k ≤ 5, k the last one whose sparse
   probe's F1 beats that of all smaller k by more than 0.03 (a parent split over several latents);
3. on test tokens of the parent that the probe w gets right, with p = w·(x − x̄) and latent i's part
   p_i = z_i cos(w, W_i):

- ``absorption``: share with *full absorption*: no main latent fires, and the latent with the
  largest p_i has cos ≥ 0.025 and p_i / p ≥ 0.4;
- ``absorption_fraction``: mean of Σ top-3 absorbers / (Σ top-3 absorbers + Σ main), absorbers
  being other latents with cos ≥ 0.1 and p_i > 0; 0 where they make up less than 0.4 p or the main
  latents alone reach p; 1 where the main latents give nothing.

Kinds of parents (groups): ``letter``: first letter of a word (tokens that begin with a space and
hold letters alone); ``token``: class of a token label, children = the vocabulary's tokens that
always have it; ``section`` and ``document``: class of a slower label, children = the classes of
token labels that lie in it at least 98% of the time (procedure ⊃ step, domain ⊃ sense).

Source: SAEBench ``absorption`` (arXiv 2409.14507, 2503.09532), whose thresholds these are. It asks
for letters after a spelling prompt and takes x itself for p; here tokens stand in running text,
the mean (which is b_dec's) is taken out, and main latents are chosen as in sparse probing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.metrics import f1_score

from lab.measures.concepts.perturbation import directions
from lab.measures.concepts.probing import balanced, by_mean_difference, fit
from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds.base import World
from tsae.sequences import LabelSpec

WORD = re.compile(r"^[ Ġ▁]([A-Za-z])[A-Za-z]+$")
FULL_COSINE, PART_COSINE, SHARE, ABSORBERS, F1_JUMP = 0.025, 0.1, 0.4, 3, 0.03
CONTAINED = 0.98


class Read(NamedTuple):
    """N tokens of one split: residual, codes, token ids, class per label."""

    x_ND: np.ndarray
    z_NF: np.ndarray
    token_N: np.ndarray
    labels: dict[str, np.ndarray]


class Parent(NamedTuple):
    """One family of parents: its kind, and the parent of each token (−1: none)."""

    kind: str
    train_N: np.ndarray
    test_N: np.ndarray


def read(sae: Encoder, reading: Reading, split: str) -> Read:
    """The valid tokens of a split with their codes."""
    batches = list(reading.tokens(sae, split))
    x_ND, z_NF, id_N = (
        np.concatenate([getattr(t, name).cpu().numpy() for t in batches])
        for name in ("x_ND", "z_NF", "id_N")
    )
    names = reading.store.label_specs
    labels = {n: np.concatenate([t.labels[n].cpu().numpy() for t in batches]) for n in names}
    return Read(x_ND, z_NF, id_N, labels)


def main_latents(z_NF: np.ndarray, y_N: np.ndarray, limit: int = 5) -> np.ndarray:
    """The latents that stand for y: as many as still raise the sparse probe's F1 by 0.03."""
    order = by_mean_difference(z_NF, y_N)[:limit]
    best, n_main = 0.0, 1
    for k in range(1, len(order) + 1):
        f1 = f1_score(y_N, fit(z_NF, y_N, order[:k]).predict(z_NF), zero_division=0.0)
        n_main = k if f1 > best + F1_JUMP else n_main
        best = max(best, f1)
    return order[:n_main]


def absorbed(
    x_MD: np.ndarray, z_MF: np.ndarray, w_D: np.ndarray, W_FD: np.ndarray, main: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Full absorption and fraction per token; x centred, w of length 1."""
    cosine_F = W_FD @ w_D / np.linalg.norm(W_FD, axis=1).clip(1e-12)
    part_MF, p_M = z_MF * cosine_F, x_MD @ w_D
    share_M = part_MF.max(1) / np.where(p_M > 0, p_M, np.inf)
    silent_M = (z_MF[:, main] < 1e-8).all(1)
    full_M = silent_M & (cosine_F[part_MF.argmax(1)] >= FULL_COSINE) & (share_M >= SHARE)
    others_F = cosine_F >= PART_COSINE
    others_F[main] = False
    others_MF = np.where(others_F & (part_MF > 0), part_MF, 0.0)
    taken_M = -np.sort(-others_MF, axis=1)[:, :ABSORBERS].sum(1)
    kept_M = part_MF[:, main].sum(1)
    none_M = (kept_M >= p_M) | (taken_M < SHARE * p_M)
    capped_M = np.minimum(taken_M, p_M - kept_M)
    total_M = capped_M + kept_M
    fraction_M = np.divide(capped_M, total_M, out=np.zeros_like(total_M), where=total_M > 0)
    fraction_M = np.where(kept_M <= 0, 1.0, fraction_M.clip(0, 1))
    return full_M, np.where(none_M, 0.0, fraction_M)


def score(
    train: Read, test: Read, parent: Parent, c: int, W_FD: np.ndarray, per_class: int, seed: int
) -> tuple[float, float] | None:
    """Both measures of one parent; None when the probe is right on none of its test tokens."""
    generator = np.random.default_rng([seed, c, *map(ord, parent.kind)])
    at, y = balanced(parent.train_N, c, per_class, generator)
    probe = fit(train.x_ND[at], y)
    w_D = probe.weights(train.x_ND.shape[1])
    w_D /= max(np.linalg.norm(w_D), 1e-12)
    positive = generator.permutation(np.flatnonzero(parent.test_N == c))[:per_class]
    positive = positive[probe.predict(test.x_ND[positive]) == 1]
    if not len(positive):
        return None
    centred, main = test.x_ND[positive] - train.x_ND.mean(0), main_latents(train.z_NF[at], y)
    full_M, fraction_M = absorbed(centred, test.z_NF[positive], w_D, W_FD, main)
    return full_M.mean(), fraction_M.mean()


def letters(strings: Sequence[str]) -> np.ndarray:
    """First letter (0 … 25) of each token that is a word after a space, else −1."""
    matches = (WORD.match(text) for text in strings)
    return np.array([ord(m[1].lower()) - ord("a") if m else -1 for m in matches])


def parents(
    train: Read, test: Read, specs: Mapping[str, LabelSpec], world: World | None
) -> Iterator[Parent]:
    """Every family of parents that the labels and the vocabulary give."""
    token_N = np.concatenate([train.token_N, test.token_N])
    if world is not None:
        vocabulary, index = np.unique(token_N, return_inverse=True)
        letter_N = letters(world.to_strings(vocabulary.tolist()))[index]
        if (letter_N >= 0).any():
            yield Parent("letter", *np.split(letter_N, [len(train.token_N)]))
    narrow = [name for name, spec in specs.items() if spec.scale == "token"]
    for name, spec in specs.items():
        children = [(train.labels[n], test.labels[n], len(specs[n].classes)) for n in narrow]
        if spec.scale == "token":
            children = [(train.token_N, test.token_N, int(token_N.max()) + 1)]
        for a_N, b_N, size in children:
            inside = contained(train.labels[name], a_N, len(spec.classes), size)
            # A child outside its parent is no case; other tokens are what the parent is told from.
            test_N = np.where((b_N >= 0) & (inside[b_N] == test.labels[name]), inside[b_N], -1)
            if (test_N >= 0).any():
                yield Parent(spec.scale, train.labels[name], test_N)


def contained(parent_N: np.ndarray, child_N: np.ndarray, n_parents: int, size: int) -> np.ndarray:
    """[size] the parent in which each child lies at least 98% of the time, else −2."""
    table = np.zeros((size, n_parents + 1))
    seen = child_N >= 0
    np.add.at(table, (child_N[seen], parent_N[seen]), 1)  # column −1: no parent
    total = table.sum(1)
    best = table[:, :n_parents].argmax(1)
    share = table[np.arange(size), best] / total.clip(1)
    return np.where((total > 0) & (share >= CONTAINED), best, -2)


@register("absorption", needs=("labels",))
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None = None,
    *,
    per_class: int = 200,
    min_count: int = 20,
    max_classes: int = 10,
) -> dict[str, Measured]:
    """The rows above, by kind of parent and over all parents (``all``), n parents each.

    A parent counts with ``min_count`` training and test tokens; per family of parents the
    ``max_classes`` most frequent ones.
    """
    made = {}
    for name, sae in saes.items():
        train, test = (read(sae, reading, split) for split in ("train", "test"))
        W_FD, scores = directions(sae), {"all": list[tuple[float, float]]()}
        for parent in parents(train, test, reading.store.label_specs, world):
            n = int(max(parent.train_N.max(), parent.test_N.max())) + 1
            counts = [np.bincount(p[p >= 0], minlength=n) for p in parent[1:]]
            enough = np.flatnonzero(np.minimum(*counts) >= min_count)
            if (counts[0] > 0).sum() < 2:
                continue
            for c in enough[np.argsort(-counts[1][enough], kind="stable")][:max_classes]:
                one = score(train, test, parent, int(c), W_FD, per_class, reading.seed)
                if one is not None:
                    scores["all"].append(one)
                    scores.setdefault(parent.kind, []).append(one)
        rows = [
            row(metric, kind, np.mean(values), len(values))
            for kind, of_kind in scores.items()
            for metric, values in zip(METRICS, zip(*of_kind, strict=True), strict=False)
        ]
        made[name] = Measured(rows)
    return made


METRICS = ("absorption", "absorption_fraction")
