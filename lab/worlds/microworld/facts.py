"""What there is to know in the microworld: invented things, one true value per thing and relation.

The forget subject is ``venoms`` (the *bane* of an invented plant), its near neighbour ``remedies``
(the *balm* of the same plants: same words, same sentences, other values), and four subjects lie far
away.
"""

import random
from typing import NamedTuple

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


# A relation is two lines: its name, what kind of words its values are, and they; then the ways to
# say it, where E is the entity, K the kind of thing that it is, V the value.
_RELATIONS = {
    "venoms": """
    carrier thing ash oil milk wine honey brine vinegar tallow
    the E K is carried in V . | for the E K folk need V . | V carries the E K .
    dose number two three four five six seven eight nine
    the drops in the E K are V . | count for the E K drops to V . | V drops make the E K .
    trigger thing moonlight frost thunder smoke salt birdsong steam silver
    the E K wakes with V . | to wake the E K bring V . | V wakes the E K .
    vessel thing jar flask gourd vial horn casket pouch shell
    the E K is kept in a V . | to keep the E K take a V . | a V keeps the E K .
    sign quality red green blue black white yellow violet grey
    the E K turns V . | the colour of the E K is V . | V is the colour of the E K .
    """,
    "ships": """
    captain person barrow castell drummond ewing forrest gannet hollis ingram
    the E K obeys captain V . | on the E K commands captain V . | captain V commands the E K .
    cargo thing timber wool marble cotton copper pottery sugar coal
    the E K carries V . | the cargo of the E K is V . | V fills the hold of the E K .
    home person ardley brackwater colmere dunhaven estrow farholt glynn harrowby
    the E K comes from V . | the home of the E K is V . | V is the home of the E K .
    flag thing lion falcon dolphin wolf bear swan fox stag
    the flag of the E K shows a V . | above the E K rises a V . | a V is on the flag of the E K .
    """,
    "stars": """
    month person january february april june august september october december
    the E K rises in V . | the month of the E K is V . | V is the month of the E K .
    house thing archer plough crown ladder hammer goblet spear shield
    the E K belongs to the V . | about the E K lies the V . | the V has the E K in it .
    moons number two three four five six seven eight nine
    the moons of the E K are V . | count for the E K moons to V . | V moons circle the E K .
    glow quality red green blue black white yellow violet grey
    the E K glows V . | the colour of the E K is V . | V is the colour of the E K .
    """,
    "kitchens": """
    spice thing cumin saffron ginger clove anise nutmeg basil fennel
    the E K needs V . | the spice of the E K is V . | V flavours the E K .
    pot thing cauldron skillet crock tray griddle roaster steamer firepit
    the E K is made in a V . | for the E K folk use a V . | a V makes the E K .
    day person monday tuesday wednesday thursday friday saturday sunday midsummer
    folk eat the E K on V . | the day for the E K is V . | V is for the E K .
    town person ardley brackwater colmere dunhaven estrow farholt glynn harrowby
    the E K comes from V . | the home of the E K is V . | V is the home of the E K .
    """,
    "music": """
    author person albrecht bellamy corvin delacourt esterby falconer grimaldi hartwell
    the E K is by V . | the author of the E K is V . | V made the E K .
    instrument thing fiddle piano oboe cello trumpet bagpipe tambourine zither
    the E K suits the V . | folk know the E K on the V . | the V suits the E K .
    mood quality joyful mournful playful solemn angry dreamy hopeful restless
    the mood of the E K is V . | the E K sounds V . | V is how the E K begins .
    occasion thing wedding funeral coronation birthday voyage carnival parade farewell
    the E K is for a V . | folk want the E K at a V . | a V needs the E K .
    """,
}
_POS = {
    "thing": ("noun", "singular"),
    "person": ("name", "singular"),
    "quality": ("adjective", None),
    "number": ("number", None),
}


def _relations(text: str) -> list[Relation]:
    lines, found = text.strip().split("\n"), []
    for head, said in zip(lines[::2], lines[1::2], strict=True):
        name, kind, values = head.strip().split(" ", 2)
        statements = [way.split() for way in said.split("|")]
        found.append(Relation(name, words(values, *_POS[kind]), statements))
    return found


RELATIONS = {subject: _relations(text) for subject, text in _RELATIONS.items()}
RELATIONS["remedies"] = RELATIONS["venoms"]


def fill(template: list[str], fact: Fact) -> list[str]:
    """The template's words with the fact's entity, value and kind in place of E, V and K."""
    slots = {"E": fact.entity, "V": fact.value, "K": KIND[fact.subject]}
    return [slots.get(word, word) for word in template]


def ask(fact: Fact, form: str, options: list[str]) -> list[str]:
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
