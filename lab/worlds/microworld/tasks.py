"""Minimal pairs in the microworld's language: agreement, coreference, homographs."""

import random
from itertools import product

from lab.worlds.microworld import words as w
from lab.worlds.tasks import ProbeItem, ends_at

TASKS = ("agreement", "coreference", "homograph")
_NARRATORS = list(w.NARRATORS)


def make(task: str, vocabulary: w.Vocabulary, seed: int) -> list[ProbeItem]:
    """The items of one of :data:`TASKS`; both halves of a pair stand together."""
    if task == "agreement":
        return _agreement(vocabulary.ids, random.Random(f"agreement-{seed}"))
    return {"coreference": _coreference, "homograph": _homograph}[task](vocabulary.ids)


def _tokens(ids: dict[str, int], text: list[str]) -> list[int]:
    return [ids[w.BOS], *(ids[word] for word in text)]


def _opening(template: int, domain: str) -> list[str]:
    """A first sentence that fits the template: another narrator each time, half with people."""
    things = w.DOMAINS[domain]
    people = ["of", "the", things.group.plural] if template % 2 else []
    place = things.places[template % 3]
    return [_NARRATORS[template % 8], "comes", "from", "the", place, *people, "."]


def _agreement(ids: dict[str, int], rng: random.Random) -> list[ProbeItem]:
    """``the key near the doors … is/are``: a pair differs in the head noun's number alone.

    Condition ``attractors=n``: n of the 0 to 2 nouns between head and verb have the other number.
    """
    items = []
    domains = list(w.DOMAINS)
    for template, n_between in product(range(6), range(3)):
        # Two nouns of every domain, the same in every template.
        heads = [(d, w.DOMAINS[d].nouns[i]) for d in domains for i in (1, 4)]
        past = template >= 3
        forms = ("was", "were") if past else ("is", "are")
        prepositions = ("near behind beside by under near".split())[template:] + ["near", "behind"]
        for word, (domain, head) in enumerate(heads):
            between = rng.sample([noun for noun in w.NOUNS if noun is not head], n_between)
            for numbers in product((0, 1), repeat=n_between):
                middle = []
                for i, (noun, number) in enumerate(zip(between, numbers, strict=True)):
                    middle += [prepositions[i], "the", noun[number]]
                for label in (0, 1):
                    text = [*_opening(template, domain), "the", head[label], *middle]
                    items.append(
                        ends_at(
                            "agreement",
                            _tokens(ids, text),
                            label=label,
                            template=template,
                            word=word,
                            condition=f"attractors={sum(number != label for number in numbers)}",
                            good=ids[forms[label]],
                            bad=ids[forms[1 - label]],
                        )
                    )
    return items


def _coreference(ids: dict[str, int]) -> list[ProbeItem]:
    """Which pronoun comes next; the label is the referent's gender (0 feminine, 1 masculine).

    A pair exchanges a woman's and a man's name. Conditions: ``gender`` (one person named, the next
    sentence is about them), ``recency`` (*next* turns to the last one named), ``topic`` (*again* to
    the first), ``number`` (*again* to a person, not to the group just named).
    """
    items = []
    domains = list(w.DOMAINS)
    for template, word in product(range(6), range(len(w.WOMEN))):
        domain = domains[(template + word) % len(domains)]
        people = (w.WOMEN[word], w.MEN[word])
        met = w.MEETING[template]
        meets = met.past if template >= 3 else met.third
        for condition in ("gender", "recency", "topic", "number"):
            for first in (0, 1):
                a, b = people[first], people[1 - first]
                group = w.DOMAINS[domain].group.plural
                text = [*_opening(template, domain), a]
                if condition == "gender":
                    stays = w.STAYING[template % 5]
                    place = w.DOMAINS[domain].places[(template + 1) % 3]
                    text += [
                        stays.past if template >= 3 else stays.third,
                        "near",
                        "the",
                        place,
                        ".",
                    ]
                    label, other = first, ("she", "he")[1 - first]
                elif condition == "number":
                    text += [meets, "the", group, "and", "again"]
                    label, other = first, "they"
                else:
                    text += [meets, b, "and", "next" if condition == "recency" else "again"]
                    label = 1 - first if condition == "recency" else first
                    other = ("she", "he")[1 - label]
                items.append(
                    ends_at(
                        "coreference",
                        _tokens(ids, text),
                        label=label,
                        template=template,
                        word=word,
                        condition=condition,
                        good=ids[("she", "he")[label]],
                        bad=ids[other],
                    )
                )
    return items


def _homograph(ids: dict[str, int]) -> list[ProbeItem]:
    """The same form after two domains' words; the label is its sense (0 outdoors, 1 in town).

    A pair differs in the words that tell the domain, never in the frame. The model chooses between
    the verbs that go with the two senses. The condition names the two domains.
    """
    items = []
    for template, (word, homograph) in product(range(6), enumerate(w.HOMOGRAPHS)):
        past = template >= 3
        (outdoors, verb0), (town, verb1) = homograph.senses
        forms = [verb.past if past else verb.third for verb in (verb0, verb1)]
        for label, domain in enumerate((outdoors, town)):
            text = [*_opening(template, domain)]
            if template % 3 == 2:
                text += [w.NARRATORS[_NARRATORS[template % 8]][0], ","]
            text += ["the", homograph.form]
            items.append(
                ends_at(
                    "homograph",
                    _tokens(ids, text),
                    label=label,
                    template=template,
                    word=word,
                    condition=f"{outdoors}/{town}",
                    good=ids[forms[label]],
                    bad=ids[forms[1 - label]],
                )
            )
    return items
