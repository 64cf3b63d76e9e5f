"""How long what is left takes: the profile's seconds at the pace of this machine."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.pipeline.provenance import read_manifest
from lab.pipeline.stages import Stage

HEARTBEAT_SECONDS = 60.0
MEASURED_SECONDS = 2.0


def step_seconds() -> float:
    """Wall seconds of one step of a small TopK autoencoder here, the mean over two seconds.

    One thread, float32: 512 tokens, 512 dimensions, 2048 latents, 16 of them active, plain SGD.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x_BD = torch.linspace(-1, 1, 512 * 512).sin().view(512, 512)
    W_DF = torch.linspace(-9, 9, 512 * 2048).cos().view(512, 2048) / 32
    steps, start = -1, time.perf_counter()
    while (now := time.perf_counter()) - start < MEASURED_SECONDS or steps < 1:
        start = now if steps == 0 else start  # the first step warms up
        top = (x_BD @ W_DF).topk(16)
        z_BF = torch.zeros(512, 2048).scatter_(1, top.indices, top.values.relu())
        error_BD = z_BF @ W_DF.T - x_BD
        W_DF -= 1e-6 * (error_BD.T @ z_BF)
        steps += 1
    seconds = (time.perf_counter() - start) / steps
    torch.set_num_threads(threads)
    return seconds


def machine(profile: Mapping[str, Any]) -> float:
    """How many times the profile's seconds this machine takes; 1 for a profile without
    ``step_seconds``, which are those of the machine that its ``seconds`` are of."""
    stated = profile.get("step_seconds")
    return step_seconds() / stated if stated else 1.0


def is_done(stage: Stage, root: Path) -> bool:
    """Whether the stage's manifest exists."""
    return (root / stage.manifest).is_file()


def pace(stages: Sequence[Stage], root: Path, machine: float = 1.0) -> float:
    """Measured over expected seconds of the stages that are done; ``machine`` when none is."""
    done = [stage for stage in stages if is_done(stage, root)]
    measured = sum(read_manifest(root / stage.directory)["wall_seconds"] for stage in done)
    expected = sum(stage.seconds for stage in done)
    return measured / expected if expected else machine


def remaining(stages: Sequence[Stage], root: Path, jobs: int, machine: float = 1.0) -> float:
    """Estimated seconds until all stages are done: the work left, or the longest chain in it."""
    scale = pace(stages, root, machine)
    todo = [stage for stage in stages if not is_done(stage, root)]
    finish: dict[str, float] = {}
    for stage in todo:
        ready = max((finish.get(name, 0.0) for name in stage.inputs), default=0.0)
        finish[stage.name] = ready + stage.seconds * scale
    total = sum(stage.seconds for stage in todo) * scale
    return max(total / max(jobs, 1), max(finish.values(), default=0.0))


def duration(seconds: float) -> str:
    """Seconds for a person to read: ``41 s``, ``6 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def estimate(stages: Sequence[Stage], root: Path, jobs: int, machine: float) -> str:
    """``24 min``, and what that is based on."""
    left = duration(remaining(stages, root, jobs, machine))
    if any(is_done(stage, root) for stage in stages):
        return f"{left} by what is done"
    return f"{left} by a two-second measurement of this machine, {machine:.1f} times the profile's"


def end_line(
    stage: Stage, stages: Sequence[Stage], root: Path, jobs: int, manifest: Mapping[str, Any]
) -> str:
    """The line for a stage that is done: its time, its memory, and what is left of ``stages``."""
    done = sum(is_done(other, root) for other in stages)
    took = f"{duration(manifest['wall_seconds'])}, {manifest['peak_memory_mb']} MB"
    left = f"about {duration(remaining(stages, root, jobs))} left" if done < len(stages) else "done"
    return f"[{done}/{len(stages)}] {stage.name.replace('/', ' ', 1)} … {took}, {left}"


@contextmanager
def heartbeat(line: str) -> Iterator[None]:
    """Print ``line`` with the elapsed time once a minute while the block runs."""
    stop = threading.Event()
    clock = time.monotonic()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            print(f"{line} … {duration(time.monotonic() - clock)} so far", flush=True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
