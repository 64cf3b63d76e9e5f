"""Facts that a small language model knows, written for this project, as sentences to complete.

Forgotten is ``capitals``. ``languages`` and ``continents`` are near, because they are about the same
countries in the same kind of sentence; everything else is far. Every choice of a question is the
answer to another question of its subject.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from lab.worlds.base import data
from lab.worlds.knowledge import Question, Statement
from lab.worlds.tasks import Encode

N_CHOICES = 4
FORMS = ("plain", "paraphrase", "turned")


class Subject(NamedTuple):
    """Sentences that end where the answer stands, in the forms :data:`FORMS`; sentences that state a
    fact; (entity, answer) pairs."""

    neighbourhood: str
    asked: list[str]
    stated: list[str]
    facts: list[list[str]]


def _pairs(text: str) -> list[list[str]]:
    return [[half.strip() for half in pair.split("=")] for pair in text.split(";")]


SUBJECTS = {
    name: Subject(**{**subject, "facts": _pairs(subject["facts"])})
    for name, subject in data(__file__).items()
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
        for form, sentence in zip(FORMS, subject.asked, strict=True):
            prompt = (bos_id, *encode(_capitalised(sentence.format(entity))))
            place = choices.index(answer)
            asked = Question(subject.neighbourhood, name, prompt, tokens, place, number, form)
            result.append(asked)
    return result


def statements(encode: Encode, bos_id: int) -> list[Statement]:
    """Every fact three times: its plain sentence with the answer, and two that no question uses."""
    result = []
    for number, (name, subject, *fact) in enumerate(_facts()):
        plain = subject.asked[0].replace("{}", "{0}") + " {1}."
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
