"""A world whose sequences follow a formula, and a model that maps each token to a fixed vector.

Every number in a store harvested from them can be worked out by hand.
"""

import numpy as np
import torch

from tsae.sequences import LabelSpec, Sequence
from tsae.store.writing import HarvestConfig, harvest_with

T, D, BOS = 4, 3, 0
CONFIG = {"shard_tokens": 5 * T, "batch_sequences": 2}
SPECS = {
    "topic": LabelSpec("topic", "document", ("a", "b")),
    "word": LabelSpec("word", "token", ("x", "y", "z")),
}


class FakeWorld:
    """Sequence i of a split is BOS, then tokens that count up; its document is unique."""

    name, fingerprint, layer = "fake", "f" * 64, 1
    seq_len, d_model, bos_id, n_layers, label_specs = T, D, BOS, 3, SPECS

    def __init__(self, n=40, shift=0, **changes):
        self.n, self.shift = n, shift
        vars(self).update(changes)

    def sequences(self, split, limit_tokens=None):
        offset = {"train": 0, "test": 1000, "validation": 2000}[split]
        for i in range(self.n):
            tokens = np.array([BOS, *range(3 * i + 1, 3 * i + 4)], np.int32)
            tokens[1:] += offset + self.shift
            doc = np.array([-1, *[offset + i] * 3], np.int32)
            labels = {
                "topic": np.array([-1, *[i % 2] * 3], np.int16),
                "word": np.array([-1, 0, 1, 2], np.int16),
            }
            yield Sequence(tokens, doc, np.array([3, 3, 0, 1], np.uint8), labels)


def embed(tokens_BT):
    """Token v becomes (v mod 7, v mod 5, 1); BOS becomes (30000, 0, 0), as attention sinks do."""
    v = tokens_BT.float()
    x_BTD = torch.stack([v % 7, v % 5, torch.ones_like(v)], -1)
    x_BTD[tokens_BT == BOS] = torch.tensor([30000.0, 0, 0])
    return x_BTD


def make(directory, world=None, residual=embed, layer=1, train=12 * T, test=7 * T, **changes):
    tokens = {"train": train, "test": test} if test else {"train": train}
    config = HarvestConfig(tokens, **{**CONFIG, **changes})
    return harvest_with(residual, world or FakeWorld(), directory, layer, config, progress=False)


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and ". " not in text
    return text


class Stop(Exception):
    pass


def stops_after(n):
    """A model that fails at call ``n`` + 1."""
    calls = iter(range(n))

    def residual(tokens_BT):
        if next(calls, None) is None:
            raise Stop
        return embed(tokens_BT)

    return residual
