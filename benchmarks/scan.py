"""The scan of adaptation against plain Python loops over time, forward and backward.

    python benchmarks/scan.py [--threads 1] [--repeats 7] [--batch 16] [--length 128] [--latents 2304]

What is timed is r and its gradients in a and delta, for L = sum w (1 − delta) r: what adaptation
reads is the memory m = (1 − delta) r. The loop indexes a[:, t], as anyone would write it; its
backward pass fills a whole [B, T, F] gradient at each step. Runs alternate; medians. The bar of
the project: at least 5 times faster than a
Python loop over T = 128 at F = 2304, and equal to 1e-5.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from tsae.kernels.scan import scan


def indexing_loop(a_BTF: Tensor, delta_F: Tensor, keep_BT: Tensor, valid_BT: Tensor) -> Tensor:
    """``r`` [B, T, F], as :func:`tsae.kernels.scan.scan`."""
    m_BF = torch.zeros_like(a_BTF[:, 0])
    before = []
    for t in range(a_BTF.shape[1]):
        r_BF = keep_BT[:, t, None] * m_BF
        before.append(r_BF)
        m_BF = torch.where(valid_BT[:, t, None], delta_F * r_BF + a_BTF[:, t], r_BF)
    return torch.stack(before, 1)


WAYS = {"indexing loop": indexing_loop, "scan": scan}


def step(run, a_BTF, delta_F, keep_BT, valid_BT, weight_BTF) -> tuple[float, list[Tensor]]:
    """Seconds of one forward and backward pass, and m, dL/da, dL/ddelta."""
    a, delta = a_BTF.clone().requires_grad_(), delta_F.clone().requires_grad_()
    began = time.perf_counter()
    r = run(a, delta, keep_BT, valid_BT)
    r.backward(weight_BTF)
    if a.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, [(1 - delta_F) * r.detach(), a.grad, delta.grad]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--latents", type=int, default=2304)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    B, T, F = asked.batch, asked.length, asked.latents
    g = torch.Generator().manual_seed(0)
    # Activations, rates, documents of about 60 tokens, BOS invalid: what training on text has.
    given = [torch.rand(B, T, F, generator=g), 0.95 * torch.rand(F, generator=g)]
    given += [torch.rand(B, T, generator=g) > 1 / 60, torch.ones(B, T, dtype=torch.bool)]
    given[3][:, 0] = False
    given.append((1 - given[1]) * torch.randn(B, T, F, generator=g))
    given = [tensor.to(asked.device) for tensor in given]

    found = {name: step(run, *given)[1] for name, run in WAYS.items()}  # also warms up
    seconds = {name: [] for name in WAYS}
    for _ in range(asked.repeats):
        for name, run in WAYS.items():
            seconds[name].append(step(run, *given)[0])
    median = {name: statistics.median(times) for name, times in seconds.items()}

    where = f"{asked.threads} thread(s)" if asked.device == "cpu" else asked.device
    print(f"B={B} T={T} F={F}, float32, {where}, medians of {asked.repeats} alternating runs")
    for name, value in median.items():
        ratio = value / median["scan"]
        print(f"{name:15} {1e3 * value:8.1f} ms   {ratio:5.1f} x the scan's time")
    pairs = zip(found["scan"], found["indexing loop"], strict=True)
    gaps = [float((ours - theirs).abs().max()) for ours, theirs in pairs]
    print(
        f"largest difference: m {gaps[0]:.1e}, dL/da {gaps[1]:.1e}, dL/ddelta {gaps[2]:.1e} "
        f"(of values up to {float(found['indexing loop'][2].abs().max()):.0f})"
    )


if __name__ == "__main__":
    main()
