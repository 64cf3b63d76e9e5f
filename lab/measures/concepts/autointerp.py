r"""Automated interpretability as detection: explain a latent on training text, find it on test text.

The *lexical explainer* needs no service. For each latent, every token v and every pair (u, v) of
neighbouring tokens in the training text gets the smoothed rate at which the latent fires there,

    r(v) = (active(v) + a p) / (n(v) + a),   r(u, v) = (active(u, v) + a r(v)) / (n(u, v) + a),

p being the latent's overall rate and a = 5. The explanation is the ``size`` tokens and ``size``
pairs of highest rate above p. On test tokens the explanation says "active" where its token or pair
stands; ``detection`` = (recall on active + recall on inactive tokens) / 2, chance ½. A latent that
follows the context and not the word cannot be told by words: its low score says so and is no fault
of it.

Source: SAEBench ``autointerp`` (arXiv 2503.09532), detection scoring of Paulo et al. (arXiv
2410.13928); the lexical explainer is of this project.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, latent_groups, row
from lab.worlds.base import World

SMOOTHING = 5.0


class Text(NamedTuple):
    """N tokens in reading order: id, previous id in the piece (−1: none), codes of L latents."""

    token_N: np.ndarray
    previous_N: np.ndarray
    z_NL: np.ndarray


class Explanation(NamedTuple):
    """Of one latent: its tokens and its pairs."""

    tokens: list[int]
    pairs: list[tuple[int, int]]


def read(sae: Encoder, reading: Reading, split: str) -> Text:
    """The valid tokens of a split with all codes."""
    parts = []
    for t in reading.tokens(sae, split):
        previous_N, opens_N = t.id_N.roll(1), t.piece_N != t.piece_N.roll(1)
        opens_N[:1] = True
        previous_N[opens_N] = -1
        parts.append(Text(*(a.cpu().numpy() for a in (t.id_N, previous_N, t.z_NF))))
    return Text(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def rates(
    key_N: np.ndarray, active_NL: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, and the smoothed rate [K, L] of each; prior: [L], or [N, L] equal in a key."""
    keys, first, index = np.unique(key_N, return_index=True, return_inverse=True)
    n = len(key_N)
    member = coo_array((np.ones(n), (index, np.arange(n))), shape=(len(keys), n)).tocsr()
    count = member.sum(1)[:, None]
    prior = prior[first] if prior.ndim == 2 else prior
    return keys, (member @ active_NL + SMOOTHING * prior) / (count + SMOOTHING)


def explain(text: Text, size: int) -> list[Explanation]:
    """The lexical explanation of each latent of ``text``."""
    active = (text.z_NL > 0).astype(np.float64)
    p_L = active.mean(0)
    tokens, r_VL = rates(text.token_N, active, p_L)
    within = np.flatnonzero(text.previous_N >= 0)
    span = int(text.token_N.max()) + 1
    key = text.previous_N[within].astype(np.int64) * span + text.token_N[within]
    backed_off = r_VL[np.searchsorted(tokens, text.token_N[within])]
    pairs, r_PL = rates(key, active[within], backed_off)
    found = []
    for i, p in enumerate(p_L):
        best, best_pairs = (
            [v for v in np.argsort(-r[:, i], kind="stable")[:size] if r[v, i] > p]
            for r in (r_VL, r_PL)
        )
        words = tokens[best].tolist()
        found.append(Explanation(words, [divmod(int(pairs[v]), span) for v in best_pairs]))
    return found


def detection(explanation: Explanation, text: Text, active_N: np.ndarray) -> float:
    """Balanced accuracy of the explanation on the tokens of ``text``."""
    pairs, known = zip(text.previous_N.tolist(), text.token_N.tolist(), strict=True), explanation
    said_N = np.array([v in known.tokens or (u, v) in known.pairs for u, v in pairs])
    return float((said_N[active_N].mean() + (~said_N[~active_N]).mean()) / 2)


@register("autointerp")
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None = None,
    *,
    latents: int = 100,
    size: int = 10,
    cases: int = 100,
    min_count: int = 10,
) -> dict[str, Measured]:
    """Rows ``detection``, by group of latents.

    ``latents`` random ones of those with ``min_count`` active tokens in either split; of each at
    most ``cases`` active and as many inactive test tokens.
    """
    made = {}
    for name, sae in saes.items():
        generator = np.random.default_rng(reading.seed)
        train, test = (read(sae, reading, split) for split in ("train", "test"))
        fires = np.minimum(*((text.z_NL > 0).sum(0) for text in (train, test)))
        usual = (fires >= min_count) & (fires <= len(test.token_N) - min_count)
        chosen = np.sort(generator.permutation(np.flatnonzero(usual))[:latents])
        told = explain(train._replace(z_NL=train.z_NL[:, chosen]), size)
        scores = {}
        for i, explanation in zip(chosen.tolist(), told, strict=True):
            active_N = test.z_NL[:, i] > 0
            sides = [
                generator.permutation(np.flatnonzero(s))[:cases] for s in (active_N, ~active_N)
            ]
            at = np.concatenate([side[: min(map(len, sides))] for side in sides])
            scores[i] = detection(explanation, Text(*(part[at] for part in test)), active_N[at])
        groups = latent_groups(sae, sae.cfg.d_sae, "cpu")
        mine = {g: [scores[i] for i in ids.tolist() if i in scores] for g, ids in groups.items()}
        rows = [row("detection", g, np.mean(v), len(v)) for g, v in mine.items() if v]
        made[name] = Measured(rows)
    return made
