r"""Temporal probing: does the code at the deciding token hold what earlier tokens said?

Minimal pairs of the world's linguistic tasks (:mod:`lab.worlds.tasks`). The model reads an item
from BOS on, an SAE encodes all of it as one document, and a logistic regression on the code of the
deciding token tells the item's label; the same on the raw residual is the reference. Training and
test items share neither template nor word; ``n_splits`` such splits are drawn.

A task has *power* when it has at least 400 items and the residual's probe is right on 60% to 98% of
them: below, there is nothing for a code to hold; above, every code holds it. A task without is
dropped, and ``probe_dropped`` says why: 1 too few items, 2 near chance, 3 at the ceiling.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from lab.edits.edit import context_of
from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds import tasks
from lab.worlds.base import World
from lab.worlds.tasks import ProbeItem
from tsae import models
from tsae.sequences import SequenceContext

RESIDUAL = "residual"
KINDS = {"": None, "one_": 1}  # how many features the probe is given; None: all
LEAST, CLEAR, CEILING = 400, 0.6, 0.98
"""Items, and the accuracies of the residual's probe between which codes can differ."""


@register("temporal_probing", together=True, needs=("model",))
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World,
    *,
    task_names: Sequence[str] | None = None,
    n_splits: int = 4,
) -> dict[str, Measured]:
    """Rows ``probe_accuracy``, ``probe_residual_accuracy``, and ``probe_one_accuracy``,
    ``probe_residual_one_accuracy`` of a probe that is given one feature alone, the one whose means
    over the two labels differ most on the training items.

    Groups: the task, and ``task|condition``; n = test answers of all splits. Of a task without
    power ``probe_residual_accuracy`` and ``probe_dropped`` alone. Chance is 0.5: both halves of a
    pair stand on the same side. Document rows of both probes on codes: doc = number of the pair over
    all tasks, num = right answers, den = answers. Says nothing for a world without tasks. Raises
    ValueError for ``n_splits`` below 1.
    """
    if n_splits < 1:
        raise ValueError(f"n_splits={n_splits!r} is not allowed; n_splits must be at least 1.")
    chosen = [t for t in world.task_names() if task_names is None or t in task_names]
    made: dict[str, tuple[list, list]] = {name: ([], []) for name in saes}
    first_pair = 0
    model = world.model(reading.device)
    for task in tqdm(chosen, desc="temporal probing", disable=not reading.progress):
        items = world.probe_items(task)
        codes = features(saes, model, reading, items)
        place = {id(item): i for i, item in enumerate(items)}
        splits = (tasks.split(items, seed=reading.seed + s) for s in range(n_splits))
        halves = [[[place[id(i)] for i in half] for half in split] for split in splits]
        residual = {kind: probe(codes[RESIDUAL], items, halves, k) for kind, k in KINDS.items()}
        every = groups(items)
        own = accuracy_rows("probe_residual_accuracy", every, residual[""])
        if why := no_power(len(items), own[0]["value"]):
            own.append(row("probe_dropped", task, why, len(items)))
            every = {}
        own += accuracy_rows("probe_residual_one_accuracy", every, residual["one_"])
        for name, (rows, documents) in made.items():
            rows += own
            for kind, k in KINDS.items() if every else ():
                answers = probe(codes[name], items, halves, k)
                rows += accuracy_rows(f"probe_{kind}accuracy", every, answers)
                documents += document_rows(f"probe_{kind}accuracy", every, answers, first_pair)
        first_pair += len(items) // 2
    return {
        name: Measured(rows, pd.concat(documents, ignore_index=True) if documents else None)
        for name, (rows, documents) in made.items()
        if rows
    }


def no_power(n_items: int, residual: float) -> int:
    """0, or why codes cannot differ here: 1 few items, 2 near chance, 3 at the ceiling."""
    if n_items < LEAST:
        return 1
    return 2 if residual < CLEAR else 3 if residual > CEILING else 0


def groups(items: Sequence[ProbeItem]) -> dict[str, np.ndarray]:
    """Places of the items of a task, and of each of its conditions."""
    condition_I = np.array([item.condition for item in items])
    names = {items[0].task: np.arange(len(items))}
    for condition in sorted(set(condition_I)):
        names[f"{items[0].task}|{condition}"] = np.flatnonzero(condition_I == condition)
    return names


def features(
    saes: Mapping[str, Encoder], model: Any, reading: Reading, items: Sequence[ProbeItem]
) -> dict[str, np.ndarray]:
    """Codes [I, F] of every SAE, and the residual [I, d], at each item's deciding token."""
    store, device = reading.store, reading.device
    order = sorted(range(len(items)), key=lambda i: len(items[i].tokens))
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in (*saes, RESIDUAL)}
    for start in range(0, len(order), reading.sizes.batch):
        batch = [items[i] for i in order[start : start + reading.sizes.batch]]
        tokens_BT = pad_sequence([torch.tensor(item.tokens) for item in batch], batch_first=True)
        lengths_B = torch.tensor([len(item.tokens) for item in batch])
        mask_BT = torch.arange(tokens_BT.shape[1]) < lengths_B[:, None]
        raw_BTD = models.residual(model, tokens_BT.to(device), store.layer)
        context = context_of(SequenceContext(mask_BT), raw_BTD, math.inf)
        x_BTD = raw_BTD.float() * store.scale
        rows, at = torch.arange(len(batch)), lengths_B - 1
        parts[RESIDUAL].append(x_BTD[rows, at].cpu())
        for name, sae in saes.items():
            parts[name].append(sae.encode(x_BTD, context)[rows, at].cpu())
    back = np.argsort(order)
    return {name: torch.cat(part).numpy()[back] for name, part in parts.items()}


def probe(
    a_IF: np.ndarray,
    items: Sequence[ProbeItem],
    halves: Sequence[Sequence[Sequence[int]]],
    k: int | None = None,
) -> np.ndarray:
    """Right and given test answers [2, I], summed over the splits (places of train, of test).

    ``k``: the probe is given the k features whose means over the labels differ most in training.
    One size for all features (their root mean square per token becomes 10, with which
    scikit-learn's penalty leaves the weights free), so that a rare latent is not blown up.
    """
    label_I = np.array([item.label for item in items])
    counts = np.zeros((2, len(items)))
    for train, test in halves:
        used, one = a_IF, label_I[train] == 1
        if k is not None:
            gap_F = a_IF[train][one].mean(0) - a_IF[train][~one].mean(0)
            used = a_IF[:, np.argsort(-np.abs(gap_F), kind="stable")[:k]]
        size = float(np.sqrt(np.square(used[train], dtype=np.float64).sum(1).mean())) or 1.0
        fitted = LogisticRegression(max_iter=1000).fit(used[train] * (10 / size), label_I[train])
        counts[0, test] += fitted.predict(used[test] * (10 / size)) == label_I[test]
        counts[1, test] += 1
    return counts


def document_rows(
    metric: str, groups: Mapping[str, np.ndarray], counts: np.ndarray, first_pair: int = 0
) -> list[pd.DataFrame]:
    """The answers of :func:`probe` by pair of items and by group."""
    frames = []
    for group, at in groups.items():
        at = at[counts[1, at] > 0]
        answers = {"num": counts[0, at], "den": counts[1, at], "doc": first_pair + at // 2}
        pairs = pd.DataFrame(answers).groupby("doc", as_index=False).sum()
        frames.append(pairs.assign(metric=metric, group=group))
    return frames


def accuracy_rows(
    metric: str, groups: Mapping[str, np.ndarray], counts: np.ndarray
) -> list[dict[str, Any]]:
    """Share of right answers by group, of groups that are asked at all."""
    sums = {group: counts[:, at].sum(1) for group, at in groups.items()}
    return [
        row(metric, g, right / asked, int(asked)) for g, (right, asked) in sums.items() if asked
    ]
