"""How long what is left takes: the profile's seconds at the pace of this machine."""

import time
from collections.abc import Sequence
from pathlib import Path

from lab.pipeline.planner import Stage
from lab.pipeline.stage import read_manifest

SETUP = """import torch
x = torch.linspace(-1, 1, 512 * 512).sin().view(512, 512)
W = torch.linspace(-9, 9, 512 * 2048).cos().view(512, 2048) / 32"""
STEP = """top = (x @ W).topk(16)
z = torch.zeros(512, 2048).scatter_(1, top.indices, top.values.relu())
W -= 1e-6 * ((z @ W.T - x).T @ z)"""


def step_seconds() -> float:
    """CPU seconds (of no other process) of one step of a small TopK autoencoder, measured for two.

    One thread, float32: 512 tokens, 512 dimensions, 2048 latents, 16 of them active, plain SGD.
    """
    from torch.utils.benchmark import Timer

    timer = Timer(STEP, SETUP, timer=time.process_time, num_threads=1)
    return timer.blocked_autorange(min_run_time=2.0).mean


def remaining(stages: Sequence[Stage], root: Path, jobs: int, machine: float = 1.0) -> float:
    """Estimated seconds until all stages are done: the work left, or the longest chain in it.

    ``machine``: how many times the profile's seconds this machine takes; done stages tell better.
    """
    done = [stage for stage in stages if stage.is_done(root)]
    measured = sum(read_manifest(root / stage.directory)["wall_seconds"] for stage in done)
    expected = sum(stage.seconds for stage in done)
    pace = measured / expected if expected else machine
    left = [stage for stage in stages if stage not in done]
    finish = {"": 0.0}
    for stage in left:
        finish[stage.name] = stage.seconds + max(finish.get(n, 0) for n in ["", *stage.inputs])
    return pace * max(sum(stage.seconds for stage in left) / jobs, *finish.values())


def duration(seconds: float) -> str:
    """Seconds for a person to read: ``41 s``, ``6 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def estimate(stages: Sequence[Stage], root: Path, jobs: int, stated: float | None) -> str:
    """``24 min``, and what that is based on; ``stated``: the step's seconds on the machine that
    the profile's seconds are of (None: taken as they are)."""
    if any(stage.is_done(root) for stage in stages):
        return f"{duration(remaining(stages, root, jobs))} by what is done"
    machine = step_seconds() / stated if stated else 1.0
    left = duration(remaining(stages, root, jobs, machine))
    return f"{left} by a two-second measurement of this machine, {machine:.1f} times the profile's"


def end_line(stage: Stage, stages: Sequence[Stage], root: Path, jobs: int) -> str:
    """The line for a stage that is done: its time, its memory, and what is left of ``stages``."""
    manifest = read_manifest(root / stage.directory)
    done = sum(other.is_done(root) for other in stages)
    took = f"{duration(manifest['wall_seconds'])}, {manifest['peak_memory_mb']} MB"
    left = f"about {duration(remaining(stages, root, jobs))} left" if done < len(stages) else "done"
    return f"[{done}/{len(stages)}] {stage.name} … {took}, {left}"
