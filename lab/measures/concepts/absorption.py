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
  latents alone reach p; 1 where the main latents give nothing;
- ``absorption_by_child``: of the full absorptions, the share whose absorber is a latent of the
  token's own child: more than half of the training tokens on which it fires are that child;
- ``absorption_splits``: mean number of main latents, less 1.

Kinds of parents (groups): ``letter``: first letter of a word, children = the words (tokens that
begin with a space and hold letters alone); ``token``: class of a token label, children = the vocabulary's
tokens that always have it; ``section`` and ``document``: class of a slower label, children = the
classes of token labels that lie in it at least 98% of the time (procedure ⊃ step, domain ⊃ sense).

A ``hierarchical`` SAE is measured on both levels: the groups above are of level 1; ``level2`` is all
parents by h2 and the directions D2 W_dec (:class:`lab.measures.composition.parents.Parents`),
``level2:letter`` and so on one kind. Classes, tokens and probes are the same for both.

Source: SAEBench ``absorption`` (arXiv 2409.14507, 2503.09532), whose thresholds these are. It asks
for letters after a spelling prompt and takes x itself for p; here tokens stand in running text,
the mean (which is b_dec's) is taken out, and main latents are chosen as in sparse probing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import f1_score
from tqdm.auto import tqdm

from lab.edits.hierarchical import two_levels
from lab.measures.composition.parents import Parents
from lab.measures.concepts.perturbation import directions
from lab.measures.concepts.probing import balanced, by_mean_difference, fit
from lab.measures.tokens import Measured, Tokens, row

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
    """One family of parents: its kind, the parent of each token (−1: none), and its child."""

    kind: str
    train_N: np.ndarray
    test_N: np.ndarray
    train_child_N: np.ndarray
    test_child_N: np.ndarray


class Score(NamedTuple):
    """Of one parent's M test tokens: full absorption, fraction, and whether by the own child."""

    full_M: np.ndarray
    fraction_M: np.ndarray
    by_child_M: np.ndarray
    n_main: int


def read(sae: Any, store: Any, split: str, limit: int, batch_size: int, device: str) -> Read:
    """The valid tokens of a split with their codes, until ``limit`` of them."""
    parts, seen = [], 0
    for batch in store.batches(split, batch_size):
        batch = batch.to(device)
        out = sae(batch.x_BTD, batch.context)
        t = Tokens.of(batch, out.z, out.x_hat)
        token_N = batch.tokens_BT[batch.context.mask_BT.bool()]
        labels = {name: label_N.cpu().numpy() for name, label_N in t.labels.items()}
        x_ND, z_NF, token_N = (a.cpu().numpy() for a in (t.x_ND, t.z_NF, token_N))
        parts.append(Read(x_ND, z_NF, token_N, labels))
        seen += len(t)
        if seen >= limit:
            break
    return Read(
        np.concatenate([p.x_ND for p in parts]),
        np.concatenate([p.z_NF for p in parts]),
        np.concatenate([p.token_N for p in parts]),
        {name: np.concatenate([p.labels[name] for p in parts]) for name in parts[0].labels},
    )


def main_latents(z_NF: np.ndarray, y_N: np.ndarray, limit: int = 5) -> np.ndarray:
    """The latents that stand for y: as many as still raise the sparse probe's F1 by 0.03."""
    order = by_mean_difference(z_NF, y_N)[:limit]
    best, n_main = 0.0, 1
    for k in range(1, len(order) + 1):
        f1 = f1_score(y_N, fit(z_NF, y_N, order[:k]).predict(z_NF), zero_division=0.0)
        if f1 > best + F1_JUMP:
            n_main = k
        best = max(best, f1)
    return order[:n_main]


def absorbed(
    x_MD: np.ndarray, z_MF: np.ndarray, w_D: np.ndarray, W_FD: np.ndarray, main: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Full absorption, fraction and latent of largest part per token; x centred, w of length 1."""
    cosine_F = W_FD @ w_D / np.linalg.norm(W_FD, axis=1).clip(1e-12)
    part_MF, p_M = z_MF * cosine_F, x_MD @ w_D
    top_M = part_MF.argmax(1)
    share_M = part_MF.max(1) / np.where(p_M > 0, p_M, np.inf)
    silent_M = (z_MF[:, main] < 1e-8).all(1)
    full_M = silent_M & (cosine_F[top_M] >= FULL_COSINE) & (share_M >= SHARE)
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
    return full_M, np.where(none_M, 0.0, fraction_M), top_M


def score(
    train: Read, test: Read, parent: Parent, c: int, W_FD: np.ndarray, per_class: int, seed: int
) -> Score | None:
    """One parent; None when the probe is right on none of its test tokens."""
    generator = np.random.default_rng([seed, c, *map(ord, parent.kind)])
    at, y = balanced(parent.train_N, c, per_class, generator)
    probe = fit(train.x_ND[at], y)
    w_D = probe.weights(train.x_ND.shape[1])
    w_D /= max(np.linalg.norm(w_D), 1e-12)
    main = main_latents(train.z_NF[at], y)
    positive = generator.permutation(np.flatnonzero(parent.test_N == c))[:per_class]
    positive = positive[probe.predict(test.x_ND[positive]) == 1]
    if not len(positive):
        return None
    z_MF = test.z_NF[positive]
    centred = test.x_ND[positive] - train.x_ND.mean(0)
    full_M, fraction_M, top_M = absorbed(centred, z_MF, w_D, W_FD, main)
    by_child_M = np.zeros(len(positive), bool)
    for m in np.flatnonzero(full_M):
        fires_N = train.z_NF[:, top_M[m]] > 0
        own = parent.train_child_N[fires_N] == parent.test_child_N[positive[m]]
        by_child_M[m] = bool(len(own)) and own.mean() > 0.5
    return Score(full_M, fraction_M, by_child_M, len(main))


def letters(strings: Sequence[str]) -> np.ndarray:
    """First letter (0 … 25) of each token that is a word after a space, else −1."""
    matches = (WORD.match(text) for text in strings)
    return np.array([ord(m[1].lower()) - ord("a") if m else -1 for m in matches])


def parents(train: Read, test: Read, specs: Mapping[str, Any], world: Any) -> list[Parent]:
    """Every family of parents that the labels and the vocabulary give."""
    found = []
    if world is not None:
        vocabulary, index = np.unique(
            np.concatenate([train.token_N, test.token_N]), return_inverse=True
        )
        letter = letters(world.to_strings(vocabulary.tolist()))[index]
        if (letter >= 0).any():
            train_N, test_N = np.split(letter, [len(train.token_N)])
            found.append(Parent("letter", train_N, test_N, train.token_N, test.token_N))
    for name, spec in specs.items():
        if spec.scale == "token":
            size = int(max(train.token_N.max(), test.token_N.max())) + 1
            children = [(train.token_N, test.token_N, size)]
        else:
            children = [
                (train.labels[other], test.labels[other], len(wide.classes))
                for other, wide in specs.items()
                if wide.scale == "token"
            ]
        for a_N, b_N, size in children:
            inside = _contained(train.labels[name], a_N, len(spec.classes), size)
            # A child outside its parent is no case; other tokens are what the parent is told from.
            test_N = np.where(
                (b_N >= 0) & (inside[b_N] == test.labels[name]), test.labels[name], -1
            )
            train_N = train.labels[name]
            if (test_N >= 0).any():
                found.append(Parent(spec.scale, train_N, test_N, a_N, b_N))
    return found


def _contained(parent_N: np.ndarray, child_N: np.ndarray, n_parents: int, size: int) -> np.ndarray:
    """[size] the parent in which each child lies at least 98% of the time, else −2."""
    table = np.zeros((size, n_parents + 1))
    seen = child_N >= 0
    np.add.at(table, (child_N[seen], parent_N[seen]), 1)  # column −1: no parent
    total = table.sum(1)
    best = table[:, :n_parents].argmax(1)
    share = table[np.arange(size), best] / total.clip(1)
    return np.where((total > 0) & (share >= CONTAINED), best, -2)


def measure(
    saes: Mapping[str, Any],
    store: Any,
    world: Any = None,
    *,
    limit_tokens: int,
    selection_tokens: int,
    batch_size: int,
    seed: int,
    device: str,
    progress: bool,
    per_class: int = 200,
    min_count: int = 20,
    max_classes: int = 10,
) -> dict[str, Measured]:
    """The rows above, by kind of parent and over all parents (``all``), n parents each.

    A parent counts with ``min_count`` training and test tokens; per family of parents the
    ``max_classes`` most frequent ones.
    """
    found = {}
    for name, sae in tqdm(saes.items(), desc="absorption", disable=not progress):
        views = {"": sae, "level2": Parents(sae)} if two_levels(sae) else {"": sae}
        rows = []
        for level, view in views.items():
            train = read(view, store, "train", selection_tokens, batch_size, device)
            test = read(view, store, "test", limit_tokens, batch_size, device)
            families = parents(train, test, store.label_specs, world)
            limits = (per_class, min_count, max_classes)
            scores = _scores(train, test, families, directions(view), *limits, seed)
            every = [one for of_kind in scores.values() for one in of_kind]
            for kind, of_kind in {"all": every, **scores}.items():
                if of_kind:
                    rows += _rows(_group(level, kind), of_kind)
        found[name] = Measured(rows)
    return found


def _group(level: str, kind: str) -> str:
    if not level:
        return kind
    return level if kind == "all" else f"{level}:{kind}"


def _scores(
    train: Read,
    test: Read,
    families: Sequence[Parent],
    W_FD: np.ndarray,
    per_class: int,
    min_count: int,
    max_classes: int,
    seed: int,
) -> dict[str, list[Score]]:
    """The scores of the most frequent parents by kind."""
    scores: dict[str, list[Score]] = {}
    for parent in families:
        n = int(max(parent.train_N.max(), parent.test_N.max())) + 1
        counts = [np.bincount(p[p >= 0], minlength=n) for p in (parent.train_N, parent.test_N)]
        enough = np.flatnonzero(np.minimum(*counts) >= min_count)
        if len(np.flatnonzero(counts[0])) < 2:
            continue
        for c in enough[np.argsort(-counts[1][enough], kind="stable")][:max_classes]:
            if one := score(train, test, parent, int(c), W_FD, per_class, seed):
                scores.setdefault(parent.kind, []).append(one)
    return scores


def _rows(kind: str, scores: Sequence[Score]) -> list[dict[str, Any]]:
    n = len(scores)
    n_full = sum(int(s.full_M.sum()) for s in scores)
    rows = [
        row("absorption", kind, np.mean([s.full_M.mean() for s in scores]), n),
        row("absorption_fraction", kind, np.mean([s.fraction_M.mean() for s in scores]), n),
        row("absorption_splits", kind, np.mean([s.n_main - 1 for s in scores]), n),
    ]
    if n_full:
        by_child = sum(int((s.full_M & s.by_child_M).sum()) for s in scores)
        rows.append(row("absorption_by_child", kind, by_child / n_full, n_full))
    return rows
