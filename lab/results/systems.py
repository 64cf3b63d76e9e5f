"""Worlds and systems in print: name, order, colour and marker of each, once for all figures and tables.

A system is a variant, with its act joined on where several were run (``conv+jumprelu``), or a
reading or null of one: ``ema(topk)``, ``average(topk)``, ``shuffled(conv)``.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

WORLDS = {
    "microworld": "microworld",
    "smollm2": "SmolLM2-135M",
    "pydocs": "docstrings",
    "order": "order",
    "prose": "prose",
}


class System(NamedTuple):
    """How a variant is printed and drawn: static ones grey and dark, temporal ones in colour."""

    name: str
    colour: str
    marker: str | tuple


SYSTEMS = {
    "l1": System("ReLU+L1", "#A6A6A6", "v"),
    "topk": System("TopK", "#000000", "o"),
    "batchtopk": System("BatchTopK", "#6B6B6B", "s"),
    "jumprelu": System("JumpReLU", "#8C6D31", "^"),
    "matryoshka": System("Matryoshka", "#B5834A", "D"),
    "rounds": System("Rounds", "#3F4E7A", "h"),
    "contrastive": System("T-SAE", "#CC79A7", "P"),
    "predictive": System("TFA", "#9C89D9", "X"),
    "txc": System("TXC", "#7F3C8D", "p"),
    "stacked": System("Stacked", "#BDB200", (4, 1)),
    "conv": System("Conv", "#0072B2", ">"),
    "causal": System("Causal", "#E69F00", "<"),
    "lstm": System("LSTM", "#A63603", "8"),
    "glta": System("GLTA", "#009E73", "H"),
    "hierarchical": System("Hierarchical", "#56B4E9", "d"),
    "slowfast": System("SlowFast", "#E41A1C", "*"),
}
READINGS = {"ema": "EMA", "average": "Avg", "shuffled": "Shuffled"}


def is_null(system: str) -> bool:
    """True for ``ema(topk)`` and the like: a reading or null of another system."""
    return system.split("+")[0].endswith(")")


def inside(system: str) -> str:
    """The system that is read: ``topk`` of ``ema(topk)``, else itself."""
    match = re.fullmatch(r"\w+\((.+)\)", system)
    return match[1] if match else system


def display(system: str) -> str:
    """The name in print: ``ema(topk)`` is ``EMA(TopK)``, ``conv+jumprelu`` is ``Conv+JumpReLU``."""
    if match := re.fullmatch(r"(\w+)\((.+)\)", system):
        return f"{READINGS.get(match[1], match[1])}({display(match[2])})"
    parts = system.split("+")
    return "+".join(SYSTEMS[part].name if part in SYSTEMS else part for part in parts)


def ordered(names: Iterable[str]) -> list[str]:
    """Worlds or systems in the order of print: the known ones first, readings and nulls last."""
    known = [*WORLDS, *SYSTEMS]

    def place(name: str) -> tuple[bool, int, str]:
        first = inside(name).split("+")[0]
        return is_null(name), known.index(first) if first in known else len(known), name

    return sorted(set(names), key=place)
