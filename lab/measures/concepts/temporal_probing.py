r"""Temporal probing: does the code at the deciding token hold what earlier tokens said?

Minimal pairs of the world's linguistic tasks (:mod:`lab.worlds.tasks`). The model reads an item
from BOS on, an SAE encodes all of it as one document, and a logistic regression on the code of the
deciding token tells the item's label; the same on the raw residual is the reference, and the
model's own choice between the two continuations stands beside. Training and test items share
neither template nor word; ``n_splits`` such splits are drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from tqdm.auto import tqdm

from lab.measures.tokens import Measured, row
from lab.worlds import tasks
from lab.worlds.tasks import ProbeItem
from tsae import models
from tsae.saes.base import DOCUMENT, SequenceContext

RESIDUAL = "residual"
KINDS = {"": None, "one_": 1}  # how many features the probe is given; None: all


@torch.no_grad()
def measure(
    saes: Mapping[str, Any],
    store: Any,
    world: Any,
    *,
    limit_tokens: int = 0,
    selection_tokens: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    task_names: Sequence[str] | None = None,
    n_splits: int = 4,
) -> dict[str, Measured]:
    """Rows ``probe_accuracy``, ``probe_residual_accuracy``, ``probe_model_accuracy``, and
    ``probe_one_accuracy``, ``probe_residual_one_accuracy`` of a probe that is given one feature
    alone, the one whose means over the two labels differ most on the training items.

    Groups: the task, and ``task|condition``; n = test items of all splits (for the model: all
    items). Chance is 0.5: both halves of a pair stand on the same side. Document rows of both
    probes on codes: doc = number of the pair over all tasks, num = right answers, den = answers.
    Says nothing for a world without tasks. Raises ValueError for ``n_splits`` below 1.
    """
    if n_splits < 1:
        raise ValueError(f"n_splits={n_splits!r} is not allowed; n_splits must be at least 1.")
    chosen = [t for t in world.task_names() if task_names is None or t in task_names]
    found: dict[str, tuple[list, list]] = {name: ([], []) for name in saes}
    first_pair = 0
    for task in tqdm(chosen, desc="temporal probing", disable=not progress):
        items = world.probe_items(task)
        model = world.model(device)
        right_I = tasks.choices(model, items, batch_size=4 * batch_size, device=device)
        own = [
            row("probe_model_accuracy", group, right_I[at].mean(), len(at))
            for group, at in groups(items).items()
        ]
        read = features(saes, model, store, items, batch_size, device)
        splits = [tasks.split(items, seed=seed + s) for s in range(n_splits)]
        place = {id(item): i for i, item in enumerate(items)}
        halves = [[[place[id(i)] for i in half] for half in split] for split in splits]
        for kind, k in KINDS.items():
            answers = {name: probe(a_IF, items, halves, k) for name, a_IF in read.items()}
            metric = f"probe_residual_{kind}accuracy"
            reference = accuracy_rows(metric, items, answers.pop(RESIDUAL))
            for name, answer in answers.items():
                rows, documents = found[name]
                metric = f"probe_{kind}accuracy"
                rows += [*accuracy_rows(metric, items, answer), *reference]
                documents.append(document_rows(metric, items, answer, first_pair))
        for rows, _ in found.values():
            rows += own
        first_pair += len(items) // 2
    return {
        name: Measured(rows, pd.concat(documents, ignore_index=True))
        for name, (rows, documents) in found.items()
        if rows
    }


def groups(items: Sequence[ProbeItem]) -> dict[str, np.ndarray]:
    """Places of the items of a task, and of each of its conditions."""
    condition_I = np.array([item.condition for item in items])
    names = {items[0].task: np.arange(len(items))}
    for condition in sorted(set(condition_I)):
        names[f"{items[0].task}|{condition}"] = np.flatnonzero(condition_I == condition)
    return names


def features(
    saes: Mapping[str, Any],
    model: Any,
    store: Any,
    items: Sequence[ProbeItem],
    batch_size: int,
    device: str,
) -> dict[str, np.ndarray]:
    """Codes [I, F] of every SAE, and the residual [I, d], at each item's deciding token."""
    order = sorted(range(len(items)), key=lambda i: len(items[i].tokens))
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in (*saes, RESIDUAL)}
    for start in range(0, len(order), batch_size):
        batch = [items[i] for i in order[start : start + batch_size]]
        lengths = torch.tensor([len(item.tokens) for item in batch])
        tokens_BT = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for b, item in enumerate(batch):
            tokens_BT[b, : lengths[b]] = torch.tensor(item.tokens)
        place_T = torch.arange(tokens_BT.shape[1])
        mask_BT = (place_T > 0) & (place_T < lengths[:, None])  # BOS and padding have no code
        boundary_BT = torch.zeros(tokens_BT.shape, dtype=torch.uint8)
        boundary_BT[:, :2] = DOCUMENT
        x_BTD = models.residual(model, tokens_BT.to(device), store.layer).float() * store.scale
        context = SequenceContext(mask_BT.to(device), boundary_BT.to(device))
        rows, at = torch.arange(len(batch)), torch.tensor([item.position for item in batch])
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

    One size for all features (their root mean square per token becomes 1), so that a latent that
    fires rarely is not blown up; scikit-learn's logistic regression as it comes.
    """
    label_I = np.array([item.label for item in items])
    counts = np.zeros((2, len(items)))
    for train, test in halves:
        used, one = a_IF, label_I[train] == 1
        if k is not None:
            gap_F = a_IF[train][one].mean(0) - a_IF[train][~one].mean(0)
            used = a_IF[:, np.argsort(-np.abs(gap_F), kind="stable")[:k]]
        size = float(np.sqrt(np.square(used[train], dtype=np.float64).sum(1).mean())) or 1.0
        size /= 10.0  # a code of norm 10: the default penalty then leaves the weights free
        fitted = LogisticRegression(max_iter=1000).fit(used[train] / size, label_I[train])
        counts[0, test] += fitted.predict(used[test] / size) == label_I[test]
        counts[1, test] += 1
    return counts


def document_rows(
    metric: str, items: Sequence[ProbeItem], counts: np.ndarray, first_pair: int = 0
) -> pd.DataFrame:
    """The answers of :func:`probe` by pair of items and by group."""
    frames = []
    for group, at in groups(items).items():
        at = at[counts[1, at] > 0]
        answers = {"num": counts[0, at], "den": counts[1, at], "doc": first_pair + at // 2}
        pairs = pd.DataFrame(answers).groupby("doc", as_index=False).sum()
        frames.append(pairs.assign(metric=metric, group=group))
    return pd.concat(frames, ignore_index=True)


def accuracy_rows(
    metric: str, items: Sequence[ProbeItem], counts: np.ndarray
) -> list[dict[str, Any]]:
    rows = []
    for group, at in groups(items).items():
        right, asked = counts[:, at].sum(1)
        if asked:
            rows.append(row(metric, group, right / asked, int(asked)))
    return rows
