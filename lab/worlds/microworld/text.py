"""The microworld's documents as tokens and labels, and the questions about its facts."""

import random
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from lab.worlds.base import Document
from lab.worlds.knowledge import Question, orders
from lab.worlds.microworld import words as w
from lab.worlds.microworld.chains import STEP_CLASSES
from lab.worlds.microworld.config import MicroworldConfig
from lab.worlds.microworld.facts import NEIGHBOURHOOD, Fact, ask, make_facts
from lab.worlds.microworld.grammar import document
from lab.worlds.microworld.writer import FOCUS, TENSES, THEMES, Draw, Writer
from tsae.sequences import DOCUMENT, LabelSpec

_CLASSES = {
    "document": {"domain": tuple(w.DOMAINS), "narrator": tuple(w.NARRATORS)},
    "section": {"theme": THEMES, "tense": TENSES, "focus": FOCUS, "number": w.AGREEMENT},
    "token": {
        **{"pos": tuple(w.POS), "agreement": w.AGREEMENT, "gender": w.GENDER},
        **{"step": STEP_CLASSES, "sense": w.SENSE_CLASSES},
    },
}
LABELS = {
    name: LabelSpec(name, scale, classes)
    for scale, labels in _CLASSES.items()
    for name, classes in labels.items()
}
# Not a label of the world but a mark for training: 1 where a fact's value is called for.
RECALL = "recall"
_DOMAINS = list(w.DOMAINS)
_POOL_DOCUMENTS = 400


class MicroworldText:
    """All text of one microworld; each document depends only on the seed, its split and its number.

    At ``temporal`` = s < 1 every token is kept with probability s, and otherwise replaced by an
    independent draw from the tokens of 400 other documents, with the labels of the token itself;
    what the document and the section are labelled stays. At s = 0 tokens are i.i.d., nothing tells
    those labels, and no boundary is left but the document's.
    """

    def __init__(self, config: MicroworldConfig) -> None:
        self.config = config
        self.vocabulary = w.Vocabulary()
        self.facts: dict[str, list[Fact]] = make_facts(config.seed, config.n_entities)

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split in order; ids go on from training to test to validation."""
        n_train, n_test = self.config.n_train_docs, self.config.n_test_docs
        first = {"train": 0, "test": n_train, "validation": n_train + n_test}[split]
        for i in range(n_train if split == "train" else n_test):
            yield self.document(split, i, first + i)

    def write(self, split: str, i: int) -> Writer:
        """Words and latents of document ``i`` of ``split`` before any shuffling."""
        draw = Draw(f"{self.config.seed}-{split}-{i}")
        return document(draw, _DOMAINS[i % len(_DOMAINS)], self.facts)

    def document(self, split: str, i: int, number: int) -> Document:
        """Document ``i`` of ``split`` with id ``number``."""
        made = self._structured(split, i, number)
        temporal = self.config.temporal
        if temporal == 1:
            return made
        n = len(made.tokens)
        stream = ("test", "train", "validation").index(split)
        rng = np.random.default_rng([self.config.seed, stream, i])
        kept = rng.random(n) < temporal
        drawn = rng.integers(len(self._pool["tokens"]), size=n)
        boundary = np.where(kept, made.boundary, 0).astype(np.uint8)
        boundary[0] = DOCUMENT
        fast = {name for name in made.labels if name == RECALL or LABELS[name].scale == "token"}
        labels = {
            name: np.where(kept, values, self._pool[name][drawn]) if name in fast else values
            for name, values in made.labels.items()
        }
        tokens = np.where(kept, made.tokens, self._pool["tokens"][drawn])
        return Document(number, tokens, boundary, labels)

    def _structured(self, split: str, i: int, number: int) -> Document:
        o = self.write(split, i)
        ids, n = self.vocabulary.ids, len(o.words)
        tokens = np.fromiter((ids[word] for word in o.words), np.int32, n)
        boundary = np.zeros(n, np.uint8)
        for start, level in o.starts:
            boundary[start] = level
        labels = {name: np.full(n, -1, np.int16) for name in LABELS}
        for name, value in (("domain", o.domain), ("narrator", o.narrator)):
            labels[name][:] = LABELS[name].classes.index(value)
        labels |= {name: values_V[tokens] for name, values_V in self.vocabulary.labels_V.items()}
        for begin, *values in o.sections:  # each reaches to the next
            for name, index in zip(_CLASSES["section"], values, strict=True):
                labels[name][begin:] = index
        for begin, end, step in o.spans:
            labels["step"][begin:end] = STEP_CLASSES.index(step)
        for at, sense in o.senses:
            labels["sense"][at] = w.SENSE_CLASSES.index(sense)
        recall = np.zeros(n, np.int16)
        recall[o.recalls] = 1
        return Document(number, tokens, boundary, labels | {RECALL: recall})

    @cached_property
    def _pool(self) -> dict[str, np.ndarray]:
        made = [self._structured("pool", i, -1) for i in range(_POOL_DOCUMENTS)]
        pool = {name: np.concatenate([d.labels[name] for d in made]) for name in made[0].labels}
        return pool | {"tokens": np.concatenate([d.tokens for d in made])}

    def questions(self) -> list[Question]:
        """Every fact in form ``plain``; those whose paraphrase no document holds, in form
        ``paraphrase`` too.

        Each is asked under ``option_orders`` orders: the four rotations of a random order first, so
        that the answer stands once at each place. Bane and balm of a plant are options for each
        other.
        """
        ids = self.vocabulary.ids
        result = []
        for fact in (fact for facts in self.facts.values() for fact in facts):
            rng = random.Random(f"question-{self.config.seed}-{fact.id}")
            wrong = [v for v in fact.relation.values if v not in (fact.value, fact.rival)]
            rivals = [fact.rival] if fact.rival else []
            options = [fact.value, *rivals, *rng.sample(wrong, 3 - len(rivals))]
            rng.shuffle(options)
            for form in ("plain", *fact.held_out):
                for order in orders(options)[: self.config.option_orders]:
                    asked = Question(
                        NEIGHBOURHOOD.get(fact.subject, "far"),
                        fact.subject,
                        (ids[w.BOS], *(ids[word] for word in ask(fact, form, order))),
                        tuple((ids[option],) for option in order),
                        order.index(fact.value),
                        fact.id,
                        form,
                    )
                    result.append(asked)
        return result
