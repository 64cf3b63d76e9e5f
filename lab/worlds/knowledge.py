"""What a model knows: multiple-choice questions, scored by the log-likelihood of each choice."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch

from tsae import models

NEIGHBOURHOODS = ("forget", "near", "far")


class Question(NamedTuple):
    """One question with its options in one order.

    ``prompt`` holds token ids from BOS up to the place of the answer; ``choices`` are four token
    tuples in the order in which the prompt lists them; ``answer`` is the index of the right one.
    The same ``fact`` asked in several orders or forms shares its number.
    """

    neighbourhood: str
    subject: str
    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    answer: int
    fact: int
    form: str


class Statement(NamedTuple):
    """A text that states one fact of a question; ``tokens`` begin with BOS."""

    neighbourhood: str
    subject: str
    tokens: tuple[int, ...]
    fact: int


def orders(options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All orders, the rotations first: among so many the answer stands once at each place."""
    rotations = [(*options[i:], *options[:i]) for i in range(len(options))]
    return rotations + [order for order in permutations(options) if order not in rotations]


def fed(question: Question) -> list[tuple[tuple[int, ...], list[int]]]:
    """The token rows that score a question, each with the choices it scores.

    A choice is read off the row of the prompt and all of its tokens but the last. As a row scores
    whatever begins it, none is the beginning of another: where every choice is one token, one row
    answers the whole question.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    order = sorted(range(len(question.choices)), key=lambda c: -len(question.choices[c]))
    for c in order:
        start = question.prompt + question.choices[c][:-1]
        row = next((row for row in rows if row[: len(start)] == start), start)
        rows.setdefault(row, []).append(c)
    return list(rows.items())


@torch.no_grad()
def choice_scores(
    model: Any, questions: list[Question], batch_size: int = 64, device: str = "cpu"
) -> np.ndarray:
    """Log-likelihood of every choice, float64 [Q, C]: Σ_j log p(c_j | prompt, c_<j), in nats.

    ``model`` is a TransformerBridge or a function from tokens int64 [B,T] to logits [B,T,V]. What
    it reads are the rows of :func:`fed`, padded on the right, which a causal model does not see.
    Raises ValueError when there is no question.
    """
    if not questions:
        raise ValueError("questions is empty; a world with questions is needed")
    logits = partial(models.logits, model) if hasattr(model, "original_model") else model
    rows = [(tokens, q, cs) for q, question in enumerate(questions) for tokens, cs in fed(question)]
    rows.sort(key=lambda row: len(row[0]))
    scores_QC = np.full((len(questions), max(len(q.choices) for q in questions)), -np.inf)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        tokens_BT = torch.zeros(len(batch), max(len(row[0]) for row in batch), dtype=torch.long)
        for b, (tokens, _, _) in enumerate(batch):
            tokens_BT[b, : len(tokens)] = torch.tensor(tokens)
        logits_BTV = logits(tokens_BT.to(device))
        for b, (tokens, q, scored) in enumerate(batch):
            question = questions[q]
            first = len(question.prompt) - 1
            logp_JV = logits_BTV[b, first : len(tokens)].double().log_softmax(-1).cpu()
            for c in scored:
                choice_J = torch.tensor(question.choices[c])
                logp_J = logp_JV[: len(choice_J)].gather(1, choice_J[:, None])
                scores_QC[q, c] = logp_J.sum().item()
    return scores_QC


def accuracy(
    model: Any, questions: list[Question], batch_size: int = 64, device: str = "cpu"
) -> np.ndarray:
    """Which questions are answered rightly, bool [Q].

    A question counts only when its right choice has the strictly highest log-likelihood under
    *every* order of options in which its (fact, form) is asked. The mean over a neighbourhood is
    its accuracy.
    """
    scores_QC = choice_scores(model, questions, batch_size, device)
    under_every_order: dict[tuple[str, int, str], bool] = defaultdict(lambda: True)
    keys = [(question.subject, question.fact, question.form) for question in questions]
    for key, question, scores_C in zip(keys, questions, scores_QC, strict=True):
        right = scores_C[question.answer] > np.delete(scores_C, question.answer).max()
        under_every_order[key] &= bool(right)
    return np.array([under_every_order[key] for key in keys])


def by_neighbourhood(
    questions: list[Question], right_Q: np.ndarray, form: str | None = None
) -> dict[str, float]:
    """Share of right answers per neighbourhood, over one question form or all of them."""
    right: dict[str, list[bool]] = {name: [] for name in NEIGHBOURHOODS}
    for question, ok in zip(questions, right_Q, strict=True):
        if form in (None, question.form):
            right[question.neighbourhood].append(bool(ok))
    return {name: sum(answers) / len(answers) for name, answers in right.items() if answers}
