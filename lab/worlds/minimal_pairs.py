"""English minimal pairs written for this project: agreement, coreference, senses of a word.

Every item is a frame filled with a word; frames and words are numbered, so that a probe can be
tested on neither's like.
"""

from itertools import product

from lab.worlds.base import data
from lab.worlds.tasks import Encode, Halves, ProbeItem, items

_DATA = data(__file__)
_NOUNS, _BETWEEN, _WOMEN, _MEN = (_DATA[k].split() for k in ("nouns", "between", "women", "men"))
_NEAR = (("near", "behind"), ("next to", "above"), ("beside", "near"))


def make(task: str, encode: Encode, bos_id: int) -> list[ProbeItem]:
    """The items of one of :data:`TASKS`; both halves of a pair stand together."""
    return items(task, TASKS[task](), encode, bos_id)


def agreement() -> Halves:
    """``the key near the doors`` … is/are; a pair differs in the head noun's number, the label.

    Condition ``attractors=n``: n of the 0 to 2 nouns in between have the other number.
    """
    for (template, opening), n in product(enumerate(_DATA["agreement"]), range(3)):
        for (word, head), numbers in product(enumerate(_NOUNS), product((0, 1), repeat=n)):
            middle = ""
            for place, number in enumerate(numbers):
                noun = _BETWEEN[(word + 2 * place + template) % len(_BETWEEN)] + "s" * number
                middle += f" {_NEAR[template % len(_NEAR)][place]} the {noun}"
            for label in (0, 1):
                condition = f"attractors={sum(number != label for number in numbers)}"
                yield f"{opening} {head}{'s' * label}{middle}", label, template, word, condition


def coreference() -> Halves:
    """Which pronoun comes next; the label is the referent's gender (0 feminine, 1 masculine).

    A pair exchanges a woman's and a man's name. Conditions: ``gender`` (one person is named),
    ``subject`` (a reflexive of the first of two), ``object`` (of the second one, who is told to).
    """
    for condition, frames in _DATA["coreference"].items():
        people = enumerate(zip(_WOMEN, _MEN, strict=True))
        for (template, frame), (word, pair) in product(enumerate(frames), people):
            for label in (0, 1):
                text = frame.format(pair[label], pair[1 - label])
                yield text, label, template, word, condition


def sense() -> Halves:
    """``… the river. The bank`` flooded/closed; the label is the sense (0 natural, 1 made).

    A pair differs in what the first sentence is about. Condition ``near``; ``far``, ``farther``:
    one or two other sentences, which tell nothing, stand in between.
    """
    frames, senses = enumerate(_DATA["sense"]), enumerate(_DATA["senses"])
    for (template, frame), (word, (name, *cues)) in product(frames, senses):
        for (condition, pause), label in product(_DATA["pauses"].items(), (0, 1)):
            yield frame.format(cues[label], pause, name), label, template, word, condition


TASKS = {"agreement": agreement, "coreference": coreference, "sense": sense}
