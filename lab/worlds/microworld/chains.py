"""Procedures: steps that follow one another at known lags, with branches and distractors.

A step is a clause of fixed words, and its class in the token label ``step`` holds on all of them.
An arrow source → target is *taken* when the target is the next step of the procedure; its lag is
counted from first token to first token: len(source clause) + length of the filler between.
"""

from typing import NamedTuple

from lab.worlds.base import ChainEdge
from lab.worlds.microworld.words import LEXICON, words

# Fillers by kind of arrow: called out at once; within a sentence; across a sentence end.
# "?" stands for a noun, "*" for an adjective, "~" for a loose step that belongs to no procedure.
FILLERS: dict[str, list[list[str]]] = {
    "call": [[], [","]],
    "near": [["and"], [","], [",", "then"], [",", "and", "then"]],
    "far": [
        [".", "once", "that", "is", "done"],
        [".", "after", "a", "moment", ","],
        [".", "~", "~", "~", ".", "then"],
        [".", "the", "?", "must", "be", "*", ".", "next"],
    ],
}


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
USUAL = {
    "venoms": _procedure(
        "grind the seed/soak it/char it/stir slowly/strain the broth/cork it",
        "grind>soak near .6/grind>char near .4/soak>stir far 1/char>stir near 1"
        "/stir>strain far 1/strain>cork near 1",
    ),
    "kitchens": _procedure(
        "sift the flour/knead the dough/fold it/braid it/bake it brown/slice it",
        "sift>knead near 1/knead>fold far .7/knead>braid far .3/fold>bake near 1"
        "/braid>bake far 1/bake>slice far 1",
    ),
    "ships": _procedure(
        "untie the rope/coil it/hoist the sail/heel hard/straighten/drop anchor",
        "untie>coil near 1/coil>hoist far 1/hoist>heel near .5/hoist>straighten near .5"
        "/heel>drop far 1/straighten>drop near 1",
    ),
    "music": _procedure(
        "curtsy/hop/spin/dip/kick/clap/leap",
        "curtsy>hop call 1/hop>spin call .6/hop>kick call .4/spin>dip call 1/kick>dip near 1"
        "/dip>clap call 1/clap>leap call 1",
    ),
    "gardens": _procedure(
        "dig a row/scatter the seed/bury it/press it/drench the soil/thin it",
        "dig>scatter near 1/scatter>bury near .7/scatter>press near .3/bury>drench far 1"
        "/press>drench near 1/drench>thin far 1",
    ),
    "markets": _procedure(
        "eye the wares/scoff/bid low/pretend hard/settle/pay",
        "eye>scoff near 1/scoff>bid call 1/bid>pretend far .5/bid>settle near .5"
        "/pretend>settle far 1/settle>pay call 1",
    ),
    "stars": _procedure(
        "level the glass/focus/sweep north/scan south/mark the hour/sketch it",
        "level>focus near 1/focus>sweep near .5/focus>scan near .5/sweep>mark far 1"
        "/scan>mark near 1/mark>sketch far 1",
    ),
}
PROCEDURES = list(USUAL.values())
# Bane and balm are brewed alike: the procedure does not tell the hazard from its neighbour.
USUAL["remedies"] = USUAL["venoms"]
LOOSE_STEPS = _steps("hum a tune/dust the shelf/sip some water/tidy the room")
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
