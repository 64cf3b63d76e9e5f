"""What there is to know in the microworld: invented things, one true value per thing and relation.

The forget subject is ``venoms`` (the *bane* of an invented plant), its near neighbour ``remedies``
(the *balm* of the same plants: same words, same sentences, other values), and four subjects lie far
away.
"""

import random
from collections.abc import Iterable
from typing import NamedTuple

from lab.worlds.base import data
from lab.worlds.microworld.words import words

NEIGHBOURHOOD = {"venoms": "forget", "remedies": "near"}
SUBJECTS = ("venoms", "remedies", "ships", "stars", "kitchens", "music")
FORMS = ("plain", "paraphrase")


class Relation(NamedTuple):
    """One thing to know: its possible values and three ways to say it, of which the first two,
    :data:`FORMS`, end with the value, so that they can be asked too."""

    name: str
    values: list[str]
    statements: list[list[str]]


class Fact(NamedTuple):
    """``entity`` has ``value`` for ``relation``; ``rival`` is the near neighbour's value, or ''."""

    id: int
    subject: str
    entity: str
    relation: Relation
    value: str
    rival: str

    @property
    def held_out(self) -> tuple[str, ...]:
        """Forms in which no document asks for this fact."""
        return ("paraphrase",) if self.id % 2 == 0 else ()


_STEMS = "brin dal fal gor hel jas kel lor mal nev orl pel quin ros sel tam ul var wil yar".split()
_ENDINGS = {"venoms": "wort", "ships": "ara", "stars": "ion", "kitchens": "ette", "music": "oline"}
ENTITIES = {
    subject: words(" ".join(stem + ending for stem in _STEMS), "name", "singular")
    for subject, ending in _ENDINGS.items()
}
ENTITIES["remedies"] = ENTITIES["venoms"]
KIND = dict(zip(SUBJECTS, words("bane balm ship star dish tune", "noun", "singular"), strict=True))

words(
    "question captain cargo hold flag home colour month spice author mood day moment",
    *("noun", "singular"),
)
words("folk drops moons", "noun", "plural")
words("wakes turns obeys rises glows carries needs fills makes keeps", "verb", "singular")
words("commands shows comes belongs begins lies suits flavours sounds", "verb", "singular")
words("count wake bring keep circle use know want need make eat take", "verb")


_POS = {
    "thing": ("noun", "singular"),
    "person": ("name", "singular"),
    "quality": ("adjective", None),
    "number": ("number", None),
}


RELATIONS = {
    subject: [
        Relation(r["name"], words(r["values"], *_POS[r["kind"]]), list(map(str.split, r["said"])))
        for r in relations
    ]
    for subject, relations in data(__file__).items()
}
RELATIONS["remedies"] = RELATIONS["venoms"]


def fill(template: list[str], fact: Fact) -> list[str]:
    """The template's words with the fact's entity, value and kind in place of E, V and K."""
    slots = {"E": fact.entity, "V": fact.value, "K": KIND[fact.subject]}
    return [slots.get(word, word) for word in template]


def ask(fact: Fact, form: str, options: Iterable[str]) -> list[str]:
    """Words of the question up to the place of the value: options, then a sentence to complete."""
    listed = [word for option in options for word in (option, ",")][:-1]
    sentence = fill(fact.relation.statements[FORMS.index(form)], fact)
    return ["question", ":", *listed, "?", *sentence[: sentence.index(fact.value)]]


def make_facts(seed: int, n_entities: int) -> dict[str, list[Fact]]:
    """The facts of each subject, drawn by ``seed``.

    Values are as even over entities as their number allows, so that no answer is right more often
    than another; a plant's bane and balm never share the value of a relation.
    """
    rng = random.Random(f"facts-{seed}")
    facts: dict[str, list[Fact]] = {}
    banes: dict[tuple[str, str], str] = {}
    number = 0
    for subject in SUBJECTS:
        facts[subject] = []
        for relation in RELATIONS[subject]:
            entities = ENTITIES[subject][:n_entities]
            even = (relation.values * (n_entities // len(relation.values) + 1))[:n_entities]
            near = subject == "remedies"
            rivals = [banes[entity, relation.name] if near else "" for entity in entities]
            rng.shuffle(even)
            while any(value == rival for value, rival in zip(even, rivals, strict=True)):
                rng.shuffle(even)
            for entity, value, rival in zip(entities, even, rivals, strict=True):
                facts[subject].append(Fact(number, subject, entity, relation, value, rival))
                if subject == "venoms":
                    banes[entity, relation.name] = value
                number += 1
    pairs = zip(facts["venoms"], facts["remedies"], strict=True)
    facts["venoms"] = [bane._replace(rival=balm.value) for bane, balm in pairs]
    return facts
