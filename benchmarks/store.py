"""The activation store from 10^5 to 10^7 tokens: cost a token, resident memory, shuffling.


For each size a store of normal activations is written (float16, sequences of 128) and one epoch is
read in shuffled batches of 2048 tokens. Printed: CPU microseconds a token of writing (without the
model) and of reading; how much memory of the process is resident while reading, over that before
the mean distance of two sequences drawn one after the other as a share of the store (uniform: 1/3),
and the rank correlation of a sequence's place in the store and in the epoch (uniform: 0 ± 1/sqrt n).
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tsae.sequences import LabelSpec, Sequence  # noqa: E402
from tsae.store.writing import HarvestConfig, harvest_with  # noqa: E402

LENGTH = 128


class Plain:
    """A world of one-sequence documents with one label and tokens that say nothing."""

    name, fingerprint, layer, seq_len, bos_id, n_layers = "plain", "0" * 64, 0, LENGTH, 0, 1
    label_specs = {"side": LabelSpec("side", "document", ("even", "odd"))}

    def __init__(self, n: int, width: int):
        self.n, self.d_model = n, width
        self.tokens = np.arange(LENGTH, dtype=np.int32)
        self.boundary = np.array([3, 3, *[0] * (LENGTH - 2)], np.uint8)

    def sequences(self, split, limit_tokens=None):
        for i in range(self.n):
            doc = np.full(LENGTH, i, np.int32)
            doc[0] = -1
            label = np.full(LENGTH, i % 2, np.int16)
            label[0] = -1
            tokens = self.tokens.copy()
            tokens[1] = i % 2**30
            yield Sequence(tokens, doc, self.boundary, {"side": label})


def measure(n_tokens: int, args) -> dict:
    """Write and read one store."""
    n = n_tokens // LENGTH
    block = torch.randn(16, LENGTH, args.width, generator=torch.Generator().manual_seed(0))
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as directory:
        config = HarvestConfig({"train": n * LENGTH})
        began = time.process_time()
        store = harvest_with(
            lambda tokens_BT: block[: len(tokens_BT)],
            Plain(n, args.width), directory, 0, config, progress=False,
        )  # fmt: skip
        written = time.process_time() - began
        sampler = store.sampler("train", 2048 // LENGTH, 0)
        before, resident, order = process.memory_info().rss, 0, []
        began = time.process_time()
        for _ in range(n * LENGTH // 2048):
            ids = sampler.next_indices()
            store.batch("train", ids)
            order.append(np.asarray(ids))
            resident = max(resident, process.memory_info().rss - before)
        read = time.process_time() - began
    order = np.concatenate(order)
    apart = np.abs(np.diff(order)).mean() / n
    place = np.corrcoef(np.arange(len(order)), order)[0, 1]
    return {
        "tokens": n * LENGTH, "write_us": 1e6 * written / (n * LENGTH),
        "read_us": 1e6 * read / (len(order) * LENGTH), "resident_mb": resident / 2**20,
        "stored_mb": n * LENGTH * args.width * 2 / 2**20, "apart": apart, "correlation": place,
        "repeats": len(order) - len(np.unique(order)),
    }  # fmt: skip


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--out", help="where to write the numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"width {args.width}, float16")
    rows = []
    for size in args.sizes:
        row = measure(size, args)
        rows.append(row)
        print(f"{row['tokens']:9d} tokens ({row['stored_mb']:6.0f} MB): write "
              f"{row['write_us']:5.2f} us, read {row['read_us']:5.2f} us a token; resident "
              f"+{row['resident_mb']:.0f} MB; distance {row['apart']:.3f}, correlation "
              f"{row['correlation']:+.4f}, repeats {row['repeats']}", flush=True)  # fmt: skip
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
