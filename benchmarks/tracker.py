"""Memory and time of the correlation tracker, beside a dense one and a TopK training step.

Usage: ``.venv/bin/python benchmarks/tracker.py [--repeats 3] [--d 576] [--out results.csv]``

All columns of one width are measured in one process, taking turns, and medians are shown. The
dense implementation keeps C as ``window`` matrices F x F and moves them by one matrix product of
0/1 activities a lag; above ``--dense-limit`` latents its memory is computed, not allocated. The
step is TopK at residual width d on the same tokens; at a larger d it only gets dearer.
"""

import argparse
import statistics
import time

import pandas as pd
import torch

from tsae import saes
from tsae.saes import SequenceContext
from tsae.tracking import Active, TemporalCorrelationTracker, history

MIB = 2**20


def texts(F: int, k: int, batch: int, length: int) -> tuple[Active, torch.Tensor]:
    """Codes with Zipf-like frequencies, k distinct latents a token; and each token's document."""
    weight_F = 1.0 / torch.arange(10, F + 10).float()
    ids_NK = torch.multinomial(weight_F.expand(batch * length, F), k)
    document_N = torch.arange(batch * length) // length
    return Active(ids_NK, torch.rand(batch * length, k) + 0.5), document_N


def dense_lags(C_LFF: torch.Tensor, active: Active, document_N: torch.Tensor, alpha: float) -> None:
    """C ← α R̄ + (1 − α) C with R = ½ on all active pairs, every lag of ``C_LFF`` in place."""
    F = C_LFF.shape[1]
    z_NF = torch.zeros(len(document_N), F).scatter_(1, active.ids_NM, 1.0)
    for lagged in history(active, document_N, len(C_LFF)):
        now, past = z_NF[lagged.rows_n], z_NF[lagged.rows_n - lagged.lag]
        share_FF = past.t() @ now / past.sum(0).clamp_min(1)[:, None] / 2
        C_LFF[lagged.lag - 1].lerp_(share_FF, alpha)


def timed(run) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(F: int, k: int, d: int, window: int, repeats: int, dense_limit: int) -> dict:
    """One row of the table; times in seconds, memory in MiB."""
    active, document_N = texts(F, k, 16, 128)
    tracker = TemporalCorrelationTracker(F, window, bits=8)
    sae = saes.build("topk", d_in=d, d_sae=F, k=k)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4)
    x_BTD, context = torch.randn(16, 128, d), SequenceContext()
    lags = 1 if F > 4096 else window  # a lag is like the others, and each takes F x F floats
    C_LFF = torch.zeros(lags, F, F) if dense_limit >= F else None

    def step() -> None:
        adam.zero_grad()
        sae.loss(x_BTD, context)["total"].backward()
        adam.step()

    def learn() -> None:
        loss = tracker.relation.logistic_loss(active, document_N, active.values_NM, 8192)
        loss.backward()

    runs = {"update": lambda: tracker.update(active, document_N), "learn": learn, "step": step}
    if C_LFF is not None:
        runs["dense"] = lambda: dense_lags(C_LFF, active, document_N, 0.02)
    for run in runs.values():
        run()  # warm-up: buffers, kernels, an empty C
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(timed(run))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    dense = seconds["dense"] * window / lags if "dense" in seconds else float("nan")
    return {
        "F": F,
        "tracker_MiB": tracker.nbytes / MIB,
        "dense_MiB": window * F * F * 4 / MIB,
        "update_s": seconds["update"],
        "learn_s": seconds["learn"],
        "dense_update_s": dense,
        "step_s": seconds["step"],
        "update_share": seconds["update"] / seconds["step"],
        "overhead": (seconds["update"] + seconds["learn"]) / seconds["step"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2304, 4096, 8192, 16384])
    parser.add_argument("--k", type=int, default=40)
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dense-limit", type=int, default=8192)
    parser.add_argument("--out", default=None)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    table = pd.DataFrame(
        [
            measure(F, given.k, given.d, given.window, given.repeats, given.dense_limit)
            for F in given.sizes
        ]
    )
    print(f"2048 tokens, k={given.k}, d={given.d}, window={given.window}, one thread")
    print(table.to_string(index=False, float_format="%.3f"))
    if given.out:
        table.to_csv(given.out, index=False)


if __name__ == "__main__":
    main()
