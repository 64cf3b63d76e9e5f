"""Which of a world's questions are asked."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lab.worlds.knowledge import NEIGHBOURHOODS, Question


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
    facts: dict[str, list[tuple]] = {name: [] for name in NEIGHBOURHOODS}
    for q in questions:
        facts[q.neighbourhood].append((q.subject, q.fact))
    generator = np.random.default_rng(seed)
    kept = set()
    for name in NEIGHBOURHOODS:
        distinct = sorted(set(facts[name]))
        order = generator.permutation(len(distinct))
        kept |= {(name, *distinct[i]) for i in order[:n_facts]}
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
