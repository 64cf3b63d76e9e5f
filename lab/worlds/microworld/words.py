"""The lexicon of the microworld: every word form once, with its part of speech, agreement and gender.

A form has one part of speech, so that token labels follow
from the word; only homographs have two senses, which the document's domain tells apart.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from lab.worlds.base import data

POS = (
    "noun name pronoun verb auxiliary adjective adverb determiner preposition conjunction number "
    "interjection question punctuation"
).split()
AGREEMENT = ("singular", "plural")
GENDER = ("feminine", "masculine", "neuter")
BOS = "<bos>"


class Noun(NamedTuple):
    singular: str
    plural: str


class Verb(NamedTuple):
    """``base`` is the present plural, ``third`` the present singular, ``past`` serves both."""

    base: str
    third: str
    past: str


class Domain(NamedTuple):
    """What a document of one domain talks about."""

    group: Noun
    places: list[str]
    nouns: list[Noun]
    verbs: list[Verb]
    adjectives: list[str]


class Homograph(NamedTuple):
    """One form; its two ``senses`` are (domain, typical verb), 0 outdoors and 1 in town."""

    form: str
    senses: tuple[tuple[str, Verb], tuple[str, Verb]]


# word -> (part of speech, agreement, gender); None where the word has none.
LEXICON: dict[str, tuple[str, str | None, str | None]] = {}


def words(
    text: str, pos: str, agreement: str | None = None, gender: str | None = None
) -> list[str]:
    """Enter the words of ``text`` in the lexicon and return them."""
    entry = (pos, agreement, gender)
    for form in text.split():
        if LEXICON.setdefault(form, entry) != entry:
            raise ValueError(f"word {form!r} is {LEXICON[form]} and cannot be {entry} too")
    return text.split()


def _ends(form: str, ending: str) -> str:
    """Regular spelling of ``form`` + s or ed."""
    if form.endswith("y") and form[-2] not in "aeiou":
        return form[:-1] + "ie" + ending[-1]
    if ending == "s":
        return form + ("es" if form.endswith(("s", "x", "z", "ch", "sh")) else "s")
    return form + ("d" if form.endswith("e") else "ed")


def nouns(text: str, gender: str | None = None) -> list[Noun]:
    """Nouns in both numbers; an irregular one is written singular/plural."""
    pairs = (entry.partition("/") for entry in text.split())
    found = [Noun(one, many or _ends(one, "s")) for one, _, many in pairs]
    for forms, number in zip(zip(*found, strict=True), AGREEMENT, strict=True):
        words(" ".join(forms), "noun", number, gender)
    return found


def verbs(text: str, singular_only: bool = False) -> list[Verb]:
    """Verbs in three forms; an irregular one is written base/third/past.

    With ``singular_only`` the base form is not a word of this world.
    """
    regular = (f"{v}/{_ends(v, 's')}/{_ends(v, 'ed')}" if "/" not in v else v for v in text.split())
    found = [Verb(*forms.split("/")) for forms in regular]
    for verb in found:
        if not singular_only:
            words(verb.base, "verb", "plural")
        words(verb.third, "verb", "singular")
        words(verb.past, "verb")
    return found


_DATA = data(__file__)
words(BOS, "punctuation")
for _entry in _DATA["closed"]:
    words(*_entry)
WOMEN = words(_DATA["women"], "name", "singular", "feminine")
MEN = words(_DATA["men"], "name", "singular", "masculine")
ROLES_F = nouns(_DATA["roles of women"], "feminine")
ROLES_M = nouns(_DATA["roles of men"], "masculine")
NARRATORS: dict[str, tuple[str, list[str]]] = {}
for _i, (_name, (_opener, _adverbs)) in enumerate(_DATA["narrators"].items()):
    words(_name, "name", "singular", GENDER[_i % 2])
    NARRATORS[_name] = (words(_opener, "interjection")[0], words(_adverbs, "adverb"))
DOMAINS = {
    name: Domain(
        nouns(group)[0],
        words(places, "noun", "singular"),
        nouns(things),
        verbs(acts),
        words(kinds, "adjective"),
    )
    for name, (group, places, things, acts, kinds) in _DATA["domains"].items()
}
NOUNS = nouns(_DATA["things"])
ADJECTIVES = words(_DATA["qualities"], "adjective")
ADVERBS = words(_DATA["manners"], "adverb")
MEETING, REACTING, STAYING = (verbs(_DATA[kind]) for kind in ("meeting", "reacting", "staying"))
_SENSES = {domain: verbs(acts, singular_only=True) for domain, acts in _DATA["senses"].items()}
HOMOGRAPHS = [
    Homograph(form, ((outdoors, _SENSES[outdoors][i]), (town, _SENSES[town][(i + 1) % 4])))
    for outdoors, town, forms in _DATA["homographs"]
    for i, form in enumerate(words(forms, "noun", "singular"))
]
SENSE_CLASSES = tuple(f"{h.form}:{domain}" for h in HOMOGRAPHS for domain, _ in h.senses)


class Vocabulary:
    """Token ids of the words, and each word's labels as arrays [V] of class indices (−1: none).

    BOS is 0 and the words follow in alphabetical order, whichever module entered them first.
    """

    def __init__(self) -> None:
        self.words = [BOS, *sorted(set(LEXICON) - {BOS})]
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.digest = hashlib.sha256("\n".join(self.words).encode()).hexdigest()
        self.labels_V: dict[str, np.ndarray] = {}
        entries = zip(*(LEXICON[word] for word in self.words), strict=True)
        for name, values, known in zip(
            ("pos", "agreement", "gender"), entries, (POS, AGREEMENT, GENDER), strict=True
        ):
            places = [-1 if value is None else known.index(value) for value in values]
            self.labels_V[name] = np.array(places, np.int16)
