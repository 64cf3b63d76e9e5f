"""Milliseconds of a training step of the recurrent SAE against the static one's, phase by phase.

A step is loss, gradient, Adam: 16 sequences of T = 128 tokens, cut into documents of 60 tokens on
average. CPU time, and systems take turns, so that a busy machine slows all alike; medians.

    python benchmarks/lstm_step.py --rounds 7
    python benchmarks/lstm_step.py --size 128 512 12 64      # d, latents, k, hidden units
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import torch

from tsae import saes
from tsae.saes import SequenceContext
from tsae.training.schedule import set_trainable
from tsae.training.train import TrainConfig, training_step

SIZES = [(64, 256, 12, 32), (128, 512, 12, 64), (576, 2304, 32, 256)]
PHASES = ("static", "introduce", "refine")


def batch(d: int, n_sequences: int = 16, length: int = 128) -> SimpleNamespace:
    """Random activations with BOS masked and a document starting at every 60th token or so."""
    draw = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(n_sequences, length, d, generator=draw)
    mask_BT = torch.ones(n_sequences, length, dtype=torch.bool)
    mask_BT[:, 0] = False
    starts = torch.rand(n_sequences, length, generator=draw) < 1 / 60
    starts[:, :2] = True
    return SimpleNamespace(
        x_BTD=x_BTD, context=SequenceContext(mask_BT, starts.to(torch.uint8) * 3)
    )


def system(phase: str | None, d: int, F: int, k: int, hidden: int):
    """An SAE inside ``phase`` (None: the static SAE) and its optimiser."""
    torch.manual_seed(0)
    if phase is None:
        sae = saes.build("topk", d_in=d, d_sae=F, k=k).train()
    else:
        sae = saes.build("lstm", d_in=d, d_sae=F, k=k, hidden=hidden, anneal=1.0).train()
        names = [name for name, _ in sae.named_parameters()]
        current = next(p for p in sae.phases() if p.name == phase)
        set_trainable(sae, current, names)
        sae.start_step(99, 100, current)
        torch.nn.init.constant_(sae.recurrent.rho, 0.1)
    return sae, torch.optim.AdamW(sae.parameters(), 1e-3, fused=True)


def measure(size: tuple[int, int, int, int], rounds: int) -> dict[str, float]:
    """Median milliseconds a step of each system."""
    config, data = TrainConfig(), batch(size[0])
    systems = {"static SAE": system(None, *size)}
    systems |= {f"lstm, {phase}": system(phase, *size) for phase in PHASES}
    seconds = {name: [] for name in systems}
    for _ in range(rounds + 1):
        for name, (sae, optimizer) in systems.items():
            began = time.process_time()
            training_step(sae, data, optimizer, config)
            seconds[name].append(time.process_time() - began)
    return {name: 1e3 * statistics.median(found[1:]) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=4, metavar=("D", "F", "K", "H"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("  d      F   k  hidden  system            ms/step   x static")
    for size in [tuple(arguments.size)] if arguments.size else SIZES:
        found = measure(size, arguments.rounds)
        static = found["static SAE"]
        for name, ms in found.items():
            d, F, k, hidden = size
            print(f"{d:3d} {F:6d} {k:3d}  {hidden:6d}  {name:16s} {ms:8.1f} {ms / static:10.2f}")


if __name__ == "__main__":
    main()
