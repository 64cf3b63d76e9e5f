"""What each temporal variant's training step costs beside the static one's, and where it goes.

    python benchmarks/overheads.py [--repeats 5] [--latents 2304] [--variants conv glta ...]
    python benchmarks/overheads.py --out overheads.json  # kept as JSON

A step is all that the trainer does, in the variant's last phase, on 16 sequences of 128 normal
tokens with BOS masked and a sentence start at one token in sixteen. Cases take turns; printed are
the median CPU time of a step on one thread, its ratio to ``topk``, and the three operations that
``torch.profiler`` finds the most time in (their own, callees aside). No latent is dead that soon,
so AuxK does not run.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tsae import saes  # noqa: E402
from tsae.saes import SequenceContext  # noqa: E402
from tsae.training.schedule import set_trainable  # noqa: E402
from tsae.training.train import TrainConfig, training_step  # noqa: E402

VARIANTS = ("conv", "glta", "lstm", "causal", "contrastive", "predictive", "hierarchical")


def batch(width: int) -> SimpleNamespace:
    """Random activations, BOS masked, one document a sequence."""
    draw = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(16, 128, width, generator=draw)
    mask_BT = torch.ones(16, 128, dtype=torch.bool)
    mask_BT[:, 0] = False
    boundary_BT = (torch.rand(16, 128, generator=draw) < 1 / 16).to(torch.uint8)
    boundary_BT[:, :2] = 3
    return SimpleNamespace(x_BTD=x_BTD, context=SequenceContext(mask_BT, boundary_BT))


class Case:
    """A variant in its last phase, and its optimiser."""

    def __init__(self, variant: str, args):
        torch.manual_seed(0)
        fixed = {} if variant == "topk" else {"act": "topk"}
        self.sae = saes.build(variant, d_in=args.width, d_sae=args.latents, k=args.k, **fixed)
        self.sae.train()
        learnable = [name for name, p in self.sae.named_parameters() if p.requires_grad]
        phase = self.sae.phases()[-1]
        set_trainable(self.sae, phase, learnable)
        self.sae.start_step(950, 1000, phase)
        if variant == "lstm":  # it starts at 0, where nothing of the recurrence is used
            torch.nn.init.constant_(self.sae.recurrent.rho, 0.1)
        self.optimizer = torch.optim.AdamW(
            self.sae.parameters(), 1e-4, weight_decay=0.0, fused=True
        )
        self.config, self.times = TrainConfig(), []

    def step(self, data: SimpleNamespace) -> float:
        """CPU milliseconds of one step."""
        began = time.process_time()
        training_step(self.sae, data, self.optimizer, self.config)
        return 1e3 * (time.process_time() - began)


def costliest(case: Case, data: SimpleNamespace, n: int = 3) -> list[tuple[str, float]]:
    """The ``n`` operations with the largest own time in a step, each with its share of it."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        case.step(data)
    events = sorted(profiled.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [(e.key.removeprefix("aten::"), e.self_cpu_time_total / total) for e in events[:n]]


def main() -> None:
    """Time every case in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("width", 576), ("latents", 2304), ("k", 32), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=saes.names())
    parser.add_argument("--out", help="where to write the numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = batch(args.width)
    cases = {name: Case(name, args) for name in ("topk", *args.variants)}
    for case in cases.values():
        case.step(data)
    for _ in range(args.repeats):
        for case in cases.values():
            case.times.append(case.step(data))
    rows = []
    static = statistics.median(cases["topk"].times)
    print(f"d={args.width} F={args.latents} k={args.k}, 2048 tokens, one thread")
    for name, case in cases.items():
        milliseconds = statistics.median(case.times)
        top = costliest(case, data)
        rows.append({"variant": name, "ms": milliseconds, "ratio": milliseconds / static,
                     "top": top})  # fmt: skip
        spent = ", ".join(f"{op} {share:.0%}" for op, share in top)
        print(f"{name:12s}{milliseconds:8.0f} ms{milliseconds / static:7.2f} x   {spent}")
    if args.out:
        Path(args.out).write_text(json.dumps({"settings": vars(args), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
