"""Linguistic probing items: minimal pairs, split by template and by word."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

Encode = Callable[[str], list[int]]
"""Token ids of a text, without BOS."""


class ProbeItem(NamedTuple):
    """One half of a minimal pair; pairs stand next to each other in a list of items.

    ``tokens`` begin with BOS and end with the deciding token, where codes are read; ``label`` (0/1)
    is what a probe should tell; ``template`` and ``word`` number the frame and the content word,
    for splitting; ``condition`` names the difficulty, such as ``attractors=1``.
    """

    task: str
    tokens: tuple[int, ...]
    label: int
    template: int
    word: int
    condition: str


Halves = Iterator[tuple[Any, ...]]
"""Text up to the deciding word, then the other fields of a :class:`ProbeItem`, in its order."""


def items(task: str, halves: Halves, encode: Encode, bos_id: int) -> list[ProbeItem]:
    """Items of ``halves``, in their order."""
    return [ProbeItem(task, (bos_id, *encode(text)), *rest) for text, *rest in halves]


def split(items: list[ProbeItem], seed: int = 0) -> tuple[list[ProbeItem], list[ProbeItem]]:
    """Training and test items that share neither a template nor a word.

    Half of the templates and half of the words are drawn for the test; items with one of the two on
    either side are left out. Raises ValueError when there are fewer than two templates or words.
    """
    rng = np.random.default_rng(seed)
    held: list[set[int]] = []
    for kind in ("template", "word"):
        values = sorted({getattr(item, kind) for item in items})
        if len(values) < 2:
            raise ValueError(f"{kind}s in the items are {values}; a split needs at least two")
        held.append(set(rng.permutation(values)[: round(len(values) / 2)].tolist()))
    templates, words = held
    train = [i for i in items if i.template not in templates and i.word not in words]
    test = [i for i in items if i.template in templates and i.word in words]
    return train, test
