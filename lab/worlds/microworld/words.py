"""The lexicon of the microworld: every word form once, with its part of speech, agreement and gender.

All words were chosen for this project. A form has one part of speech, so that token labels follow
from the word; only homographs have two senses, which the document's domain tells apart.
"""

import hashlib
from typing import NamedTuple

import numpy as np

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


words(f"{BOS} . , : ?", "punctuation")
words("the a that", "determiner")
words("of in to for with from by near under behind beside above at on after about", "preposition")
words("and but while because once", "conjunction")
words("how", "question")
words("is was has", "auxiliary", "singular")
words("are were", "auxiliary", "plural")
words("must be", "auxiliary")
words("then next again first", "adverb")
words("she her", "pronoun", "singular", "feminine")
words("he his", "pronoun", "singular", "masculine")
words("it", "pronoun", "singular", "neuter")
words("they their", "pronoun", "plural")
words("done kept carried made", "verb")

WOMEN = words("anna mira clara ella rosa ida tess nora", "name", "singular", "feminine")
MEN = words("oren tom hugo emil paul ivan finn karl", "name", "singular", "masculine")
ROLES_F = nouns("woman/women girl queen sister mother daughter", "feminine")
ROLES_M = nouns("man/men boy king brother father son", "masculine")
# Each narrator has one word to open a sentence with and two pet adverbs: the voice of the document.
_NARRATORS = """
    agatha indeed dearly calmly
    boris behold boldly loudly
    celia truly kindly lightly
    dunstan alas sadly wearily
    edith friends warmly gladly
    fergus listen roughly bluntly
    greta perhaps vaguely shyly
    horace hence wisely plainly"""
NARRATORS: dict[str, tuple[str, list[str]]] = {}
for _i, (_name, _opener, *_adverbs) in enumerate(map(str.split, _NARRATORS.split("\n")[1:])):
    words(_name, "name", "singular", GENDER[_i % 2])
    NARRATORS[_name] = (words(_opener, "interjection")[0], words(" ".join(_adverbs), "adverb"))

# A domain is five lines: its people, places, things, acts, qualities.
_DOMAINS = {
    "venoms": """poisoner
        crypt cellar ruin
        fang cloak dagger thorn serpent spider shadow victim rival guard mask trap
        poison taint hide/hides/hid stalk threaten curse betray smuggle
        deadly sinister secret cruel grim""",
    "remedies": """healer
        clinic infirmary chapel
        bandage fever wound patient blanket pillow tonic salve nurse infant elder bruise
        heal bathe comfort treat soothe examine visit cure
        gentle pale weary healthy warm""",
    "ships": """sailor
        harbour quay lighthouse
        mast rope anchor oar gull plank lantern net barrel whale storm sail
        haul steer launch moor row repair board unload
        salty windy broad wooden rough""",
    "stars": """astronomer
        observatory tower hilltop
        telescope comet planet orbit chart lens eclipse asteroid meteor dome cloud signal
        observe measure predict trace record discover compute follow
        distant faint bright silent vast""",
    "kitchens": """cook
        kitchen bakery tavern
        kettle spoon oven pan loaf/loaves onion pepper apron platter bowl stew cake
        roast taste peel serve mash garnish toast fry
        tasty spicy crisp sweet hot""",
    "music": """musician
        theatre hall studio
        drum flute violin melody singer string concert choir rhythm lute harp audience
        play rehearse compose sing/sings/sang admire conduct perform hear/hears/heard
        cheerful graceful lively loud soft""",
    "gardens": """gardener
        garden orchard greenhouse
        rose bee hedge pond vine leaf/leaves worm fence petal shovel branch frog
        prune rake gather harvest tend mow cover pick
        leafy fresh muddy sunny fragrant""",
    "markets": """merchant
        market square shop
        coin basket stall carpet customer purse price bargain ledger wagon jewel candle
        sell/sells/sold buy/buys/bought trade offer display polish borrow deliver
        cheap costly rare crowded busy""",
}
DOMAINS: dict[str, Domain] = {}
for _name, _text in _DOMAINS.items():
    _group, _places, _things, _acts, _kinds = _text.split("\n")
    DOMAINS[_name] = Domain(
        nouns(_group)[0],
        words(_places, "noun", "singular"),
        nouns(_things),
        verbs(_acts),
        words(_kinds, "adjective"),
    )

NOUNS = nouns(
    "door stone letter gift visitor stranger road bridge window table chair box key wheel"
)
ADJECTIVES = words("old new small large strange quiet heavy clean broken famous", "adjective")
ADVERBS = words("slowly quickly quietly often carefully rarely", "adverb")
MEETING = verbs("meet/meets/met greet help thank invite join")
REACTING = verbs("smile laugh sigh agree shout tremble vanish yawn")
STAYING = verbs("stay linger stand/stands/stood kneel/kneels/knelt sit/sits/sat")

_SENSES = {
    "ships": verbs("creak drift tilt heave", singular_only=True),
    "gardens": verbs("bloom sway sprout wilt", singular_only=True),
    "music": verbs("ring/rings/rang echo/echoes/echoed fade resound", singular_only=True),
    "markets": verbs("double sink/sinks/sank profit expire", singular_only=True),
}
_HOMOGRAPHS = {
    ("ships", "music"): "bow pitch bass sheet",
    ("ships", "markets"): "float tender junk deck",
    ("gardens", "music"): "reed drone stem bell",
    ("gardens", "markets"): "bill stock mint bulb",
}
HOMOGRAPHS = [
    Homograph(form, ((outdoors, _SENSES[outdoors][i]), (town, _SENSES[town][(i + 1) % 4])))
    for (outdoors, town), forms in _HOMOGRAPHS.items()
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
