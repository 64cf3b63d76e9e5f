"""Minimal pairs in the microworld's language: agreement, coreference, homographs."""

import random
from itertools import product

from lab.worlds import tasks
from lab.worlds.microworld import words as w

_NARRATORS = list(w.NARRATORS)
_DOMAINS = list(w.DOMAINS)


def make(task: str, ids: dict[str, int], seed: int) -> list[tasks.ProbeItem]:
    """The items of one of :data:`TASKS`; both halves of a pair stand together."""
    halves = TASKS[task](random.Random(f"{task}-{seed}"))
    return tasks.items(task, halves, lambda text: [ids[word] for word in text.split()], ids[w.BOS])


def _opening(template: int, domain: str) -> str:
    """A first sentence that fits the template: another narrator each time, half with people."""
    things = w.DOMAINS[domain]
    people = f" of the {things.group.plural}" if template % 2 else ""
    return f"{_NARRATORS[template % 8]} comes from the {things.places[template % 3]}{people} ."


def _agreement(rng: random.Random) -> tasks.Halves:
    """``the key near the doors …`` is/are: a pair differs in the head noun's number, the label.

    Condition ``attractors=n``: n of the 0 to 2 nouns between head and verb have the other number.
    """
    # Two nouns of every domain, the same in every template.
    heads = [(d, w.DOMAINS[d].nouns[i]) for d in _DOMAINS for i in (1, 4)]
    for template, n_between in product(range(6), range(3)):
        prepositions = ["near", "behind", "beside", "by", "under", "near", "near", "behind"][
            template:
        ]
        for word, (domain, head) in enumerate(heads):
            between = rng.sample([noun for noun in w.NOUNS if noun is not head], n_between)
            for numbers in product((0, 1), repeat=n_between):
                middle = ""
                for preposition, noun, number in zip(prepositions, between, numbers, strict=False):
                    middle += f" {preposition} the {noun[number]}"
                for label in (0, 1):
                    text = f"{_opening(template, domain)} the {head[label]}{middle}"
                    condition = f"attractors={sum(number != label for number in numbers)}"
                    yield text, label, template, word, condition


def _coreference(rng: random.Random) -> tasks.Halves:
    """Which pronoun comes next; the label is the referent's gender (0 feminine, 1 masculine).

    A pair exchanges a woman's and a man's name. Conditions: ``gender`` (one person named, the next
    sentence is about them), ``recency`` (*next* turns to the last one named), ``topic`` (*again* to
    the first), ``number`` (*again* to a person, not to the group just named).
    """
    for template, word in product(range(6), range(len(w.WOMEN))):
        domain = _DOMAINS[(template + word) % len(_DOMAINS)]
        people, things = (w.WOMEN[word], w.MEN[word]), w.DOMAINS[domain]
        verbs = w.MEETING[template], w.STAYING[template % 5]
        meets, stays = (verb.past if template >= 3 else verb.third for verb in verbs)
        for condition, first in product(("gender", "recency", "topic", "number"), (0, 1)):
            said = {
                "gender": f"{stays} near the {things.places[(template + 1) % 3]} .",
                "number": f"{meets} the {things.group.plural} and again",
                "recency": f"{meets} {people[1 - first]} and next",
                "topic": f"{meets} {people[1 - first]} and again",
            }[condition]
            text = f"{_opening(template, domain)} {people[first]} {said}"
            yield text, 1 - first if condition == "recency" else first, template, word, condition


def _homograph(rng: random.Random) -> tasks.Halves:
    """The same form after two domains' words; the label is its sense (0 outdoors, 1 in town).

    A pair differs in the words that tell the domain, never in the frame. The condition names the
    two domains.
    """
    for template, (word, homograph) in product(range(6), enumerate(w.HOMOGRAPHS)):
        domains = [domain for domain, _ in homograph.senses]
        said = f" {w.NARRATORS[_NARRATORS[template % 8]][0]} ," if template % 3 == 2 else ""
        for label, domain in enumerate(domains):
            text = f"{_opening(template, domain)}{said} the {homograph.form}"
            yield text, label, template, word, "/".join(domains)


TASKS = {"agreement": _agreement, "coreference": _coreference, "homograph": _homograph}
