"""Harvesting activations against the bare forward pass that it cannot do without.

    python benchmarks/harvest.py --setting DIR [--tokens 16384] [--repeats 5]

Both read the same sequences of a setting's world: *bare* runs the model up to the store's layer
and throws the residuals away, *harvest* writes a whole store (text, float16, norms, shards,
checksums, normalisation). They take turns; printed are the median CPU and wall time and the ratio
of harvest to bare; the bar is 1.10 of wall time.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab.runs.setting import open_setting  # noqa: E402
from tsae import models  # noqa: E402
from tsae.store.writing import HarvestConfig, harvest_with  # noqa: E402


def main() -> None:
    """Time both in turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", required=True, help="what lab.runs.make_setting made")
    for name, default in (("tokens", 16384), ("repeats", 5), ("batch", 16), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", help="where to write the numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setting = open_setting(args.setting)
    world, layer = setting.world, setting.store.layer
    model = world.model("cpu")
    sequences = []
    for sequence in world.sequences("train"):
        if len(sequences) * world.seq_len >= args.tokens:
            break
        sequences.append(sequence)
    tokens = np.stack([s.tokens for s in sequences])
    tokens_NT = torch.from_numpy(tokens).long()
    times = {"bare": [], "harvest": []}

    def residual(tokens_BT):
        return models.residual(model, tokens_BT, layer)

    residual(tokens_NT[: args.batch])
    for _ in range(args.repeats):
        began = time.perf_counter(), time.process_time()
        for part in tokens_NT.split(args.batch):
            residual(part)
        times["bare"].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        config = HarvestConfig({"train": tokens_NT.numel()}, batch_sequences=args.batch)
        with tempfile.TemporaryDirectory() as directory:
            began = time.perf_counter(), time.process_time()
            harvest_with(residual, world, directory, layer, config, progress=False)
            times["harvest"].append(
                (time.perf_counter() - began[0], time.process_time() - began[1])
            )
    n = tokens_NT.numel()
    rows = {}
    for name, found in times.items():
        wall, cpu = (statistics.median(t[i] for t in found) for i in (0, 1))
        rows[name] = {"tokens_per_second": n / wall, "tokens_per_cpu_second": n / cpu}
        print(f"{name:8s}{n / wall:9.0f} tokens/s wall, {n / cpu:9.0f} tokens per CPU second")
    for key in ("tokens_per_second", "tokens_per_cpu_second"):
        print(f"harvest / bare, {key}: {rows['bare'][key] / rows['harvest'][key]:.3f}")
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
