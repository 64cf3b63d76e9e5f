"""What a model knows: multiple-choice questions, scored by the log-likelihood of each choice."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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


Logits = Callable[[Tensor], Tensor]


def logits_function(model: Any) -> Logits:
    """``tokens_BT → logits_BTV`` for a TransformerBridge; any other callable is taken as it is."""
    if hasattr(model, "original_model"):
        return lambda tokens_BT: model(tokens_BT, return_type="logits", prepend_bos=False)
    return model


@torch.no_grad()
def choice_scores(
    model: object, questions: list[Question], batch_size: int = 64, device: str = "cpu"
) -> np.ndarray:
    """Log-likelihood of every choice, float64 [Q, C]: Σ_j log p(c_j | prompt, c_<j), in nats.

    ``model`` is a TransformerBridge or a function from tokens int64 [B,T] to logits [B,T,V]. Where
    all choices are one token long, one row of the batch answers the whole question. Rows are padded
    on the right, which a causal model does not see. Raises ValueError when there is no question.
    """
    if not questions:
        raise ValueError("questions is empty; a world with questions is needed")
    logits = logits_function(model)
    rows: list[
        tuple[tuple[int, ...], int, int | None]
    ] = []  # (tokens fed, question, choice or None for all at once)
    for q, question in enumerate(questions):
        if all(len(choice) == 1 for choice in question.choices):
            rows.append((question.prompt, q, None))
        else:
            rows += [(question.prompt + x[:-1], q, c) for c, x in enumerate(question.choices)]
    rows.sort(key=lambda row: len(row[0]))
    scores_QC = np.full((len(questions), max(len(q.choices) for q in questions)), -np.inf)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        tokens_BT = torch.zeros(len(batch), max(len(row[0]) for row in batch), dtype=torch.long)
        for b, (tokens, _, _) in enumerate(batch):
            tokens_BT[b, : len(tokens)] = torch.tensor(tokens)
        logits_BTV = logits(tokens_BT.to(device))
        for b, (tokens, q, c) in enumerate(batch):
            question = questions[q]
            first = len(question.prompt) - 1
            logp_JV = logits_BTV[b, first : len(tokens)].double().log_softmax(-1).cpu()
            if c is None:
                ids = torch.tensor([choice[0] for choice in question.choices])
                scores_QC[q, : len(ids)] = logp_JV[0, ids].numpy()
            else:
                choice_J = torch.tensor(question.choices[c])
                scores_QC[q, c] = logp_JV.gather(1, choice_J[:, None]).sum().item()
    return scores_QC


def accuracy(
    model: object, questions: list[Question], batch_size: int = 64, device: str = "cpu"
) -> np.ndarray:
    """Which questions are answered rightly, bool [Q].

    A question counts only when its right choice has the strictly highest log-likelihood under
    *every* order of options in which its (fact, form) is asked. The mean over a neighbourhood is
    its accuracy.
    """
    scores_QC = choice_scores(model, questions, batch_size, device)
    answers = np.array([question.answer for question in questions])
    others_QC = scores_QC.copy()
    others_QC[np.arange(len(answers)), answers] = -np.inf
    right = scores_QC[np.arange(len(answers)), answers] > others_QC.max(1)
    under_every_order: dict[tuple[str, int, str], bool] = defaultdict(lambda: True)
    keys = [(question.subject, question.fact, question.form) for question in questions]
    for key, ok in zip(keys, right, strict=True):
        under_every_order[key] &= bool(ok)
    return np.array([under_every_order[key] for key in keys])


def by_neighbourhood(
    questions: list[Question], right: np.ndarray, form: str | None = None
) -> dict[str, float]:
    """Share of right answers per neighbourhood, over one question form or all of them."""
    result = {}
    for neighbourhood in NEIGHBOURHOODS:
        chosen = [
            bool(ok)
            for question, ok in zip(questions, right, strict=True)
            if question.neighbourhood == neighbourhood and form in (None, question.form)
        ]
        if chosen:
            result[neighbourhood] = sum(chosen) / len(chosen)
    return result
