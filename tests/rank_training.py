"""Trains the cases of test_distributed.py; run by it under torchrun: ``rank_training.py DIR``."""

import json
import sys
from pathlib import Path

import torch
from fake_store import FakeStore

from tsae import saes
from tsae.errors import UserError
from tsae.training import distributed, train
from tsae.training.train import TrainConfig

CONFIG = TrainConfig(
    steps=12, batch_tokens=128, lr=1e-3, warmup_steps=2, eval_sequences=4, log_every=1,
    eval_every=4, checkpoint_every=4, resample_every=4,
)  # fmt: skip
GLTA = {"act": "batchtopk", "theta": 0.2}
COSINE = {"consistency": "cosine", "guard": 0.0}  # no term that one rank could not compute alone
CASES = {
    "relu": ("l1", {}),
    "topk": ("topk", {}),
    "batchtopk": ("batchtopk", {}),
    "jumprelu": ("jumprelu", {"sparsity_warmup": 0.0}),
    "matryoshka": ("matryoshka", {"act": "batchtopk", "blocks": (0.25, 0.75)}),
    "conv": ("conv", {"window": 3, "lag_rank": 4, **COSINE}),
    "conv-batchtopk": ("conv", {"act": "batchtopk", "window": 3, "lag_rank": None, **COSINE}),
    "glta": ("glta", GLTA),
    "lstm": ("lstm", {"hidden": 8, "memory": 4, "rank": 4, "decoder": "lstm"}),
    "hierarchical": ("hierarchical", {"act2": "jumprelu"}),
    "causal": ("causal", {"feedback": True, "window": 2, "bits": 32, "successors": 8}),
    "predictive": ("predictive", {"n_heads": 2}),
}
"""Every variant, and every activation; latents die soon, so that AuxK has something to revive."""


class UnevenStore(FakeStore):
    """Sequences with different numbers of valid tokens, so that ranks weigh differently."""

    def __init__(self):
        super().__init__(n_train=22)
        for i in range(0, len(self.mask), 3):
            self.mask[i, 4 + i % 7 :] = False


def build(case):
    variant, options = CASES[case]
    torch.manual_seed(0)
    return saes.build(variant, d_in=16, d_sae=96, k=3, dead_after=200, **options)


def train_case(case, directory, store=None):
    return train.train(build(case), store or UnevenStore(), directory, CONFIG, progress=False)


def main(directory):
    torch.set_num_threads(1)
    refused = {}
    with distributed.ranks():
        for case in CASES:
            train_case(case, directory / case)
        train_case("topk", directory / "resumed")  # one process has begun it
        for name, options, tokens in (("contrastive", {}, 128), ("topk", {}, 48)):
            sae = saes.build(name, d_in=16, d_sae=32, k=4, **options)
            config = TrainConfig(steps=1, warmup_steps=0, batch_tokens=tokens)
            try:
                train.train(sae, UnevenStore(), directory / "none", config, progress=False)
            except UserError as error:
                refused[name] = str(error)
        if distributed.rank() == 0:
            (directory / "refused.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
