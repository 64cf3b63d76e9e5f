"""English minimal pairs written for this project: agreement, coreference, senses of a word.

Every item is a frame filled with a word; frames and words are numbered, so that a probe can be
tested on neither's like.
"""

from itertools import product

from lab.worlds.tasks import Encode, Halves, ProbeItem, items

NOUNS = [
    (noun, noun + "s") for noun in "key teacher picture boat doctor letter farmer window".split()
]
BETWEEN = [(noun, noun + "s") for noun in "cabinet house river artist table".split()]
NEAR = (("near", "behind"), ("next to", "above"), ("beside", "near"))
AGREEMENT = (
    "The",
    "Everyone knows that the",
    "This morning we noticed that the",
    "Many years ago, the",
    "According to the report, the",
    "I do not believe that the",
)

WOMEN = "Mary Anna Sarah Emily Julia Linda Laura Alice Emma Nancy Karen Helen".split()
MEN = "John Peter David James Robert Paul Thomas Daniel Mark Henry George Frank".split()
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

# A word, what tells of the living or natural sense, and what of the made one.
SENSES = """bank, river, money; bat, cave, baseball game; crane, lake, building site;
    mouse, cat, computer; seal, ocean, letter; trunk, elephant, car; plant, garden, workers;
    spring, mountain, mattress; bulb, flowers, lamp; shell, beach, cannon; python, jungle, programmers;
    nail, finger, hammer"""
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


def make(task: str, encode: Encode, bos_id: int) -> list[ProbeItem]:
    """The items of one of :data:`TASKS`; both halves of a pair stand together."""
    return items(task, TASKS[task](), encode, bos_id)


def agreement() -> Halves:
    """``the key near the doors`` … is/are; a pair differs in the head noun's number, the label.

    Condition ``attractors=n``: n of the 0 to 2 nouns in between have the other number.
    """
    for (template, opening), n in product(enumerate(AGREEMENT), range(3)):
        for (word, head), numbers in product(enumerate(NOUNS), product((0, 1), repeat=n)):
            middle = ""
            for place, number in enumerate(numbers):
                noun = BETWEEN[(word + 2 * place + template) % len(BETWEEN)][number]
                middle += f" {NEAR[template % len(NEAR)][place]} the {noun}"
            for label in (0, 1):
                condition = f"attractors={sum(number != label for number in numbers)}"
                yield f"{opening} {head[label]}{middle}", label, template, word, condition


def coreference() -> Halves:
    """Which pronoun comes next; the label is the referent's gender (0 feminine, 1 masculine).

    A pair exchanges a woman's and a man's name. Conditions: ``gender`` (one person is named),
    ``subject`` (a reflexive of the first of two), ``object`` (of the second one, who is told to).
    """
    for condition, frames in COREFERENCE.items():
        for (template, frame), word in product(enumerate(frames), range(len(WOMEN))):
            people = (WOMEN[word], MEN[word])
            for label in (0, 1):
                text = frame.format(people[label], people[1 - label])
                yield text, label, template, word, condition


def sense() -> Halves:
    """``… the river. The bank`` flooded/closed; the label is the sense (0 natural, 1 made).

    A pair differs in what the first sentence is about. Condition ``near``; ``far``, ``farther``:
    one or two other sentences, which tell nothing, stand in between.
    """
    senses = [[part.strip() for part in entry.split(",")] for entry in SENSES.split(";")]
    for (template, frame), (word, (name, *cues)) in product(enumerate(SENSE), enumerate(senses)):
        for (condition, pause), label in product(PAUSES.items(), (0, 1)):
            yield frame.format(cues[label], pause, name), label, template, word, condition


TASKS = {"agreement": agreement, "coreference": coreference, "sense": sense}
