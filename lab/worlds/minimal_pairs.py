"""English minimal pairs written for this project: agreement, coreference, senses of a word.

Every item is a frame filled with a word; frames and words are numbered, so that a probe can be
tested on neither's like. Made for SmolLM2; any model whose tokenizer has the forms as one token.
"""

from collections.abc import Callable
from itertools import product

from lab.worlds.tasks import Half, Halves, ProbeItem, items

TASKS = ("agreement", "coreference", "sense")

NOUNS = [
    (noun, noun + "s") for noun in "key teacher picture boat doctor letter farmer window".split()
]
BETWEEN = [(noun, noun + "s") for noun in "cabinet house river artist table".split()]
NEAR = (("near", "behind"), ("next to", "above"), ("beside", "near"))
AGREEMENT = (
    ("The", " is", " are"),
    ("Everyone knows that the", " is", " are"),
    ("This morning we noticed that the", " was", " were"),
    ("Many years ago, the", " was", " were"),
    ("According to the report, the", " has", " have"),
    ("I do not believe that the", " has", " have"),
)

WOMEN = "Mary Anna Sarah Emily Julia Linda Laura Alice Emma Nancy Karen Helen".split()
MEN = "John Peter David James Robert Paul Thomas Daniel Mark Henry George Frank".split()
PRONOUNS, REFLEXIVES = (" she", " he"), (" herself", " himself")
COREFERENCE = {
    "gender": (
        "{0} went home early because",
        "{0} was very tired, so",
        "{0} had never been to the city before, but",
        "{0} stopped at the door when",
        "{0} did not answer the phone although",
        "{0} called the office as soon as",
    ),
    "subject": (
        "{0} waited for {1} and kept blaming",
        "{0} spoke with {1} in the garden and then blamed",
        "{0} listened to {1} and began to doubt",
        "{0} met {1} at the station and introduced",
        "{0} wrote to {1} and did not say much about",
        "{0} danced with {1} and nearly hurt",
    ),
    "object": (
        "{1} asked {0} to take care of",
        "{1} told {0} not to blame",
        "{1} taught {0} how to defend",
        "{1} wanted {0} to believe in",
        "{1} helped {0} to introduce",
        "{1} reminded {0} not to hurt",
    ),
}

# A word, what tells of the living or natural sense, of the made one, and what each then does.
SENSES = [
    tuple(part.strip() for part in entry.split(","))
    for entry in """bank, river, money, flooded, closed; bat, cave, baseball game, flew, broke;
    crane, lake, building site, flew, lifted; mouse, cat, computer, ran, worked;
    seal, ocean, letter, swam, broke; trunk, elephant, car, moved, opened;
    plant, garden, workers, grew, closed; spring, mountain, mattress, flowed, broke;
    bulb, flowers, lamp, grew, burned; shell, beach, cannon, lay, exploded;
    python, jungle, programmers, slept, crashed; nail, finger, hammer, grew, held""".split(";")
]
SENSE = (
    "They were looking at the {0}.{1} The {2}",
    "She told me about the {0}.{1} She said that the {2}",
    "We walked past the {0}.{1} Suddenly the {2}",
    "He wrote a story about the {0}.{1} In the end the {2}",
    "There was a picture of the {0}.{1} Below it one could read how the {2}",
    "It all began with the {0}.{1} After a while the {2}",
)
PAUSES = {
    "near": "",
    "far": " It was a quiet day and nobody said much.",
    "farther": " It was a quiet day and nobody said much. The others had left an hour ago.",
}


def make(task: str, encode: Callable[[str], list[int]], bos_id: int) -> list[ProbeItem]:
    """The items of one of :data:`TASKS`; both halves of a pair stand together.

    Raises :class:`WorldError` when the tokenizer splits one of the forms that are chosen between.
    """
    pairs = {"agreement": agreement, "coreference": coreference, "sense": sense}[task]()
    return items(task, pairs, encode, bos_id)


def agreement() -> Halves:
    """``the key near the doors`` … is/are; a pair differs in the head noun's number, the label.

    Condition ``attractors=n``: n of the 0 to 2 nouns in between have the other number.
    """
    for (template, (opening, *forms)), n in product(enumerate(AGREEMENT), range(3)):
        for (word, head), numbers in product(enumerate(NOUNS), product((0, 1), repeat=n)):
            middle = ""
            for place, number in enumerate(numbers):
                noun = BETWEEN[(word + 2 * place + template) % len(BETWEEN)][number]
                middle += f" {NEAR[template % len(NEAR)][place]} the {noun}"
            for label in (0, 1):
                condition = f"attractors={sum(number != label for number in numbers)}"
                text, pair = f"{opening} {head[label]}{middle}", (forms[label], forms[1 - label])
                yield Half(text, pair, label, template, word, condition)


def coreference() -> Halves:
    """Which pronoun comes next; the label is the referent's gender (0 feminine, 1 masculine).

    A pair exchanges a woman's and a man's name. Conditions: ``gender`` (one person is named),
    ``subject`` (a reflexive of the first of two), ``object`` (of the second one, who is told to).
    """
    for condition, frames in COREFERENCE.items():
        forms = PRONOUNS if condition == "gender" else REFLEXIVES
        for (template, frame), word in product(enumerate(frames), range(len(WOMEN))):
            people = (WOMEN[word], MEN[word])
            for label in (0, 1):
                text = frame.format(people[label], people[1 - label])
                pair = (forms[label], forms[1 - label])
                yield Half(text, pair, label, template, word, condition)


def sense() -> Halves:
    """``… the river. The bank`` flooded/closed; the label is the sense (0 natural, 1 made).

    A pair differs in what the first sentence is about. Condition ``near``; ``far``, ``farther``:
    one or two other sentences, which tell nothing, stand in between.
    """
    for (template, frame), (word, entry) in product(enumerate(SENSE), enumerate(SENSES)):
        name, *cues = entry[:3]
        forms = (" " + entry[3], " " + entry[4])
        for condition, pause in PAUSES.items():
            for label in (0, 1):
                text = frame.format(cues[label], pause, name)
                pair = (forms[label], forms[1 - label])
                yield Half(text, pair, label, template, word, condition)
