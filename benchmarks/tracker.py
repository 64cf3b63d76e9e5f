"""Memory and time of the correlation tracker, beside a dense one and a TopK training step.

Usage: ``.venv/bin/python benchmarks/tracker.py [--repeats 5] [--d 576 2304] [--out results.csv]``

All columns of one width are measured in one process, taking turns, in CPU seconds of its one thread
and in wall seconds; medians are shown. ``update`` moves C by one batch, ``plain`` does so in torch
alone, ``learn`` is the loss of W with its gradient. The step is TopK's (forward, backward, Adam) on
as many tokens at residual width d; the reference budget has d = 2304 at F = 16384. The dense
implementation keeps C as ``window`` matrices F x F and moves them by one matrix product of 0/1
activities a lag; above 4096 latents one lag stands for all, once.
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


def timed(run) -> tuple[float, float]:
    """CPU seconds of this thread and wall seconds of one call."""
    start, wall = time.thread_time(), time.perf_counter()
    run()
    return time.thread_time() - start, time.perf_counter() - wall


def training_step(d: int, F: int, k: int):
    """A function that takes one TopK step on 2048 tokens of width d."""
    sae = saes.build("topk", d_in=d, d_sae=F, k=k)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4)
    x_BTD, context = torch.randn(16, 128, d), SequenceContext()

    def step() -> None:
        adam.zero_grad()
        sae.loss(x_BTD, context)["total"].backward()
        adam.step()

    return step


def measure(
    F: int, k: int, widths: list[int], window: int, repeats: int, dense_limit: int
) -> list[dict]:
    """The table's rows of one F, one a residual width; times in seconds, memory in MiB."""
    active, document_N = texts(F, k, 16, 128)
    tracker = TemporalCorrelationTracker(F, window, bits=8)
    plain = TemporalCorrelationTracker(F, window, bits=8)

    def learn() -> None:
        loss = tracker.relation.logistic_loss(active, tracker.past(active), document_N, 8192)
        loss.backward()

    def update_plainly() -> None:
        plain.updates += 1
        for lagged in history(active, document_N, window, plain.bits):
            plain.follow(lagged)

    runs = {"update": lambda: tracker.update(active, document_N), "learn": learn}
    runs |= {"plain": update_plainly}
    runs |= {f"step {d}": training_step(d, F, k) for d in widths}
    times = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm-up: buffers, kernels, an empty C
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(timed(run))
    del runs
    dense = [(float("nan"), float("nan"))]
    if dense_limit >= F:
        lags = 1 if F > 4096 else window  # a lag is like the others, and each takes F x F floats
        C_LFF = torch.zeros(lags, F, F)
        found = timed(lambda: dense_lags(C_LFF, active, document_N, 0.02))
        dense = [tuple(seconds * window / lags for seconds in found)]
        del C_LFF
    times["dense"] = dense
    cpu = {name: statistics.median(t[0] for t in values) for name, values in times.items()}
    wall = {name: statistics.median(t[1] for t in values) for name, values in times.items()}
    return [
        {
            "F": F,
            "d": d,
            "tracker_MiB": tracker.nbytes / MIB,
            "dense_MiB": window * F * F * 4 / MIB,
            "update_s": cpu["update"],
            "plain_s": cpu["plain"],
            "dense_s": cpu["dense"],
            "learn_s": cpu["learn"],
            "step_s": cpu[f"step {d}"],
            "update/step": cpu["update"] / cpu[f"step {d}"],
            "with_learn": (cpu["update"] + cpu["learn"]) / cpu[f"step {d}"],
            "wall_update/step": wall["update"] / wall[f"step {d}"],
        }
        for d in widths
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2304, 4096, 8192, 16384])
    parser.add_argument("--k", type=int, default=40)
    parser.add_argument("--d", type=int, nargs="+", default=[576, 2304])
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dense-limit", type=int, default=16384)
    parser.add_argument("--out", default=None)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    for F in given.sizes:
        rows += measure(F, given.k, given.d, given.window, given.repeats, given.dense_limit)
    table = pd.DataFrame(rows)
    print(f"2048 tokens, k={given.k}, window={given.window}, one thread, CPU seconds")
    print(table.to_string(index=False, float_format="%.3f"))
    if given.out:
        table.to_csv(given.out, index=False)


if __name__ == "__main__":
    main()
