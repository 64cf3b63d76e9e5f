"""From latent variables to documents: the microworld's sentences.

A document has a domain and a narrator; each of its sections has a theme, a tense and, in stories, a
focus entity with its number; sentences follow from these.
"""

from lab.worlds.microworld import chains
from lab.worlds.microworld import words as w
from lab.worlds.microworld.facts import FORMS, Fact, ask, fill
from lab.worlds.microworld.writer import FOCUS, PREPOSITIONS, Draw, Writer

PEOPLE = (*w.WOMEN, *w.MEN)
PRONOUNS = (("she", "her"), ("he", "his"), ("they", "their"))
CONNECTIVES = "while because but".split()
SENSES_OF = {
    domain: [(h.form, v) for h in w.HOMOGRAPHS for d, v in h.senses if d == domain]
    for domain in w.DOMAINS
}


def opening(o: Writer) -> None:
    """Who writes, and from where."""
    o.section("opening")
    o.sentence()
    o.say(o.narrator, "comes", "from", "the", o.draw.one(o.things.places))
    if o.draw.chance(0.5):
        o.say("of", "the", o.things.group.plural)
    o.say(".")


def story(o: Writer) -> None:
    """Three to five sentences about one person, or about the people of the domain."""
    draw = o.draw
    plural = draw.chance(0.3)
    tense = int(draw.chance(0.6))
    name = o.things.group.plural if plural else draw.one(PEOPLE)
    o.section("story", tense, FOCUS.index(name), int(plural))
    subject = ["the", name] if plural else [name]
    pronoun, owner = PRONOUNS[2 if plural else name in w.MEN]
    for i in range(draw.about_four()):
        o.voice()
        if i and draw.chance(0.3):
            meeting(o, subject, pronoun)
            continue
        o.say(*(subject if i == 0 or draw.chance(0.35) else [pronoun]))
        if draw.chance(0.7):
            o.say(o.verb(draw.early(o.things.verbs), plural), owner if draw.chance(0.4) else "the")
            if draw.chance(0.3):
                o.say(o.adjective())
            o.say(o.noun(o.thing())[0])
        else:
            place = draw.one(o.things.places)
            o.say(o.verb(draw.one(w.STAYING), plural), draw.one(PREPOSITIONS), "the", place)
        o.adverb()
        if draw.chance(0.15):
            thing, many = o.noun(o.thing())
            o.say(draw.one(CONNECTIVES), "the", thing, o.copula(many), o.adjective())
        o.say(".")


def meeting(o: Writer, subject: list[str], pronoun: str) -> None:
    """Two whom no pronoun confuses: *next* turns to the last one named, *again* to the first."""
    draw = o.draw
    first = [p for p, _ in PRONOUNS].index(pronoun)
    second = draw.one([kind for kind in range(3) if kind != first])
    if second == 2:
        other = ["the", o.things.group.plural]
    elif draw.chance(0.6):
        other = [draw.one((w.WOMEN, w.MEN)[second])]
    else:
        other = ["the", draw.one((w.ROLES_F, w.ROLES_M)[second]).singular]
    o.say(*subject, o.verb(draw.one(w.MEETING), first == 2), *other, "and")
    turn = draw.chance(0.5)
    actor = second if turn else first
    o.say("next" if turn else "again", PRONOUNS[actor][0])
    o.say(o.verb(draw.one(w.REACTING), actor == 2), ".")


def description(o: Writer) -> None:
    """Two or three sentences about things and people: agreement over nouns, and homographs."""
    draw = o.draw
    o.section("description", int(draw.chance(0.5)))
    for _ in range(2 + draw.chance(0.5)):
        o.voice()
        if SENSES_OF[o.domain] and draw.chance(0.35):
            form, verb = draw.one(SENSES_OF[o.domain])
            o.say("the")
            o.senses.append((len(o.words), f"{form}:{o.domain}"))
            o.say(form, o.verb(verb, False))
        elif draw.chance(0.3):
            plural = o.phrase(draw.one((o.things.group, *w.ROLES_F, *w.ROLES_M)))
            o.say(o.verb(draw.one(w.REACTING), plural))
        else:
            plural = o.phrase(o.thing())
            o.say(o.copula(plural), o.adjective())
        o.adverb()
        o.say(".")


def procedure(o: Writer) -> None:
    """A walk along the arrows of one procedure from its first step to a last one."""
    draw = o.draw
    o.section("procedure")
    o.sentence()
    chosen = chains.USUAL[o.domain]
    if draw.chance(0.25):
        chosen = draw.one([other for other in chains.PROCEDURES if other is not chosen])
    o.say("first", ",")
    step = next(iter(chosen.steps))
    while True:
        o.step(step, chosen.steps[step])
        if step not in chosen.arrows:
            break
        arrows = chosen.arrows[step]
        target, kind, weight = arrows[0]
        if len(arrows) == 2 and not draw.chance(weight):
            target, kind, _ = arrows[1]
        _filler(o, draw.one(chains.FILLERS[kind]))
        step = target
    o.say(".")


def _filler(o: Writer, filler: list[str]) -> None:
    for i, word in enumerate(filler):
        if i and filler[i - 1] == ".":
            o.sentence()
        if word == "?":
            o.say(o.draw.early(o.things.nouns).singular)
        elif word == "*":
            o.say(o.adjective())
        elif word != "~":
            o.say(word)
        elif filler[i - 1] != "~":
            loose = o.draw.one(list(chains.LOOSE_STEPS))
            o.step(loose, chains.LOOSE_STEPS[loose])


def facts(o: Writer) -> None:
    """Three or four facts of the document's subject."""
    o.section("facts")
    for _ in range(3 + o.draw.chance(0.5)):
        fact = o.draw.one(o.facts)
        o.voice()
        statement = o.draw.one(fact.relation.statements)
        if statement[-2] == "V":
            o.recalls.append(len(o.words) + len(statement) - 2)
        o.say(*fill(statement, fact))


def quiz(o: Writer) -> None:
    """One or two multiple-choice questions with their answers."""
    draw = o.draw
    o.section("quiz")
    for _ in range(1 + draw.chance(0.5)):
        fact = draw.one(o.facts)
        form = draw.one([form for form in FORMS if form not in fact.held_out])
        wrong = [value for value in fact.relation.values if value != fact.value]
        options = draw.sample(wrong, 3)
        options.insert(draw.one(range(4)), fact.value)
        o.sentence()
        for word in ask(fact, form, options):
            o.say(word)
            if word == "?":
                o.sentence()
        o.recalls.append(len(o.words))
        o.say(fact.value, ".")


def document(draw: Draw, domain: str, facts_of: dict[str, list[Fact]]) -> Writer:
    """One document of ``domain``: an opening and three to five sections."""
    narrator = draw.one(list(w.NARRATORS))
    known = facts_of.get(domain, [])
    o = Writer(draw, domain, narrator, known)
    opening(o)
    makers = [story, description, procedure, *([facts, facts, quiz, quiz] if known else [])]
    last = None
    for _ in range(draw.about_four()):
        # A theme never follows itself: else where one section ends could not be told from the text.
        last = draw.one([make for make in makers if make is not last])
        last(o)
    return o
