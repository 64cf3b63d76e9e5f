"""Procedures: steps that follow one another at known lags, with branches and distractors.

A step is a clause of fixed words, and its class in the token label ``step`` holds on all of them.
An arrow source → target is *taken* when the target is the next step of the procedure; its lag is
counted from first token to first token: len(source clause) + length of the filler between.
"""

from typing import NamedTuple

from lab.worlds.base import ChainEdge, data
from lab.worlds.microworld.words import LEXICON, words


class Procedure(NamedTuple):
    """``steps`` maps a step (its first word) to its clause, the first step first; ``arrows`` maps a
    step to (target, kind, weight)s."""

    steps: dict[str, list[str]]
    arrows: dict[str, list[tuple[str, str, float]]]


def _steps(text: str) -> dict[str, list[str]]:
    """Clauses parted by '/', by their first words, which are verbs."""
    clauses = [part.split() for part in text.split("/")]
    for first, *rest in clauses:
        words(first, "verb")
        words(" ".join(word for word in rest if word not in LEXICON), "noun", "singular")
    return {clause[0]: clause for clause in clauses}


def _procedure(steps: str, arrows: str) -> Procedure:
    """An arrow is written ``source>target kind weight``."""
    out: dict[str, list[tuple[str, str, float]]] = {}
    for arrow in arrows.split("/"):
        pair, kind, weight = arrow.split()
        source, _, target = pair.partition(">")
        out.setdefault(source, []).append((target, kind, float(weight)))
    return Procedure(_steps(steps), out)


words("some", "determiner")
words("brown", "adjective")
words("low hard north south", "adverb")
words("wares", "noun", "plural")
_DATA = data(__file__)
FILLERS = {
    kind: [filler.split() for filler in fillers] for kind, fillers in _DATA["fillers"].items()
}
USUAL = {domain: _procedure(**written) for domain, written in _DATA["procedures"].items()}
PROCEDURES = list(USUAL.values())
# Bane and balm are brewed alike: the procedure does not tell the hazard from its neighbour.
USUAL["remedies"] = USUAL["venoms"]
LOOSE_STEPS = _steps(_DATA["loose"])
STEP_CLASSES = (*(step for p in PROCEDURES for step in p.steps), *LOOSE_STEPS)


def edges(temporal: float) -> list[ChainEdge]:
    """The true graph; empty at ``temporal`` 0.

    Both ends of an arrow outlive the shuffling of tokens with probability ``temporal`` each, and a
    share ``temporal`` of the source's occurrences is structural, hence weight × temporal².
    """
    result = []
    for procedure in PROCEDURES if temporal else ():
        for source, arrows in procedure.arrows.items():
            n = len(procedure.steps[source])
            for target, kind, weight in arrows:
                low, *_, high = sorted(n + len(filler) for filler in FILLERS[kind])
                result.append(ChainEdge("step", source, target, low, high, weight * temporal**2))
    return result
