"""Linguistic probing items: minimal pairs, split by template and by word."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.worlds.knowledge import logits_function
from tsae.errors import WorldError


class ProbeItem(NamedTuple):
    """One half of a minimal pair; pairs stand next to each other in a list of items.

    ``tokens`` begin with BOS; ``position`` is the deciding token, where codes are read and after
    which the model itself chooses between the token ids ``good`` and ``bad``; ``label`` (0/1) is
    what a probe should tell; ``template`` and ``word`` number the frame and the content word, for
    splitting; ``condition`` names the difficulty, such as ``attractors=1``.
    """

    task: str
    tokens: tuple[int, ...]
    position: int
    label: int
    template: int
    word: int
    condition: str
    good: int
    bad: int


def ends_at(
    task: str,
    tokens: Sequence[int],
    *,
    label: int,
    template: int,
    word: int,
    condition: str,
    good: int,
    bad: int,
) -> ProbeItem:
    """An item whose deciding token is its last one."""
    tokens = tuple(tokens)
    return ProbeItem(task, tokens, len(tokens) - 1, label, template, word, condition, good, bad)


class Half(NamedTuple):
    """One half of a minimal pair as text, up to the place where one of two ``forms``, the right one
    first, follows; the other fields are those of :class:`ProbeItem`."""

    text: str
    forms: tuple[str, str]
    label: int
    template: int
    word: int
    condition: str


Halves = Iterator[Half]


def items(
    task: str, halves: Halves, encode: Callable[[str], list[int]], bos_id: int
) -> list[ProbeItem]:
    """Items of ``halves``, in their order. Raises :class:`WorldError` where the tokenizer splits one
    of the forms that are chosen between."""
    found = []
    for half in halves:
        good, bad = (single(form, encode) for form in half.forms)
        tokens = (bos_id, *encode(half.text))
        found.append(ends_at(task, tokens, good=good, bad=bad, **_rest(half)))
    return found


def _rest(half: Half) -> dict[str, Any]:
    return {name: value for name, value in half._asdict().items() if name not in ("text", "forms")}


def single(form: str, encode: Callable[[str], list[int]]) -> int:
    """The one token that ``form`` is."""
    tokens = encode(form)
    if len(tokens) != 1:
        raise WorldError(
            f"The tokenizer splits {form!r} into {len(tokens)} tokens; these pairs need it whole, so "
            "ask for other tasks."
        )
    return tokens[0]


def split(
    items: list[ProbeItem], test_share: float = 0.5, seed: int = 0
) -> tuple[list[ProbeItem], list[ProbeItem]]:
    """Training and test items that share neither a template nor a word.

    A share ``test_share`` of the templates and of the words (at least one of each, not all) is
    drawn for the test; items with one of the two on either side are left out. Raises ValueError
    when there are fewer than two templates or words.
    """
    rng = np.random.default_rng(seed)
    held: list[set[int]] = []
    for kind in ("template", "word"):
        values = sorted({getattr(item, kind) for item in items})
        if len(values) < 2:
            raise ValueError(f"{kind}s in the items are {values}; a split needs at least two")
        n = min(max(round(test_share * len(values)), 1), len(values) - 1)
        held.append(set(rng.permutation(values)[:n].tolist()))
    templates, words = held
    train = [i for i in items if i.template not in templates and i.word not in words]
    test = [i for i in items if i.template in templates and i.word in words]
    return train, test


@torch.no_grad()
def choices(
    model: object | Callable[[Tensor], Tensor],
    items: list[ProbeItem],
    batch_size: int = 64,
    device: str = "cpu",
) -> np.ndarray:
    """Whether the model gives ``good`` a higher logit than ``bad`` after the deciding token, bool
    [items].
    """
    logits = logits_function(model)
    right = np.zeros(len(items), bool)
    order = sorted(range(len(items)), key=lambda i: len(items[i].tokens))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        tokens_BT = torch.zeros(
            len(chosen), max(len(items[i].tokens) for i in chosen), dtype=torch.long
        )
        for b, i in enumerate(chosen):
            tokens_BT[b, : len(items[i].tokens)] = torch.tensor(items[i].tokens)
        logits_BTV = logits(tokens_BT.to(device))
        for b, i in enumerate(chosen):
            item = items[i]
            at_V = logits_BTV[b, item.position]
            right[i] = bool(at_V[item.good] > at_V[item.bad])
    return right
