"""``order``: activations in which time provably matters, without a language model.

A document has a hidden step v in 1 … M − 1, M a prime; its position goes round a circle,

    p[t+1] = (p[t] + v) mod M,   p[0] uniform,      x[t] = a_p[t] + b_q[t] + c_s + σ ε[t],

with random unit vectors a (positions), b (a distractor q drawn anew at every token), c (the
document's topic s, which every token shows: the control that any dictionary must read) and white
noise ε. Whatever v is, p[t] is uniform, so one token says nothing of v; and a linear function of
the past, Σ_l w_l · x[t − l], such as an average of any decay, has the same mean over p[0] for every v.
Only what joins positions at different lags in a nonlinear way can tell v: a dictionary whose latent
stands for "p now, p − v before". A loss that reconstructs the present token alone has no need of one;
a loss that reconstructs several tokens from one code has. Average precision for v of the best latent,
read through an EMA of .9, at chance .167: TopK .169, conv with window 4 .170, a crosscoder that
reconstructs four tokens 1.00 (F = 256, 500 to 700 steps, one seed).

The text is written in tokens, one for each pair of a position and a row of the table that holds what
else a token shows.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from lab.worlds.base import Document, Given, World, check_wholes, configured, require, write_record
from tsae.errors import WorldError
from tsae.sequences import DOCUMENT, SPLITS, LabelSpec

WORLDS = ("order",)
_ROWS = 1 << 16  # of the table; a token's row is drawn anew each time


@dataclass(frozen=True)
class OrderConfig:
    """How long a circle, how many documents, how much noise."""

    seed: int = 0
    """Draws the directions, the noise and the documents."""
    modulus: int = 7
    """M, positions of the circle: a prime, so that no step visits only a part of them."""
    d_model: int = 64
    """Width of an activation."""
    n_distractors: int = 24
    """Directions of which each token shows one at random."""
    n_topics: int = 4
    """Directions of which each document shows one."""
    noise: float = 0.05
    """σ, standard deviation of each coordinate's noise; the directions have length 1."""
    length: int = 48
    """Mean tokens of a document, which has between half and one and a half of it."""
    n_train_docs: int = 6000
    """Documents for training."""
    n_test_docs: int = 1200
    """Documents held out for the test, and as many again for validation."""
    seq_len: int = 128
    """Tokens of a sequence, BOS included."""

    def __post_init__(self) -> None:
        least = {"seed": 0, "length": 4, "seq_len": 2, "modulus": 3}
        wholes = (field.name for field in fields(self) if field.name != "noise")
        check_wholes(self, {name: least.get(name, 1) for name in wholes})
        parts = (n for n in range(2, self.modulus) if self.modulus % n == 0)
        require(self, "modulus", not any(parts), "a prime")
        require(self, "noise", 0 <= self.noise < float("inf"), "a number from 0")


class OrderWorld(World):
    """The world of ``config``; nothing but its settings is kept in ``directory``."""

    name, bos_id, layer, n_layers = "order", 0, 0, 1

    def __init__(self, directory: Path, config: OrderConfig) -> None:
        self.directory, self.config = directory, config
        self.seq_len, self.d_model = config.seq_len, config.d_model
        self.vocab_size = 1 + config.modulus * _ROWS
        settings = json.dumps(["order", 1, asdict(config)], sort_keys=True)
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()
        numbers = {
            ("v", "document"): range(1, config.modulus),
            ("topic", "document"): range(config.n_topics),
            ("position", "token"): range(config.modulus),
            ("distractor", "token"): range(config.n_distractors),
        }
        specs = (LabelSpec(*label, tuple(map(str, classes))) for label, classes in numbers.items())
        self.label_specs = {spec.name: spec for spec in specs}

    def model(self, device: str = "cpu") -> NoReturn:
        """There is none. Raises :class:`WorldError`."""
        raise WorldError(
            "World order has no language model; measure there only what reads activations alone."
        )

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
        """Of each row: topic and distractor; then a [M, d] and what else a token shows [rows, d]."""
        c = self.config
        rng = np.random.default_rng([c.seed, 0])
        sizes = (c.modulus, c.n_distractors, c.n_topics)
        drawn = [rng.normal(size=(n, c.d_model)) for n in sizes]
        a, b, topics = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in drawn)
        topic = np.arange(_ROWS) % c.n_topics
        distractor = rng.integers(c.n_distractors, size=_ROWS)
        rest = topics[topic] + b[distractor] + c.noise * rng.normal(size=(_ROWS, c.d_model))
        return topic, distractor, torch.from_numpy(a).float(), torch.from_numpy(rest).float()

    def activations(self, tokens_BT: Tensor) -> Tensor:
        """x_BTD of ``tokens_BT``; zero at BOS."""
        *_, a_MD, rest_RD = self._tables
        at_BT = (tokens_BT - 1).clamp(min=0)
        x_BTD = a_MD[at_BT % self.config.modulus] + rest_RD[at_BT // self.config.modulus]
        return x_BTD * (tokens_BT > 0)[..., None]

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of ``split``, written anew each time; v and topic are balanced."""
        c, m = self.config, self.config.modulus
        _, distractor, *_ = self._tables
        first = sum(self._count(before) for before in SPLITS[: SPLITS.index(split)])
        for i in range(self._count(split)):
            rng = np.random.default_rng([c.seed, 1 + SPLITS.index(split), i])
            v, topic = 1 + i % (m - 1), i // (m - 1) % c.n_topics
            n = int(rng.integers(c.length // 2, c.length + c.length // 2 + 1))
            position = (rng.integers(m) + v * np.arange(n)) % m
            row = rng.integers(_ROWS // c.n_topics, size=n) * c.n_topics + topic
            labels = {
                "v": np.full(n, v - 1),
                "topic": np.full(n, topic),
                "position": position,
                "distractor": distractor[row],
            }
            boundary = np.zeros(n, np.uint8)
            boundary[0] = DOCUMENT
            tokens = (1 + position + m * row).astype(np.int32)
            kept = {name: values.astype(np.int16) for name, values in labels.items()}
            yield Document(first + i, tokens, boundary, kept)

    def _count(self, split: str) -> int:
        return self.config.n_train_docs if split == "train" else self.config.n_test_docs

    def to_strings(self, tokens: Iterable[int]) -> list[str]:
        """The positions."""
        ids = [int(token) for token in tokens]
        return [str((id - 1) % self.config.modulus) if id else "BOS" for id in ids]

    def encode(self, text: str) -> list[int]:
        """Positions parted by blanks, each with the first row of the table."""
        known = [str(p) for p in range(self.config.modulus)]
        for word in set(text.split()).difference(known):
            raise WorldError(f"World order has no position {word!r}; it has {', '.join(known)}.")
        return [1 + int(word) for word in text.split()]


def build(directory: Path, given: Given, **options: Any) -> OrderWorld:
    """Write ``world.json``; options are the fields of :class:`OrderConfig`."""
    config = configured(OrderConfig, given, options)
    write_record(directory, given.name, {"config": asdict(config)}, same="config")
    return OrderWorld(directory, config)


def load(directory: Path, record: dict[str, Any]) -> OrderWorld:
    """The world of ``record``."""
    return OrderWorld(directory, OrderConfig(**record["config"]))
