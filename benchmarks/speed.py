"""Tokens a second and memory of a training step here and in three other libraries, in one run.

    python benchmarks/speed.py --peers-python PATH [--x FILE.npy] [--repeats 5] [--out FILE.json]

Every library trains in a process of its own on the same tensors; repeats take turns, so that what
else the machine does weighs on all alike. A step is forward, backward, clipping, Adam and decoder
norm. Printed: medians over repeats of tokens per second of CPU time (one thread: the wall time of a
machine that does nothing else) and of wall time, peak memory over that before the SAE was built,
and the step's dense floating-point operations against the machine's own matrix product (GEMM).
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.processes import Worker  # noqa: E402

PEERS = {
    "topk": ("dictionary_learning", "sae_lens", "sparsify"),
    "batchtopk": ("dictionary_learning", "sae_lens"),
    "matryoshka": ("dictionary_learning", "sae_lens"),
}


def cases(args, x: str) -> list[tuple[str, dict]]:
    """Python and spec of every worker."""
    common = {
        "x": x, "latents": args.latents, "k": args.k, "batch": args.batch, "steps": 100_000,
        "lr": 3e-4, "warmup": 100, "seed": 0, "threads": args.threads,
    }  # fmt: skip
    ours = [*PEERS, "conv"]
    found = [(sys.executable, {"library": "tsae", "method": m, **common}) for m in ours]
    found[-1][1]["options"] = {"window": 4, "lag_rank": 64}
    if args.peers_python:
        found += [
            (args.peers_python, {"library": peer, "method": method, **common})
            for method, peers in PEERS.items()
            for peer in peers
        ]
    return [*found, (sys.executable, {"library": "gemm", "method": "peak", **common})]


def main() -> None:
    """Time every case, print the table and the bars, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", help="the peers' environment (benchmarks/setup.sh)")
    parser.add_argument("--x", help=".npy of float32 activations [N, width]; default: normal")
    sizes = (("width", 576), ("latents", 4608), ("k", 32), ("batch", 2048), ("repeats", 5))
    for name, default in (*sizes, ("steps", 2), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", help="where to write the numbers as JSON")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        x = args.x or str(Path(directory) / "x.npy")
        if not args.x:
            draw = np.random.default_rng(0).standard_normal((8 * args.batch, args.width))
            np.save(x, draw.astype(np.float32))
        workers, rows = [], []
        for python, spec in cases(args, x):
            worker = Worker(python, spec)
            worker.ask(do="steps", n=1)
            workers.append(worker)
            rows.append({"library": spec["library"], "method": spec["method"], "times": []})
        for _ in range(args.repeats):
            for worker, row in zip(workers, rows, strict=True):
                row["times"].append(worker.ask(do="steps", n=args.steps))
        for worker, row in zip(workers, rows, strict=True):
            row |= worker.ask(do="flops")
            worker.close()

    tokens = args.batch * args.steps
    for row in rows:
        times = row.pop("times")
        row["cpu_tokens"] = tokens / statistics.median(t["cpu"] for t in times)
        row["wall_tokens"] = tokens / statistics.median(t["wall"] for t in times)
        row["peak_mb"] = max(t["peak_mb"] for t in times)
        row["flop_rate"] = row["flops"] / args.batch * row["cpu_tokens"]
    peak = rows[-1]["flop_rate"]
    print(f"d={args.width} F={args.latents} k={args.k} B={args.batch}, fp32, "
          f"{args.threads} thread(s), median of {args.repeats} repeats of {args.steps} steps")  # fmt: skip
    print(f"GEMM {peak / 1e9:.1f} GFLOP/s")
    print(f"{'method':12s}{'library':22s}{'tok/s CPU':>11s}{'tok/s wall':>11s}{'peak MB':>9s}"
          f"{'GFLOP/step':>12s}{'of GEMM':>9s}")  # fmt: skip
    for row in sorted(rows[:-1], key=lambda r: (r["method"], -r["cpu_tokens"])):
        print(f"{row['method']:12s}{row['library']:22s}{row['cpu_tokens']:11.0f}"
              f"{row['wall_tokens']:11.0f}{row['peak_mb']:9.0f}{row['flops'] / 1e9:12.1f}"
              f"{row['flop_rate'] / peak:9.0%}")  # fmt: skip
    bars(rows)
    if args.out:
        paths = ("peers_python", "x", "out")  # of this machine
        settings = {name: value for name, value in vars(args).items() if name not in paths}
        Path(args.out).write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))


def bars(rows: list[dict]) -> None:
    """Ours against the fastest peer of the same method, and conv against static TopK."""
    for method in (*PEERS, "conv"):
        own = next(r for r in rows if r["library"] == "tsae" and r["method"] == method)
        against = "topk" if method == "conv" else method
        peers = [r for r in rows if r["library"] in PEERS[against] and r["method"] == against]
        if peers:
            best = max(peers, key=lambda r: r["cpu_tokens"])
            print(f"{method}: {own['cpu_tokens'] / best['cpu_tokens']:.2f} x the fastest peer's "
                  f"{against} ({best['library']}); memory {own['peak_mb']:.0f} MB against "
                  f"{min(p['peak_mb'] for p in peers):.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
