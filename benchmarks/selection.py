"""The compiled selection of a token's largest entries, and entries by column, beside plain torch.

    python benchmarks/selection.py [--rows 2048] [--repeats 9]

Normal pre-activations [N, F], one thread; printed are median CPU milliseconds of the two forms in
turns, which must agree to the bit. F and k are those of microworld, SmolLM2 and ``speed.py``.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tsae.kernels.selection import by_column, largest, plain_largest  # noqa: E402

SIZES = ((512, 12), (2304, 32), (4608, 32))


def in_turns(compiled, plain, repeats: int) -> tuple[float, float]:
    """Median CPU milliseconds of both after a first call of each; raises if they differ."""
    spent: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        results = []
        for work, times in zip((compiled, plain), spent, strict=True):
            began = time.process_time()
            results.append(work())
            if repeat:
                times.append(1e3 * (time.process_time() - began))
        if not torch.equal(*results):
            sys.exit("The compiled form differs from torch's.")
    return statistics.median(spent[0]), statistics.median(spent[1])


def main() -> None:
    """Time every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 2048), ("repeats", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    for F, k in SIZES:
        x_NF = torch.randn(args.rows, F, generator=draw)
        forms = (
            lambda x=x_NF, k=k: largest(x, k),
            lambda x=x_NF, k=k, F=F: plain_largest(x, k, 0, F),
        )
        ours, plain = in_turns(*forms, args.repeats)
        print(f"largest {k} of {F}: {ours:.1f} ms, topk and sort {plain:.1f} ms", flush=True)
    cols = torch.randint(0, F, (k * args.rows,), generator=draw)
    ours, plain = in_turns(
        lambda: by_column(cols, F)[0], lambda: cols.argsort(stable=True), args.repeats
    )
    print(f"{len(cols)} entries by column: {ours:.1f} ms, argsort {plain:.1f} ms")


if __name__ == "__main__":
    main()
