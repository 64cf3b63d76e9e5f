"""Attacks on an unlearned model: the same facts asked for in ways that the edit was not made on.

    dilution      n tokens of benign text stand before the question, in its plain form (n from 0 on)
    split         a run of benign text parts the question from the sentence that asks, where it has two
    paraphrase    only the forms in which no text states the fact, where the world has such forms
    perturbation  the residual that the gate and the edit read is off by NOISE of its norm
    relearning    the blocks above the edit are trained for RELEARN steps on facts that are not judged

Benign text is whole retained held-out sentences. What the model without the edit does not answer
under the attack is not counted.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from lab.worlds.knowledge import Question

ATTACKS = ("dilution", "split", "paraphrase", "perturbation", "relearning")
PADDINGS = (0, 25, 50, 100, 200, 400)
NOISE, RELEARN = 0.3, 50
RUN = 24
"""Least tokens of one run of benign text."""


def benign(held_out: Iterable[Any], n: int = 64) -> list[tuple[int, ...]]:
    """Up to ``n`` runs of whole benign sentences, each at least :data:`RUN` tokens long."""
    runs: list[tuple[int, ...]] = []
    for h in held_out:
        starts_BT = (h.context.boundary_BT > 0) & h.retain_BT
        for tokens_T, starts_T, doc_T, retain_T in zip(
            h.tokens_BT, starts_BT, h.doc_BT, h.retain_BT, strict=True
        ):
            at, first = starts_T.nonzero()[:, 0].tolist(), 0
            while at and len(runs) < n:
                first, stop = at[0], next((s for s in at if s >= at[0] + RUN), None)
                if stop is None:
                    break
                same = (doc_T[first:stop] == doc_T[first]).all() and retain_T[first:stop].all()
                if same and stop - first < 2 * RUN:
                    runs.append(tuple(tokens_T[first:stop].tolist()))
                at = [s for s in at if s >= stop]
    return runs


def disguised(
    questions: Iterable[Question],
    attack: str,
    runs: list[tuple[int, ...]],
    levels_V: torch.Tensor,
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


def turn(prompt: tuple[int, ...], levels_V: torch.Tensor) -> int | None:
    """Where the last sentence of a prompt begins; None if it has one sentence alone."""
    places = [i + 1 for i in range(1, len(prompt) - 1) if int(levels_V[prompt[i]]) > 0]
    return places[-1] if places else None
