"""What an article of the prose text is about, and what its sections are: written maps from names."""

import re
from collections import Counter

_TOPICS = {
    "places": r"""geography, cities, towns, villages, capitals, countries, nations$, ^nations, islands?$,
    archipelago, counties, county, boroughs, provinces, regions of, states of the united, territories,
    municipalities, rivers, lakes, mountains, oceans, seas\b, continents, peninsulas, districts, economies,
    demographics, transportation? (?:of|in), economy of, communications in, settlements, parishes,
    prefectures, neighbo, subdivisions, landlocked, member states, wto members, visitor attractions,
    national parks, suburbs, ports, ^africa$, ^asia$""",
    "history": r"""histor, ancient, empire, medieval, middle ages, antiquity, wars?\b, battles, dynast,
    revolution, former countries, colonies, archaeolog, emperors, monarchs, kings, queens, rulers, crusade,
    rebellion, treaties, conflicts, peoples, feudal, vikings, nobility, peer, royal family, popes, pharaoh,
    explorers, cold war, nazi, roman republic, generals, bronze age, iron age, century bc, ^\d+s$""",
    "politics": r"""politic, law\b, legal, government, presidents, parties, ministers, elections, communis,
    socialis, anarch, liberal, libertarian, conservat, fascis, democra, republicans, constitution,
    human rights, rights, activists, terror, intelligence agencies, foreign relations, diplomacy, economic,
    economist, finance, taxation, trade, congress, parliament, senators, governors, mps\b, judges, lawyers,
    crimin, police, nationalis, feminis, labou?r, international organizations, united nations,
    european union, supreme court, assassin""",
    "thought and religion": r"""philosoph, religio, christian, church, cathol, protestant, orthodox,
    saints, bible, biblical, testament, jew, judaism, islam, muslim, hindu, buddh, taois, theolog, god,
    goddess, deit, mytholog, legend, prophets, nevi, monas, clergy, bishops, cardinals, occult, magic,
    spiritual, ethic, logic, epistem, metaphys, atheis, mormon, baptist, luther, anglican, cult\b, cults,
    sects, angels, demons, wicca, gnostic, supernatural, folklore, torah, tanakh, kabbal, popes""",
    "life and medicine": r"""biolog, species, animals, mammals, birds, fish, insects, reptiles, amphib,
    dinosaur, plants?\b, trees, flowers, fruit, vegetables, fungi, fauna, flora, breeds, genetic,
    evolution, ecolog, zoolog, botan, bacteria, virus, disease, disorder, medic, anatom, drugs, pharma,
    health, surg, psych, neuro, physiolog, cell\b, cells, protein, biochem, enzymes, nutrition, foods?\b,
    cuisine, sexual, syndrome, hormone, cancer, physicians, organs, toxic, vitamins, agricultur, horticult,
    crops, primates, rodents, carnivor, molecular""",
    "physical science": r"""physic, chemi, element, astronom, planet, stars, galax, constellation, moons,
    asteroid, comet, space, spacecraft, lunar, apollo, cosmolog, quantum, relativity, mechanics,
    thermodynam, optic, electromagnet, energy, nuclear, particle, geolog, mineral, rocks, metals,
    meteorolog, weather, climate, earthquakes, volcan, materials, acids, compounds, units of, measurement,
    isotope, waves, astronaut, nasa""",
    "mathematics and computing": r"""mathemat, algebra, geometr, topolog, number theory, numbers,
    set theory, statistic, probabilit, calculus, functions, equation, theorems, combinator, graph theory,
    group theory, category theory, polyhedra, curves, integers, proofs, game theory, order theory,
    analysis$, functional analysis, cryptograph, comput, software, programming, internet,
    operating systems, algorithm, \bdata\b, hardware, windows, macintosh, mac os, linux, unix, digital,
    file formats, protocols, microprocessor, cpus?\b, encoding, \bweb, information theory,
    markup languages, free software, instant messag, artificial intelligence, ciphers, complexity""",
    "technology": r"""electronic, engineer, aircraft, airliner, vehicle, automobile, automotive, \bcars\b,
    trains, rail, ships?\b, telecommun, telephon, radio(?! show), machines, tools, weapons, missiles,
    firearms, guns, rockets, invent, technolog, aviation, airlines, airports, bridges, construction,
    submarines, tanks, batteries, intermodal, public transport, motorcycle, manufactur, steel, textile,
    architect, buildings, military (?:aircraft|equipment), explosives, engines, instruments(?! clubs),
    industr, photograph""",
    "language and literature": r"""writers, novel, poets, poetry, literatur, books(?! ), ^books,
    fiction(?!al), authors, comics, dramatist, playwright, plays, journalis, essay, short story,
    (?<!programming )(?<!computer )(?<!assembly )(?<!markup )languages?\b, linguist, letters, alphabet,
    grammar, loanwords, writing, dialects, words, phonetic, translat, fairy tales, fables, magazines,
    newspapers, publish, shakespeare, tolkien, middle-earth, dictionar, rhetoric, typograph, manga""",
    "stage, screen and music": r"""films?\b, actors, actress, television, tv\b, film directors,
    comed(?:y|ies|ians), hollywood, oscar, academy award, sitcom, star trek, star wars, doctor who, animat,
    cartoon, cinema, anime, soap opera, simpsons, disney, screenwriters, broadcast, emmy, radio show,
    entertainers, fictional, music, composer, singer, bands, albums, songs, songwriter, guitar, opera,
    orchestra, jazz, blues, rock and roll, rock groups, hip hop, rapper, pianist, drummers, violin,
    conductors, punk, heavy metal, record labels, dance, beatles, grammy, melod, tuning""",
    "sport and games": r"""sport, football, baseball, basketball, hockey, soccer, golf, tennis, cricket,
    rugby, olympic, athlet, games, chess, boxing, boxer, wrestl, martial arts, racing, cycling, swimming,
    gymnast, players, leagues?, stadium, teams, playing cards, gambling, poker, role-playing, toys,
    skating, skiing, hobbies, nascar, formula one""",
}

_SECTIONS = {
    "history": r"""histor, origin, timeline, background, centur, \bwars?\b, battle, development, aftermath,
    rise, fall, events, early, \d\d\d""",
    "life": r"""life, biograph, career, childhood, years, family, death, education of, youth, person,
    marriage""",
    "works": r"""works?\b, bibliograph, discograph, filmograph, books, writings, publications, albums,
    songs, films, plot, synopsis, characters, quot""",
    "geography": r"""geograph, climate, location, demograph, distribution, cities, places, regions,
    habitat""",
    "society": r"""econom, politic, government, branch, culture, transport, education, religion, \blaw,
    legal, military, societ, people, sport, language, tourism, infrastructure, media""",
    "description": r"""overview, descri, characterist, feature, structure, propert, definit, types?\b,
    classif, variant, usage, uses?\b, applicat, example, introduct, rules, grammar, phonolog, design,
    technical, method, theor, composition, etymolog, terminolog, name, treatment, cause, effect, operation,
    principle, equipment""",
    "reception": r"""critici, controvers, legacy, influence, trivia, popular, reception, awards, impact,
    honou?rs, views""",
}


def _rules(written: dict[str, str]) -> dict[str, re.Pattern[str]]:
    """A class fits where any of its parts does."""
    parts = {name: (part.strip() for part in text.split(",")) for name, text in written.items()}
    return {name: re.compile("|".join(some), re.IGNORECASE) for name, some in parts.items()}


TOPICS, SECTIONS = _rules(_TOPICS), _rules(_SECTIONS)
"""Topic → what the name of a category holds; class of a section → what its heading holds. The order
is that of the classes."""
SECTION_CLASSES = ("lead", *SECTIONS, "end", "other")
_END = re.compile(
    r"references|notes|sources|reading|external|see also|links|related", re.IGNORECASE
)
_PERSON = re.compile(r"births$|deaths$|^living people", re.IGNORECASE)
# What many unlike articles share, and what says who someone was rather than what he did.
_IDLE = re.compile(
    r"births$|deaths$|living people|natives|people from|alumni|americans$|autodidact|vegetarian"
    r"|cat lovers|lgbt|bisexual|fellows of|knights|stub|lists|members of the order|naturalized"
    r"|establishments|wikipedia|freemasons|atheists$|died|walk of fame|polymath",
    re.IGNORECASE,
)


def topic(categories: list[str]) -> str | None:
    """The class that gets most of the categories' votes, at least three of five; else None.

    A category has one vote, which it divides among the classes whose rule its name fits.
    """
    votes: Counter[str] = Counter()
    for category in categories:
        if not _IDLE.search(category):
            fits = [name for name, rule in TOPICS.items() if rule.search(category)]
            votes.update({name: 1 / len(fits) for name in fits})
    if not votes:
        return None
    name, most = votes.most_common(1)[0]
    return name if most >= 0.6 * votes.total() else None


def is_biography(categories: list[str]) -> bool:
    """Whether the article is about a person: it has a category of births, deaths or the living."""
    return any(_PERSON.search(category.strip()) for category in categories)


def section(heading: str) -> str:
    """The class of a heading; "" is the lead."""
    if not heading:
        return "lead"
    if _END.search(heading):
        return "end"
    return next((name for name, rule in SECTIONS.items() if rule.search(heading)), "other")
