"""One library in a process of its own, driven by JSON lines: ``python worker.py SPEC``.

SPEC is a JSON object: library, method, x (a .npy file of activations [N, d]), latents, k, batch,
steps, lr, warmup, seed, threads, device, options. Commands on stdin, one answer a line on stdout:
{"do": "steps", "n": 3} trains and says how long it took (wall and CPU seconds) and the process's
peak memory over what it had before the SAE was built and after one step of a tiny one; {"do":
"flops"} counts the dense floating-point operations of a step; {"do": "held_out", "x": FILE,
"mean": FILE} gives FVE, L0 and living latents.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    """Build what SPEC says and answer until stdin ends."""
    spec = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not come between the answers
    import numpy as np
    import torch

    torch.set_num_threads(spec.get("threads", 1))
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.libraries import LIBRARIES

    device = spec.get("device", "cpu")
    x_ND = torch.from_numpy(np.load(spec["x"])).to(device)
    names = ("latents", "k", "steps", "lr", "warmup", "seed")
    latents, k, steps, lr, warmup, seed = (spec[name] for name in names)
    batch = spec["batch"]
    cls = LIBRARIES[spec["library"]]
    # Before the baseline: what a library imports and compiles once, for whatever SAE.
    small = cls(spec["method"], 16, 64, 4, 10, lr, 0, seed, torch.zeros(16, device=device), device)
    small.step(torch.randn(batch, 16, device=device))
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    built = cls(
        spec["method"], x_ND.shape[1], latents, k, steps, lr, warmup, seed, x_ND.mean(0),
        device, **spec.get("options", {}),
    )  # fmt: skip
    order = torch.Generator().manual_seed(seed)
    # Sequences stay whole and in order within themselves; every library gets the same batches.
    pieces = x_ND.unflatten(0, (-1, min(batch, 128)))
    state = {"queue": []}

    def next_batch():
        if not state["queue"]:
            ids = torch.randperm(len(pieces), generator=order)
            state["queue"] = [i for i in ids.split(batch // pieces.shape[1]) if
                              len(i) * pieces.shape[1] == batch]  # fmt: skip
        return pieces[state["queue"].pop()].flatten(0, 1)

    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "steps":
            batches = [next_batch() for _ in range(min(command["n"], 8))]
            wall, cpu = time.perf_counter(), time.process_time()
            for i in range(command["n"]):
                loss = built.step(batches[i] if i < len(batches) else next_batch())
            if device != "cpu":
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline
            answer = {"wall": wall, "cpu": cpu, "peak_mb": peak / 1024, "loss": loss}
        elif command["do"] == "flops":
            from torch.utils.flop_counter import FlopCounterMode

            with FlopCounterMode(display=False) as counter:
                built.step(next_batch())
            answer = {"flops": counter.get_total_flops()}
        else:
            answer = held_out(built, np.load(command["x"]), np.load(command["mean"]))
        answers.write(json.dumps(answer) + "\n")


def held_out(built, x_ND, mean_D) -> dict:
    """FVE about the training mean, mean L0, and how many latents fired at all."""
    import torch

    x_ND, mean_D = torch.from_numpy(x_ND), torch.from_numpy(mean_D)
    sse = sst = active = 0.0
    fired = 0
    for part in x_ND.split(2048):
        x_hat, z = built.codes(part)
        sse += float((part - x_hat).square().sum())
        sst += float((part - mean_D).square().sum())
        active += float((z != 0).sum())
        fired = fired | (z != 0).any(0)
    return {"fve": 1 - sse / sst, "l0": active / len(x_ND), "alive": int(fired.sum())}


if __name__ == "__main__":
    main()
