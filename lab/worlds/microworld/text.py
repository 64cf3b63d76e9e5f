"""The microworld's documents as tokens and labels, and the questions about its facts."""

import random
from collections.abc import Iterator
from functools import cached_property
from itertools import permutations

import numpy as np

from lab.worlds.base import Document
from lab.worlds.knowledge import Question
from lab.worlds.microworld import words as w
from lab.worlds.microworld.chains import STEP_CLASSES
from lab.worlds.microworld.config import MicroworldConfig
from lab.worlds.microworld.facts import NEIGHBOURHOOD, Fact, ask, make_facts
from lab.worlds.microworld.grammar import document
from lab.worlds.microworld.writer import FOCUS, TENSES, THEMES, Draw, Writer
from tsae.sequences import DOCUMENT, LabelSpec

LABELS = {
    spec.name: spec
    for spec in (
        LabelSpec("domain", "document", tuple(w.DOMAINS)),
        LabelSpec("narrator", "document", tuple(w.NARRATORS)),
        LabelSpec("theme", "section", THEMES),
        LabelSpec("tense", "section", TENSES),
        LabelSpec("focus", "section", FOCUS),
        LabelSpec("number", "section", w.AGREEMENT),
        LabelSpec("pos", "token", tuple(w.POS)),
        LabelSpec("agreement", "token", w.AGREEMENT),
        LabelSpec("gender", "token", w.GENDER),
        LabelSpec("step", "token", STEP_CLASSES),
        LabelSpec("sense", "token", w.SENSE_CLASSES),
    )
}
# Not a label of the world but a mark for training: 1 where a fact's value is called for.
RECALL = "recall"
_STEP = {name: i for i, name in enumerate(STEP_CLASSES)}
_SENSE = {name: i for i, name in enumerate(w.SENSE_CLASSES)}
_DOMAINS, _NARRATORS = list(w.DOMAINS), list(w.NARRATORS)
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

    def nats(self, split: str, i: int) -> float:
        """−log p of document ``i`` under the generator (an upper bound where a text has two
        derivations).
        """
        return self.write(split, i).draw.nats

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
        drawn = rng.integers(len(self._pool.tokens), size=n)
        boundary = np.where(kept, made.boundary, 0).astype(np.uint8)
        boundary[0] = DOCUMENT
        labels = {
            name: values
            if name in LABELS and LABELS[name].scale != "token"
            else np.where(kept, values, self._pool.labels[name][drawn])
            for name, values in made.labels.items()
        }
        tokens = np.where(kept, made.tokens, self._pool.tokens[drawn])
        return Document(number, tokens, boundary, labels)

    def _structured(self, split: str, i: int, number: int) -> Document:
        o = self.write(split, i)
        ids, n = self.vocabulary.ids, len(o.words)
        tokens = np.fromiter((ids[word] for word in o.words), np.int32, n)
        boundary = np.zeros(n, np.uint8)
        for start, level in o.starts:
            boundary[start] = level
        lengths = np.diff([*(section.start for section in o.sections), n])
        step, sense = np.full((2, n), -1, np.int16)
        for start, stop, name in o.spans:
            step[start:stop] = _STEP[name]
        for at, name in o.senses:
            sense[at] = _SENSE[name]
        recall = np.zeros(n, np.int16)
        recall[o.recalls] = 1
        labels = {
            "domain": np.full(n, _DOMAINS.index(o.domain), np.int16),
            "narrator": np.full(n, _NARRATORS.index(o.narrator), np.int16),
            "pos": self.vocabulary.pos_V[tokens],
            "agreement": self.vocabulary.agreement_V[tokens],
            "gender": self.vocabulary.gender_V[tokens],
            "step": step,
            "sense": sense,
        }
        for name in ("theme", "tense", "focus", "number"):
            values = np.array([getattr(section, name) for section in o.sections], np.int16)
            labels[name] = np.repeat(values, lengths)
        ordered = {name: labels[name] for name in LABELS}
        return Document(number, tokens, boundary, ordered | {RECALL: recall})

    @cached_property
    def _pool(self) -> Document:
        made = [self._structured("pool", i, -1) for i in range(_POOL_DOCUMENTS)]
        return Document(
            -1,
            np.concatenate([d.tokens for d in made]),
            np.concatenate([d.boundary for d in made]),
            {name: np.concatenate([d.labels[name] for d in made]) for name in (*LABELS, RECALL)},
        )

    def unigram_nats(self) -> float:
        """Entropy of one i.i.d. draw from the pool, −Σ p log p: what a token costs at ``temporal``
        0.
        """
        counts = np.bincount(self._pool.tokens)
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())

    def questions(self) -> list[Question]:
        """Every fact in form ``plain``; those whose paraphrase no document holds, in form
        ``paraphrase`` too.

        Each is asked under ``option_orders`` orders: the four rotations of a random order first, so
        that the answer stands once at each place. Bane and balm of a plant are options for each
        other.
        """
        ids = self.vocabulary.ids
        result = []
        for subject, facts in self.facts.items():
            for fact in facts:
                rng = random.Random(f"question-{self.config.seed}-{fact.id}")
                wrong = [v for v in fact.relation.values if v not in (fact.value, fact.rival)]
                rivals = [fact.rival] if fact.rival else []
                options = [fact.value, *rivals, *rng.sample(wrong, 3 - len(rivals))]
                rng.shuffle(options)
                for form in ("plain", *fact.held_out):
                    for order in _orders(options)[: self.config.option_orders]:
                        text = ask(fact, form, order)
                        result.append(
                            Question(
                                NEIGHBOURHOOD.get(subject, "far"),
                                subject,
                                (ids[w.BOS], *(ids[word] for word in text)),
                                tuple((ids[option],) for option in order),
                                order.index(fact.value),
                                fact.id,
                                form,
                            )
                        )
        return result


def _orders(options: list[str]) -> list[list[str]]:
    rotations = [options[i:] + options[:i] for i in range(4)]
    return rotations + [list(p) for p in permutations(options) if list(p) not in rotations]
