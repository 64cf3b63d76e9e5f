"""Does the recurrence know which latents come next? Its perplexity against two nulls."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds import World
from tsae.saes.terms import successive

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Weights of the latents' rates in a null's mixture; each null takes its best on the choices."""


class Pairs(NamedTuple):
    """Active latents [n, F], 0 or 1, of n valid tokens (``now``) and of those before them, and the
    log-chances that the recurrence gives the active ones."""

    before: scipy.sparse.csr_array
    now: scipy.sparse.csr_array
    log_chances: np.ndarray


@register("next_code")
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    count_tokens: int = 60_000,
    shares: Sequence[float] = SHARES,
) -> dict[str, Measured]:
    r"""``next_code_perplexity`` = exp of the mean of -log P(i | tokens before) over the latents i that
    are active at a valid token after another of its document, on the test split.

    Groups: ``recurrence``, P = softmax of ``next_logits``; ``copy``, P = 1/|A| on the latents A of the
    token before; ``bigram``, the mean over j in A of the share of tokens after j on which i is
    active, normalised over i. Both nulls are mixed with the latents' rates (``rates``); all counts
    are of ``count_tokens`` training tokens. SAEs without ``next_logits`` are left out.
    """
    found: dict[str, Measured] = {}
    for name, sae in saes.items():
        if not hasattr(sae, "next_logits") or not hasattr(
            getattr(sae, "recurrent", None), "W_next"
        ):
            continue
        seen = list(pairs(sae, reading, "train", count_tokens))
        joint = sum(part.before.T @ part.now for part in seen).tocsr()
        rates_F = np.asarray(sum(part.now.sum(0) for part in seen)) + 1.0
        rates_F = rates_F / rates_F.sum()
        after = scipy.sparse.diags_array(1.0 / np.maximum(joint.sum(1), 1.0)) @ joint
        nulls = {"copy": scipy.sparse.eye_array(len(rates_F), format="csr"), "bigram": after}
        chosen = list(pairs(sae, reading, reading.choices, reading.limit(reading.choices)))
        test = list(pairs(sae, reading, "test", reading.limit("test")))
        costs = {"recurrence": -np.concatenate([part.log_chances for part in test])}
        costs["rates"] = np.concatenate([-np.log(rates_F[part.now.indices]) for part in test])
        for null, chances in nulls.items():
            by_share = [mixed(chosen, chances, rates_F, share).mean() for share in shares]
            share = shares[int(np.argmin(by_share))]
            costs[null] = mixed(test, chances, rates_F, share)
        metric = "next_code_perplexity"
        rows = [row(metric, group, np.exp(c.mean()), len(c)) for group, c in costs.items()]
        found[name] = Measured(rows)
    return found


def mixed(parts: list[Pairs], chances: Any, rates_F: np.ndarray, share: float) -> np.ndarray:
    """-log of a null's chances of each active latent: the mean over the latents before of a row of
    ``chances`` [F, F], and ``share`` of the rates."""
    costs = []
    for part in parts:
        size_n = np.maximum(part.before.sum(1), 1.0)
        expected = (scipy.sparse.diags_array(1.0 / size_n) @ part.before @ chances).toarray()
        rows = np.repeat(np.arange(len(size_n)), np.diff(part.now.indptr))
        p = (1 - share) * expected[rows, part.now.indices] + share * rates_F[part.now.indices]
        costs.append(-np.log(p))
    return np.concatenate(costs)


@torch.no_grad()
def pairs(sae: Any, reading: Reading, split: str, limit: int) -> Iterator[Pairs]:
    """A batch at a time, until ``limit`` valid tokens."""
    for batch in reading.batches(split, limit):
        now, before = successive(sae.checked(batch.x_BTD, batch.context))
        active_NF = (sae.encode(batch.x_BTD, batch.context) > 0).flatten(0, 1)
        log_NF = sae.next_logits(batch.x_BTD, batch.context).log_softmax(-1).flatten(0, 1)
        log_chances = log_NF[before][active_NF[now]].cpu().numpy()
        parts = [active_NF[rows].float().cpu().numpy() for rows in (before, now)]
        yield Pairs(scipy.sparse.csr_array(parts[0]), scipy.sparse.csr_array(parts[1]), log_chances)
