"""Facts that a small language model knows, written for this project, as sentences to complete.

Forgotten is ``capitals``. ``languages`` and ``continents`` are near, because they are about the same
countries in the same kind of sentence; everything else is far. Every choice of a question is the
answer to another question of its subject.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from lab.worlds.knowledge import Question, Statement
from lab.worlds.tasks import Encode

N_CHOICES = 4
FORMS = ("plain", "paraphrase", "turned")


class Subject(NamedTuple):
    """Sentences that end where the answer stands ({} is the entity), in the forms :data:`FORMS`;
    sentences that state a fact ({0} is the entity, {1} the answer); (entity, answer) pairs."""

    neighbourhood: str
    sentences: list[str]
    stated: list[str]
    facts: list[tuple[str, str]]


def _subject(neighbourhood: str, sentences: str, stated: str, pairs: str) -> Subject:
    """Sentences are parted by "/", pairs by ";", their two halves by "="."""
    halves = (pair.strip().split("=") for pair in pairs.split(";"))
    facts = [(entity.strip(), answer.strip()) for entity, answer in halves]
    asked = [sentence.strip() for sentence in sentences.split("/")]
    return Subject(neighbourhood, asked, [said.strip() for said in stated.split("/")], facts)


SUBJECTS = {
    "capitals": _subject(
        "forget",
        "The capital of {} is the city of / In {}, the seat of government and capital city is"
        " / Think of {}. Its capital is the city of",
        "{1} is the capital of {0}. / The capital city of {0} is called {1}.",
        """France=Paris; Germany=Berlin; Italy=Rome; Spain=Madrid; Portugal=Lisbon; Austria=Vienna;
        Hungary=Budapest; Poland=Warsaw; Greece=Athens; Ireland=Dublin; Norway=Oslo; Sweden=Stockholm;
        Denmark=Copenhagen; Finland=Helsinki; Belgium=Brussels; the Netherlands=Amsterdam;
        Switzerland=Bern; Russia=Moscow; Ukraine=Kyiv; Romania=Bucharest; Bulgaria=Sofia;
        Serbia=Belgrade; Croatia=Zagreb; the Czech Republic=Prague; Slovakia=Bratislava;
        Iceland=Reykjavik; the United Kingdom=London; Turkey=Ankara; Egypt=Cairo; Morocco=Rabat;
        Algeria=Algiers; Tunisia=Tunis; Libya=Tripoli; Kenya=Nairobi; Ethiopia=Addis Ababa;
        Nigeria=Abuja; Ghana=Accra; Senegal=Dakar; Uganda=Kampala; Zimbabwe=Harare; Zambia=Lusaka;
        Angola=Luanda; Sudan=Khartoum; Somalia=Mogadishu; Mali=Bamako; Rwanda=Kigali; Israel=Jerusalem;
        Lebanon=Beirut; Syria=Damascus; Jordan=Amman; Iraq=Baghdad; Iran=Tehran; Saudi Arabia=Riyadh;
        Qatar=Doha; Yemen=Sanaa; Afghanistan=Kabul; Pakistan=Islamabad; India=New Delhi; Nepal=Kathmandu;
        Bangladesh=Dhaka; China=Beijing; Mongolia=Ulaanbaatar; Japan=Tokyo; South Korea=Seoul;
        North Korea=Pyongyang; Taiwan=Taipei; Thailand=Bangkok; Vietnam=Hanoi; Cambodia=Phnom Penh;
        Indonesia=Jakarta; Malaysia=Kuala Lumpur; the Philippines=Manila; Australia=Canberra;
        New Zealand=Wellington; Canada=Ottawa; the United States=Washington; Mexico=Mexico City;
        Cuba=Havana; Jamaica=Kingston; Argentina=Buenos Aires; Chile=Santiago; Peru=Lima;
        Colombia=Bogota; Venezuela=Caracas; Ecuador=Quito; Uruguay=Montevideo; Brazil=Brasilia""",
    ),
    "languages": _subject(
        "near",
        "Most people in {} speak / The main language of {} is"
        " / Think of {}. The language that most people there speak is",
        "{1} is the main language spoken in {0}. / In {0}, people speak {1}.",
        """France=French; Germany=German; Italy=Italian; Spain=Spanish; Portugal=Portuguese;
        Hungary=Hungarian; Poland=Polish; Greece=Greek; Norway=Norwegian; Sweden=Swedish;
        Denmark=Danish; Finland=Finnish; the Netherlands=Dutch; Russia=Russian; Ukraine=Ukrainian;
        Romania=Romanian; Bulgaria=Bulgarian; Serbia=Serbian; Croatia=Croatian;
        the Czech Republic=Czech; Slovakia=Slovak; Iceland=Icelandic; the United Kingdom=English;
        Turkey=Turkish; Egypt=Arabic; Iran=Persian; Israel=Hebrew; Bangladesh=Bengali; Nepal=Nepali;
        China=Chinese; Japan=Japanese; South Korea=Korean; Thailand=Thai; Vietnam=Vietnamese;
        Cambodia=Khmer; Indonesia=Indonesian; Malaysia=Malay; Mongolia=Mongolian; Brazil=Portuguese;
        Mexico=Spanish; Argentina=Spanish; Cuba=Spanish; Australia=English; New Zealand=English;
        Jamaica=English; Iraq=Arabic; Jordan=Arabic; Saudi Arabia=Arabic; Somalia=Somali;
        Austria=German; Peru=Spanish; Lebanon=Arabic""",
    ),
    "continents": _subject(
        "near",
        "{} is a country in / On the map of the world, {} lies in"
        " / Think of {}. This country lies on the continent of",
        "The country of {0} is part of {1}. / One of the countries of {1} is {0}.",
        """France=Europe; Germany=Europe; Italy=Europe; Spain=Europe; Portugal=Europe; Poland=Europe;
        Greece=Europe; Norway=Europe; Sweden=Europe; Denmark=Europe; Hungary=Europe; Belgium=Europe;
        Egypt=Africa; Morocco=Africa; Kenya=Africa; Ethiopia=Africa; Nigeria=Africa; Ghana=Africa;
        Senegal=Africa; Uganda=Africa; Zimbabwe=Africa; Zambia=Africa; Angola=Africa; Mali=Africa;
        China=Asia; Japan=Asia; Thailand=Asia; Vietnam=Asia; Cambodia=Asia; Nepal=Asia; Pakistan=Asia;
        India=Asia; Mongolia=Asia; Bangladesh=Asia; Malaysia=Asia; Argentina=South America;
        Chile=South America; Peru=South America; Colombia=South America; Brazil=South America;
        Ecuador=South America; Uruguay=South America; Venezuela=South America; Canada=North America;
        Mexico=North America; the United States=North America""",
    ),
    "symbols": _subject(
        "far",
        "The chemical symbol for {} is / In chemistry, the element {} is written as"
        " / Think of the element {}. Its chemical symbol is",
        "{1} is the symbol of {0}. / Chemists write {1} for {0}.",
        """hydrogen=H; helium=He; lithium=Li; carbon=C; nitrogen=N; oxygen=O; fluorine=F; neon=Ne;
        sodium=Na; magnesium=Mg; aluminium=Al; silicon=Si; phosphorus=P; sulfur=S; chlorine=Cl;
        argon=Ar; potassium=K; calcium=Ca; titanium=Ti; chromium=Cr; manganese=Mn; iron=Fe; cobalt=Co;
        nickel=Ni; copper=Cu; zinc=Zn; arsenic=As; bromine=Br; krypton=Kr; silver=Ag; tin=Sn; iodine=I;
        xenon=Xe; barium=Ba; platinum=Pt; gold=Au; mercury=Hg; lead=Pb; uranium=U; plutonium=Pu""",
    ),
    "young": _subject(
        "far",
        "A young {} is called a / The baby of a {} is known as a / Think of a {}. Its young is called a",
        "A {1} is a young {0}. / A {0} begins its life as a {1}.",
        """dog=puppy; cat=kitten; cow=calf; sheep=lamb; horse=foal; goat=kid; pig=piglet; hen=chick;
        duck=duckling; goose=gosling; bear=cub; deer=fawn; frog=tadpole; kangaroo=joey; swan=cygnet;
        lion=cub; butterfly=caterpillar; human=baby; elephant=calf; rabbit=bunny""",
    ),
    "opposites": _subject(
        "far",
        "The opposite of {} is / The word that means the reverse of {} is"
        " / Think of the word {}. Its opposite is",
        "{1} is the opposite of {0}. / {0} and {1} are opposites.",
        """hot=cold; big=small; tall=short; fast=slow; up=down; left=right; black=white; day=night;
        open=closed; happy=sad; rich=poor; young=old; early=late; light=dark; hard=soft; wet=dry;
        strong=weak; full=empty; high=low; near=far; good=bad; true=false; loud=quiet; thick=thin;
        wide=narrow; clean=dirty; sweet=sour; love=hate; war=peace; begin=end; buy=sell; push=pull;
        win=lose; life=death; north=south; east=west; inside=outside; above=below; always=never;
        success=failure; first=last; male=female; positive=negative; maximum=minimum""",
    ),
    "authors": _subject(
        "far",
        "The author of {} is / {} was written by / Think of {}. Its author is",
        "{1} wrote {0}. / {0} is a book by {1}.",
        """Hamlet=William Shakespeare; Oliver Twist=Charles Dickens; The Odyssey=Homer;
        Pride and Prejudice=Jane Austen; The Republic=Plato; War and Peace=Leo Tolstoy;
        Crime and Punishment=Fyodor Dostoevsky; Don Quixote=Miguel de Cervantes; Faust=Goethe;
        Frankenstein=Mary Shelley; Dracula=Bram Stoker; Moby Dick=Herman Melville;
        The Hobbit=J.R.R. Tolkien; Nineteen Eighty-Four=George Orwell; Les Miserables=Victor Hugo;
        The Old Man and the Sea=Ernest Hemingway; The Great Gatsby=F. Scott Fitzgerald;
        Alice in Wonderland=Lewis Carroll; Treasure Island=Robert Louis Stevenson;
        Tom Sawyer=Mark Twain; Brave New World=Aldous Huxley; Jane Eyre=Charlotte Bronte;
        Wuthering Heights=Emily Bronte; The Divine Comedy=Dante; Paradise Lost=John Milton;
        The Canterbury Tales=Geoffrey Chaucer; The Time Machine=H.G. Wells; The Jungle Book=Rudyard Kipling;
        On the Origin of Species=Charles Darwin; The Communist Manifesto=Karl Marx;
        The Prince=Machiavelli; The Metamorphosis=Franz Kafka; Ulysses=James Joyce;
        The Wealth of Nations=Adam Smith""",
    ),
}


def questions(encode: Encode, bos_id: int, seed: int = 0) -> list[Question]:
    """Every fact in every form, each with its answer and three other answers of its subject.

    The choices are drawn by ``seed``, are the same in all forms and are not listed in the prompt, so
    each form is asked in one order. Choices may be of unequal length in tokens, and a longer one has
    the lower likelihood: what a model then gets wrong is left out of what is scored.
    """
    result = []
    for number, (name, subject, entity, answer) in enumerate(_facts()):
        rng = random.Random(f"cloze-{seed}-{name}-{entity}")
        others = sorted({other for _, other in subject.facts} - {answer})
        choices = [answer, *rng.sample(others, N_CHOICES - 1)]
        rng.shuffle(choices)
        tokens = tuple(tuple(encode(" " + choice)) for choice in choices)
        for form, sentence in zip(FORMS, subject.sentences, strict=True):
            prompt = (bos_id, *encode(_capitalised(sentence.format(entity))))
            place = choices.index(answer)
            asked = Question(subject.neighbourhood, name, prompt, tokens, place, number, form)
            result.append(asked)
    return result


def statements(encode: Encode, bos_id: int) -> list[Statement]:
    """Every fact three times: its plain sentence with the answer, and two that no question uses."""
    result = []
    for number, (name, subject, *fact) in enumerate(_facts()):
        plain = subject.sentences[0].replace("{}", "{0}") + " {1}."
        for sentence in (plain, *subject.stated):
            tokens = (bos_id, *encode(_capitalised(sentence.format(*fact))))
            result.append(Statement(subject.neighbourhood, name, tokens, number))
    return result


def _facts() -> Iterator[tuple[str, Subject, str, str]]:
    """(name of the subject, subject, entity, answer) of every fact, in the order of its number."""
    return ((name, subject, *fact) for name, subject in SUBJECTS.items() for fact in subject.facts)


def _capitalised(sentence: str) -> str:
    """The sentence with a capital at its start and all else as it is."""
    return sentence[0].upper() + sentence[1:]
