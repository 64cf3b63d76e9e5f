"""Which of a world's questions are asked, and in which disguise.

Attacks on an unlearned model ask the same facts in ways that the edit was not made on:

    dilution      n tokens of benign text stand before the question, in its plain form (n from 0 on)
    split         a run of benign text parts the question from the sentence that asks, where it has two
    paraphrase    only the forms in which no text states the fact, where the world has such forms
    perturbation  the residual that the gate and the edit read is off by NOISE of its norm
    relearning    the blocks above the edit are trained for RELEARN steps on facts that are not judged

Benign text is whole retained held-out sentences. What the model without the edit does not answer
under the attack is not counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.worlds.knowledge import NEIGHBOURHOODS, Question
from tsae.sequences import DOCUMENT, FilledContext

NOISE, RELEARN = 0.3, 50
RUN = 24
"""Least tokens of one run of benign text."""


def rotated(items: Iterable[Any], subjects: Mapping[str, Sequence[str]]) -> list[Any]:
    """Questions or statements with another subject forgotten: ``subjects`` names those that are
    ``forget`` and ``near``, all others are far; without any, what the world says stays.

    Raises ValueError for a subject that no item has.
    """
    items = list(items)
    if not subjects:
        return items
    have = {item.subject for item in items}
    where = {subject: name for name, given in subjects.items() for subject in given}
    if unknown := [s for s in where if s not in have]:
        raise ValueError(
            f"subjects has {unknown[0]!r}; allowed are {', '.join(sorted(have)) or 'none'}"
        )
    return [item._replace(neighbourhood=where.get(item.subject, "far")) for item in items]


def draw(
    questions: list[Question], n_facts: int, n_orders: int | None, seed: int
) -> list[Question]:
    """All forms and the first ``n_orders`` orders of ``n_facts`` random facts a neighbourhood."""
    generator = np.random.default_rng(seed)
    kept = set()
    for name in NEIGHBOURHOODS:
        facts = sorted({(q.subject, q.fact) for q in questions if q.neighbourhood == name})
        kept |= {(name, *facts[i]) for i in generator.permutation(len(facts))[:n_facts]}
    orders: dict[tuple, int] = defaultdict(int)
    drawn = []
    for q in questions:
        if (q.neighbourhood, q.subject, q.fact) in kept:
            orders[item(q)] += 1
            if n_orders is None or orders[item(q)] <= n_orders:
                drawn.append(q)
    return drawn


def item(q: Question) -> tuple[str, int, str]:
    """What is right or wrong as a whole: a fact in one form, under every order of its options."""
    return q.subject, q.fact, q.form


def levels_after(store: Any, vocab_size: int, limit_tokens: int) -> Tensor:
    """[V] uint8: the boundary level (0, 1, 2) that most often starts right after each token.

    Counted inside the train documents. A prompt carries no boundaries of its own, so a sequence
    encoder is given those that this rule puts there, ties and unseen tokens 0.
    """
    counts = torch.zeros(vocab_size * DOCUMENT, dtype=torch.long)
    seen = 0
    for batch in store.batches("train", 16):
        doc_BT, level_BT = batch.doc_BT, batch.context.boundary_BT.long()
        same_BT = (doc_BT[:, 1:] == doc_BT[:, :-1]) & (doc_BT[:, 1:] >= 0)
        same_BT &= level_BT[:, 1:] < DOCUMENT
        pair_N = (batch.tokens_BT[:, :-1].long() * DOCUMENT + level_BT[:, 1:])[same_BT]
        counts += torch.bincount(pair_N, minlength=len(counts))
        seen += batch.tokens_BT.numel()
        if seen >= limit_tokens:
            break
    return counts.view(vocab_size, DOCUMENT).argmax(1).to(torch.uint8)


def prompt_context(tokens_BT: Tensor, levels_V: Tensor) -> FilledContext:
    """Of prompts padded on the right with 0: padding masked, boundaries by :func:`levels_after`."""
    real_BT = (tokens_BT != 0).flip(1).cumsum(1).flip(1) > 0  # BOS may be token 0 too
    boundary_BT = torch.zeros_like(tokens_BT, dtype=torch.uint8)
    boundary_BT[:, 1:] = levels_V[tokens_BT[:, :-1]]
    return FilledContext(real_BT, boundary_BT)


def benign(held_out: Iterable[Any], n: int = 64) -> list[tuple[int, ...]]:
    """Up to ``n`` runs of whole benign sentences, each at least :data:`RUN` tokens long."""
    runs: list[tuple[int, ...]] = []
    for h in held_out:
        starts_BT = (h.context.boundary_BT > 0) & h.retain_BT
        for tokens_T, starts_T, doc_T, retain_T in zip(
            h.tokens_BT, starts_BT, h.doc_BT, h.retain_BT, strict=True
        ):
            at = starts_T.nonzero()[:, 0].tolist()
            while at:
                first, stop = at[0], next((s for s in at if s >= at[0] + RUN), None)
                if stop is None:
                    break
                same = (doc_T[first:stop] == doc_T[first]).all() and retain_T[first:stop].all()
                if same and stop - first < 2 * RUN:
                    runs.append(tuple(tokens_T[first:stop].tolist()))
                at = [s for s in at if s >= stop]
    return runs[:n]


def disguised(
    questions: Iterable[Question],
    attack: str,
    runs: list[tuple[int, ...]],
    levels_V: Tensor,
    padding: int = RUN,
    seed: int = 0,
) -> list[Question]:
    """The questions under an attack; those to which it does not apply are left out.

    ``levels_V``: the level that starts after each token; ``split`` goes to the last place in a
    prompt where a sentence starts. ``padding``: at least so many tokens, runs being taken whole.
    """
    if attack == "paraphrase":
        return [q for q in questions if q.form != "plain"]
    if attack not in ("dilution", "split"):
        return list(questions)
    draw = np.random.default_rng(seed)
    of_fact: dict[tuple, tuple[int, ...]] = {}
    out = []
    for q in questions:
        key = (q.subject, q.fact)
        if key not in of_fact:
            text: tuple[int, ...] = ()
            while len(text) < padding:
                text += runs[int(draw.integers(len(runs)))]
            of_fact[key] = text
        place = 1 if attack == "dilution" else turn(q.prompt, levels_V)
        if place is not None and (attack == "split" or q.form == "plain"):
            out.append(q._replace(prompt=q.prompt[:place] + of_fact[key] + q.prompt[place:]))
    return out


def turn(prompt: tuple[int, ...], levels_V: Tensor) -> int | None:
    """Where the last sentence of a prompt begins; None if it has one sentence alone."""
    places = [i + 1 for i in range(1, len(prompt) - 1) if int(levels_V[prompt[i]]) > 0]
    return places[-1] if places else None
