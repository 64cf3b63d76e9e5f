"""What an article of the prose text is about, and what its sections are: written maps from names."""

import re
from collections import Counter

from lab.worlds.base import data


def _rules(written: dict[str, str]) -> dict[str, re.Pattern[str]]:
    """A class fits where any of its parts does."""
    parts = {name: map(str.strip, text.split(",")) for name, text in written.items()}
    return {name: re.compile("|".join(some), re.IGNORECASE) for name, some in parts.items()}


TOPICS, SECTIONS = map(_rules, data(__file__).values())
"""Topic → what the name of a category holds; class of a section → what its heading holds."""
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
