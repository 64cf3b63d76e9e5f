"""Tiny tokens, stores and models with known answers, for the tests of lab.measures."""

from types import SimpleNamespace

import torch

import lab.measures
from lab.measures.reading import Reading, Sizes, Tokens
from tsae.sequences import LabelSpec, SequenceContext


def tokens(z, x=None, *, x_hat=None, piece=None, boundary=None, doc=None, labels=None):
    """Flattened tokens from nested lists; by default one piece of one document."""
    z = torch.as_tensor(z, dtype=torch.float32)
    n = len(z)
    x = torch.arange(n)[:, None].float() if x is None else torch.as_tensor(x).float()
    zeros = torch.zeros(n, dtype=torch.long)
    return Tokens(
        x_ND=x,
        x_hat_ND=x if x_hat is None else torch.as_tensor(x_hat).float(),
        z_NF=z,
        piece_N=zeros if piece is None else torch.as_tensor(piece),
        boundary_N=zeros if boundary is None else torch.as_tensor(boundary),
        doc_N=zeros if doc is None else torch.as_tensor(doc),
        id_N=zeros,
        position_N=torch.arange(n),
        labels={k: torch.as_tensor(v) for k, v in (labels or {}).items()},
    )


def read(store, seed=0, **sizes):
    """All of a store by default."""
    sizes = Sizes(**{"test": 10**6, "choose": 10**6, "splice": 20_000, "batch": 4, **sizes})
    return Reading(store, sizes, seed=seed, progress=False)


def measured(saes, store, world=None, families=(), options=None, **sizes):
    """``lab.measures.measure`` of ``read(store)``."""
    reading = read(store, **sizes)
    return lab.measures.measure(saes, reading, world, families=families, options=options)


def value(rows, metric, group="all"):
    """The one value of (metric, group)."""
    found = [r["value"] for r in rows if (r["metric"], r["group"]) == (metric, group)]
    assert len(found) == 1, (metric, group, found)
    return found[0]


class Batch(SimpleNamespace):
    """A store's batch; tokens are all 0 where none are given."""

    def __init__(self, **parts):
        super().__init__(**{"tokens_BT": torch.zeros_like(parts["doc_BT"]), **parts})

    def to(self, device):
        return self


class Store:
    """Sequences of BOS, then documents of 20 tokens with sentences of 5, over a sum of directions.

    Labels: ``topic`` (document, 3 classes), ``kind`` (token, 4 classes). x = the two directions of
    the token's classes + noise, so a latent per direction recovers them.
    """

    seq_len, layer, scale, d = 41, 1, 2.0, 8
    label_specs = {
        "topic": LabelSpec("topic", "document", ("a", "b", "c")),
        "kind": LabelSpec("kind", "token", ("p", "q", "r", "s")),
    }

    def __init__(self, n_sequences=24):
        self.n = n_sequences
        self.mean_D = torch.zeros(self.d)
        self.read = []

    def n_sequences(self, split):
        return self.n

    def batches(self, split, batch_size):
        g = torch.Generator().manual_seed({"train": 1, "test": 2, "validation": 3}[split])
        directions = torch.eye(8)
        for first in range(0, self.n, batch_size):
            self.read.append(split)
            b, t = min(batch_size, self.n - first), self.seq_len
            doc = torch.full((b, t), -1)
            boundary = torch.zeros(b, t, dtype=torch.uint8)
            ids = torch.arange(b)[:, None] * 2 + first * 2
            ids = ids + {"train": 0, "test": 1000, "validation": 2000}[split]
            doc[:, 1:21], doc[:, 21:] = ids, ids + 1
            boundary[:, 1::5] = 1
            boundary[:, [0, 1, 21]] = 3
            topic = ((doc * 7 + 3) // 2 % 3).masked_fill(doc < 0, -1)
            kind = torch.randint(0, 4, (b, t), generator=g).masked_fill(doc < 0, -1)
            x = 3 * directions[topic.clamp(min=0)] + 3 * directions[3 + kind.clamp(min=0)]
            x = x + 0.1 * torch.randn(b, t, self.d, generator=g)
            yield Batch(
                x_BTD=x,
                tokens_BT=torch.randint(0, 11, (b, t), generator=g),
                doc_BT=doc,
                context=SequenceContext(doc >= 0, boundary),
                labels={"topic": topic.to(torch.int16), "kind": kind.to(torch.int16)},
            )


class Fake:
    """An SAE from two functions: codes(x, context) and a decoder matrix."""

    name = "fake"
    meta = {}

    def __init__(self, codes, n_latents, decoder=None, groups=None):
        self.codes, self.decoder = codes, torch.eye(n_latents) if decoder is None else decoder
        self.cfg = SimpleNamespace(d_sae=n_latents)
        self.groups = groups or {"all": torch.arange(n_latents)}

    def encode(self, x, context=None):
        return self.codes(x, context)

    def decode(self, z):
        return z @ self.decoder

    def __call__(self, x, context=None):
        from tsae.saes.base import SAEOutput

        z = self.encode(x, context)
        return SAEOutput(self.decode(z), z, z, {})


class TableModel:
    """Residual = a table row per token; logits = residual @ unembedding. Counts what it runs."""

    def __init__(self, n_tokens=11, d=8):
        g = torch.Generator().manual_seed(5)
        self.embed = torch.randn(n_tokens, d, generator=g)
        self.unembed = torch.randn(d, n_tokens, generator=g)
        self.calls = {"clean": 0, "edited": 0, "residual": 0}

    def residual(self, _, tokens_BT, layer):
        self.calls["residual"] += 1
        return self.embed[tokens_BT]

    def logits(self, _, tokens_BT):
        self.calls["clean"] += 1
        return self.embed[tokens_BT] @ self.unembed

    def logits_with(self, _, tokens_BT, layer, edit):
        self.calls["edited"] += 1
        return edit(self.embed[tokens_BT]) @ self.unembed


class World:
    def __init__(self, model):
        self._model = model

    def model(self, device="cpu"):
        return self._model
