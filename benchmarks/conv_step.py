"""What a training step of ``conv``, ``rounds`` and ``slowfast`` costs beside one of the static SAE.

    python benchmarks/conv_step.py [--repeats 9] [--width 576] [--latents 2304] [--k 32]

A step is all that the trainer does: loss, gradient, clipping, Adam, unit-norm decoder, on 2048
normal tokens in 16 sequences of 128, with a sentence start at one token in sixteen. The cases take
turns, a step each, so that whatever else the machine does weighs on all alike; printed are the
median CPU time of a step on one thread (ms) and its ratio to ``topk``. AuxK does not run: no latent
is dead that soon. Nothing is written.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tsae import saes
from tsae.saes import SequenceContext
from tsae.training.train import TrainConfig, training_step

CASES = {
    "topk": ("topk", {}),
    "rounds": ("rounds", {}),
    "slowfast": ("slowfast", {}),
    "slowfast, nested": ("slowfast", {"blocks": (0.25, 0.75)}),
    "conv w=1": ("conv", {"window": 1}),
    "conv w=8 r=64, no consistency": ("conv", {"consistency": "none", "nested": False}),
    "conv w=8 r=64, cosine": ("conv", {"consistency": "cosine", "nested": False}),
    "conv w=8 r=64": ("conv", {}),
    "conv w=4 r=64": ("conv", {"window": 4}),
    "conv w=4 full lags": ("conv", {"window": 4, "lag_rank": None}),
}


class Batch:
    """What :func:`tsae.train.training_step` reads of a store's batch."""

    def __init__(self, width: int):
        self.x_BTD = torch.randn(16, 128, width)
        boundary_BT = (torch.rand(16, 128) < 1 / 16).to(torch.uint8)
        self.context = SequenceContext(torch.ones(16, 128, dtype=torch.bool), boundary_BT)


def main() -> None:
    """Time every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("repeats", 9), ("width", 576), ("latents", 2304), ("k", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, config = Batch(options.width), TrainConfig()
    runs = {}
    for case, (variant, settings) in CASES.items():
        sizes = {"d_in": options.width, "d_sae": options.latents, "k": options.k}
        sae = saes.build(variant, **sizes, **settings).train()
        runs[case] = sae, torch.optim.AdamW(sae.parameters(), 1e-3, weight_decay=0.0, fused=True)
    seconds = {case: [] for case in CASES}
    for repeat in range(options.repeats + 2):
        for case, (sae, optimizer) in runs.items():
            began = time.process_time()
            training_step(sae, batch, optimizer, config)
            if repeat >= 2:  # the first steps allocate
                seconds[case].append(time.process_time() - began)
    static = statistics.median(seconds["topk"])
    print(f"{'case':32s} {'ms/step':>8s} {'ratio':>6s}")
    for case, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{case:32s} {median * 1e3:8.1f} {median / static:6.2f}")


if __name__ == "__main__":
    main()
