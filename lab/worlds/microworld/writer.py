"""How a microworld document is written: random choices, words, latents."""

import random
from collections.abc import Sequence as Ordered
from typing import TypeVar

from lab.worlds.microworld import words as w
from lab.worlds.microworld.facts import Fact
from tsae.sequences import DOCUMENT, SECTION, SENTENCE

Item = TypeVar("Item")
THEMES = ("opening", "story", "description", "procedure", "facts", "quiz")
TENSES = ("present", "past")
FOCUS = (*w.WOMEN, *w.MEN, *(d.group.plural for d in w.DOMAINS.values()))
PREPOSITIONS = "near behind beside by under".split()


class Draw:
    """Random choices."""

    def __init__(self, key: str) -> None:
        self._uniform = random.Random(key).random

    def one(self, options: Ordered[Item]) -> Item:
        """One of the options, all alike."""
        return options[int(self._uniform() * len(options))]

    def early(self, options: Ordered[Item]) -> Item:
        """One of the options, the early ones more often: P(i) = (2(n − i) − 1) / n²."""
        n = len(options)
        return options[min(int(self._uniform() * n), int(self._uniform() * n))]

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self._uniform() < p

    def about_four(self) -> int:
        """3, 4 or 5; 4 in half of the cases."""
        u = self._uniform()
        return 3 + (u >= 0.25) + (u >= 0.75)

    def sample(self, options: Ordered[Item], n: int) -> list[Item]:
        """n different options in random order."""
        left = list(options)
        return [left.pop(left.index(self.one(left))) for _ in range(n)]


class Writer:
    """Collects the words of one document and what is true of them: where sentences start, on which
    level; the sections (first word, theme, tense, focus and number, as class indices or −1); the
    words of steps and of homographs; where a fact's value is called for."""

    def __init__(self, draw: Draw, domain: str, narrator: str, facts: list[Fact]) -> None:
        self.draw, self.domain, self.narrator, self.facts = draw, domain, narrator, facts
        self.things = w.DOMAINS[domain]
        self.words: list[str] = []
        self.starts: list[tuple[int, int]] = []
        self.sections: list[tuple[int, int, int, int, int]] = []
        self.spans: list[tuple[int, int, str]] = []
        self.senses: list[tuple[int, str]] = []
        self.recalls: list[int] = []
        self.past = False
        self._level = SENTENCE

    def section(self, theme: str, tense: int = 0, focus: int = -1, number: int = -1) -> None:
        """Begin a section; the next sentence starts on its level."""
        self._level = SECTION if self.sections else DOCUMENT
        self.sections.append((len(self.words), THEMES.index(theme), tense, focus, number))
        self.past = tense == 1

    def sentence(self) -> None:
        """Begin a sentence."""
        self.starts.append((len(self.words), self._level))
        self._level = SENTENCE

    def say(self, *text: str) -> None:
        """Write words; after a full stop the caller begins the next sentence."""
        self.words.extend(text)

    def step(self, name: str, clause: list[str]) -> None:
        """Write the clause of a procedure's step."""
        self.spans.append((len(self.words), len(self.words) + len(clause), name))
        self.say(*clause)

    def verb(self, verb: w.Verb, plural: bool) -> str:
        """The form that the section's tense and the subject's number ask for."""
        if self.past:
            return verb.past
        return verb.base if plural else verb.third

    def copula(self, plural: bool) -> str:
        """is, are, was or were."""
        return (("was", "were") if self.past else ("is", "are"))[plural]

    def noun(self, noun: w.Noun) -> tuple[str, bool]:
        """The noun in a random number, and whether that is the plural."""
        plural = self.draw.chance(0.5)
        return noun[plural], plural

    def voice(self) -> None:
        """Begin a sentence, half of the time with the narrator's own word."""
        self.sentence()
        if self.draw.chance(0.5):
            self.say(w.NARRATORS[self.narrator][0], ",")

    def phrase(self, head: w.Noun) -> bool:
        """Say a subject and the modifiers before its verb; returns whether it is plural."""
        word, plural = self.noun(head)
        self.say("the", word)
        while self.draw.chance(0.45):
            self.say(self.draw.one(PREPOSITIONS), "the", self.noun(self.thing())[0])
        return plural

    def adverb(self) -> None:
        """Now and then say an adverb, mostly one of the narrator's own."""
        if self.draw.chance(0.4):
            own = self.draw.chance(0.8)
            pets = w.NARRATORS[self.narrator][1]
            self.say(self.draw.one(pets) if own else self.draw.early(w.ADVERBS))

    def adjective(self) -> str:
        """An adjective, mostly one of the domain's own."""
        return self.draw.early(self.things.adjectives if self.draw.chance(0.7) else w.ADJECTIVES)

    def thing(self) -> w.Noun:
        """A noun, mostly one of the domain's own."""
        return self.draw.early(self.things.nouns if self.draw.chance(0.75) else w.NOUNS)
