"""An activation store in memory, with the interface of the one on disk: sparse sums plus noise."""

import numpy as np
import torch

from tsae.saes import SequenceContext
from tsae.sequences import Sequence
from tsae.store import Batch, Sampler
from tsae.store.writing import HarvestConfig, harvest_with


class FakeStore:
    """``n`` sequences of 16 tokens in 16 dimensions, each token a sum of 2 of 24 directions."""

    world, fingerprint, layer = "fake", "f" * 64, 1
    seq_len = d_model = 16

    def __init__(self, n_train=48, n_test=6, seed=0):
        g = torch.Generator().manual_seed(seed)
        n = n_train + n_test
        directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=g), dim=1)
        active = torch.rand(n, 16, 24, generator=g).topk(2, dim=-1).indices
        x = directions[active].sum(2) + 0.05 * torch.randn(n, 16, 16, generator=g) + 0.3
        self.mask = torch.ones(n, 16, dtype=torch.bool)
        self.mask[:, 0] = False
        self.boundary = torch.zeros(n, 16, dtype=torch.uint8)
        self.boundary[:, 0] = 3
        self.boundary[:, 5], self.boundary[:, 9], self.boundary[:, 12] = 1, 3, 2
        valid = x[self.mask]
        self.scale = float((16 / (valid - valid.mean(0)).square().sum(1).mean()).sqrt())
        self.x = x * self.scale
        self.mean_D = self.x[self.mask].mean(0)
        self.first = {"train": 0, "test": n_train}
        self.size = {"train": n_train, "test": n_test}

    def n_sequences(self, split):
        return self.size[split]

    def n_tokens(self, split):
        return 16 * self.size[split]

    def batch(self, split, indices, device="cpu"):
        rows = torch.as_tensor(indices) + self.first[split]
        zero = torch.zeros(len(rows), 16, dtype=torch.int64)
        context = SequenceContext(self.mask[rows], self.boundary[rows])
        return Batch(self.x[rows], zero, zero, context, {}).to(device)

    def sampler(self, split, batch_size, seed, rank=0, world_size=1):
        return Sampler(self.size[split], batch_size, seed, split, rank, world_size)


class FakeWorld:
    """Token ``16 i + t`` is position t of sequence i of a :class:`FakeStore`."""

    name, fingerprint, layer, label_specs = "fake", "f" * 64, 1, {}
    seq_len = d_model = 16

    def __init__(self, store):
        self.store = store

    def sequences(self, split, limit_tokens=None):
        for i in range(self.store.size[split]):
            row = self.store.first[split] + i
            doc = np.full(16, row, np.int32)
            doc[0] = -1
            tokens = np.arange(16 * row, 16 * row + 16, dtype=np.int32)
            yield Sequence(tokens, doc, self.store.boundary[row].numpy(), {})


def on_disk(store, directory):
    """The same activations as a store on disk, in shards of 8 sequences, float16."""
    x_ND = store.x.flatten(0, 1)
    tokens = {split: 16 * n for split, n in store.size.items()}
    asked = HarvestConfig(tokens, shard_tokens=128, batch_sequences=4)
    return harvest_with(x_ND.__getitem__, FakeWorld(store), directory, 1, asked, progress=False)
