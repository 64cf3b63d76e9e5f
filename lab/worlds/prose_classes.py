"""What an article of the prose text is about, and what its sections are: written maps from names."""

import re
from collections import Counter

TOPICS = {
    "places": (
        r"geography|cities|towns|villages|capitals|countries|nations$|^nations|islands?$|archipelago"
        r"|counties|county|boroughs|provinces|regions of|states of the united|territories"
        r"|municipalities|rivers|lakes|mountains|oceans|seas\b|continents|peninsulas|districts"
        r"|economies|demographics|transportation? (?:of|in)|economy of|communications in|settlements"
        r"|parishes|prefectures|neighbo|subdivisions|landlocked|member states|wto members"
        r"|visitor attractions|national parks|suburbs|ports|^africa$|^asia$"
    ),
    "history": (
        r"histor|ancient|empire|medieval|middle ages|antiquity|wars?\b|battles|dynast|revolution"
        r"|former countries|colonies|archaeolog|emperors|monarchs|kings|queens|rulers|crusade"
        r"|rebellion|treaties|conflicts|peoples|feudal|vikings|nobility|peer|royal family|popes"
        r"|pharaoh|explorers|cold war|nazi|roman republic|generals|bronze age|iron age|century bc"
        r"|^\d+s$"
    ),
    "politics": (
        r"politic|law\b|legal|government|presidents|parties|ministers|elections|communis|socialis"
        r"|anarch|liberal|libertarian|conservat|fascis|democra|republicans|constitution|human rights"
        r"|rights|activists|terror|intelligence agencies|foreign relations|diplomacy|economic"
        r"|economist|finance|taxation|trade|congress|parliament|senators|governors|mps\b|judges"
        r"|lawyers|crimin|police|nationalis|feminis|labou?r|international organizations|united nations"
        r"|european union|supreme court|assassin"
    ),
    "thought and religion": (
        r"philosoph|religio|christian|church|cathol|protestant|orthodox|saints|bible|biblical"
        r"|testament|jew|judaism|islam|muslim|hindu|buddh|taois|theolog|god|goddess|deit|mytholog"
        r"|legend|prophets|nevi|monas|clergy|bishops|cardinals|occult|magic|spiritual|ethic|logic"
        r"|epistem|metaphys|atheis|mormon|baptist|luther|anglican|cult\b|cults|sects|angels|demons"
        r"|wicca|gnostic|supernatural|folklore|torah|tanakh|kabbal|popes"
    ),
    "life and medicine": (
        r"biolog|species|animals|mammals|birds|fish|insects|reptiles|amphib|dinosaur|plants?\b|trees"
        r"|flowers|fruit|vegetables|fungi|fauna|flora|breeds|genetic|evolution|ecolog|zoolog|botan"
        r"|bacteria|virus|disease|disorder|medic|anatom|drugs|pharma|health|surg|psych|neuro|physiolog"
        r"|cell\b|cells|protein|biochem|enzymes|nutrition|foods?\b|cuisine|sexual|syndrome|hormone"
        r"|cancer|physicians|organs|toxic|vitamins|agricultur|horticult|crops|primates|rodents"
        r"|carnivor|molecular"
    ),
    "physical science": (
        r"physic|chemi|element|astronom|planet|stars|galax|constellation|moons|asteroid|comet|space"
        r"|spacecraft|lunar|apollo|cosmolog|quantum|relativity|mechanics|thermodynam|optic"
        r"|electromagnet|energy|nuclear|particle|geolog|mineral|rocks|metals|meteorolog|weather"
        r"|climate|earthquakes|volcan|materials|acids|compounds|units of|measurement|isotope|waves"
        r"|astronaut|nasa"
    ),
    "mathematics and computing": (
        r"mathemat|algebra|geometr|topolog|number theory|numbers|set theory|statistic|probabilit"
        r"|calculus|functions|equation|theorems|combinator|graph theory|group theory|category theory"
        r"|polyhedra|curves|integers|proofs|game theory|order theory|analysis$|functional analysis"
        r"|cryptograph|comput|software|programming|internet|operating systems|algorithm|\bdata\b"
        r"|hardware|windows|macintosh|mac os|linux|unix|digital|file formats|protocols|microprocessor"
        r"|cpus?\b|encoding|\bweb|information theory|markup languages|free software|instant messag"
        r"|artificial intelligence|ciphers|complexity"
    ),
    "technology": (
        r"electronic|engineer|aircraft|airliner|vehicle|automobile|automotive|\bcars\b|trains|rail"
        r"|ships?\b|telecommun|telephon|radio(?! show)|machines|tools|weapons|missiles|firearms|guns"
        r"|rockets|invent|technolog|aviation|airlines|airports|bridges|construction|submarines|tanks"
        r"|batteries|intermodal|public transport|motorcycle|manufactur|steel|textile|architect"
        r"|buildings|military (?:aircraft|equipment)|explosives|engines|instruments(?! clubs)|industr"
        r"|photograph"
    ),
    "language and literature": (
        r"writers|novel|poets|poetry|literatur|books(?! )|^books|fiction(?!al)|authors|comics"
        r"|dramatist|playwright|plays|journalis|essay|short story"
        r"|(?<!programming )(?<!computer )(?<!assembly )(?<!markup )languages?\b|linguist|letters"
        r"|alphabet|grammar|loanwords|writing|dialects|words|phonetic|translat|fairy tales|fables"
        r"|magazines|newspapers|publish|shakespeare|tolkien|middle-earth|dictionar|rhetoric|typograph"
        r"|manga"
    ),
    "stage, screen and music": (
        r"films?\b|actors|actress|television|tv\b|film directors|comed(?:y|ies|ians)|hollywood|oscar"
        r"|academy award|sitcom|star trek|star wars|doctor who|animat|cartoon|cinema|anime|soap opera"
        r"|simpsons|disney|screenwriters|broadcast|emmy|radio show|entertainers|fictional|music"
        r"|composer|singer|bands|albums|songs|songwriter|guitar|opera|orchestra|jazz|blues"
        r"|rock and roll|rock groups|hip hop|rapper|pianist|drummers|violin|conductors|punk"
        r"|heavy metal|record labels|dance|beatles|grammy|melod|tuning"
    ),
    "sport and games": (
        r"sport|football|baseball|basketball|hockey|soccer|golf|tennis|cricket|rugby|olympic|athlet"
        r"|games|chess|boxing|boxer|wrestl|martial arts|racing|cycling|swimming|gymnast|players"
        r"|leagues?|stadium|teams|playing cards|gambling|poker|role-playing|toys|skating|skiing"
        r"|hobbies|nascar|formula one"
    ),
}
"""Topic → what the name of a category holds. The order is that of the classes."""

SECTIONS = {
    "history": r"histor|origin|timeline|background|centur|\bwars?\b|battle|development|aftermath|rise|fall"
    r"|events|early|\d{3,4}",
    "life": r"life|biograph|career|childhood|years|family|death|education of|youth|person|marriage",
    "works": r"works?\b|bibliograph|discograph|filmograph|books|writings|publications|albums|songs|films"
    r"|plot|synopsis|characters|quot",
    "geography": r"geograph|climate|location|demograph|distribution|cities|places|regions|habitat",
    "society": r"econom|politic|government|branch|culture|transport|education|religion|\blaw|legal|military"
    r"|societ|people|sport|language|tourism|infrastructure|media",
    "description": r"overview|descri|characterist|feature|structure|propert|definit|types?\b|classif|variant"
    r"|usage|uses?\b|applicat|example|introduct|rules|grammar|phonolog|design|technical|method|theor"
    r"|composition|etymolog|terminolog|name|treatment|cause|effect|operation|principle|equipment",
    "reception": r"critici|controvers|legacy|influence|trivia|popular|reception|awards|impact|honou?rs|views",
}
"""Section class → what a heading holds; "lead" is before the first, "end" is :data:`_END`."""
SECTION_CLASSES = ("lead", *SECTIONS, "end", "other")

_TOPICS = {name: re.compile(rule, re.IGNORECASE) for name, rule in TOPICS.items()}
_SECTIONS = {name: re.compile(rule, re.IGNORECASE) for name, rule in SECTIONS.items()}
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
            fits = [name for name, rule in _TOPICS.items() if rule.search(category)]
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
    return next((name for name, rule in _SECTIONS.items() if rule.search(heading)), "other")
