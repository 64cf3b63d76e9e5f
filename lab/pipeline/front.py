"""Everything a profile asks for, in one call: what is missing is made, what is there stays."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.pipeline import paper, profile
from lab.pipeline.alone import only_run
from lab.pipeline.engine import ROOM_FOR_A_LOG, Engine, check_executor, failure, snakemake
from lab.pipeline.execution import FULL_DISK, check_parameters
from lab.pipeline.planner import plan
from lab.pipeline.progress import duration, estimate, is_done, machine
from lab.pipeline.provenance import check_sizes, read_manifest
from lab.pipeline.stages import Stage
from tsae.errors import UserError

NO_TEX = "paper/main.pdf is skipped: TeX is missing (latexmk, pdflatex); install it and run again."
NO_PAPER = "The PDF is skipped: there is no paper/main.tex; restore it with git."


def run_all(name: str, root: Path, engine: Engine, overrides: Mapping[str, Any]) -> None:
    """Make everything of profile ``name``: stages through Snakemake, then figures, tables, PDF.

    Returns within seconds when nothing is missing. Raises :class:`UserError` for bad input, for
    another run of the same profile, and, after all that could be made was made, for failed stages.
    """
    check_executor(engine.executor)
    clock = time.monotonic()
    path = profile.find(name, root)
    settings = profile.read(path, overrides)
    canonical, part = bool(settings.get("canonical", False)), profile.part_of_paper(settings)
    stages = plan(path, root, overrides)
    with only_run(root / "results" / name, f"profile {name}") as lock:
        for stage in stages:
            if is_done(stage, root):
                check_sizes(root / stage.directory, read_manifest(root / stage.directory))
        skipped = NO_PAPER if stages[-1].notebook else "" if paper.tex_is_here() else NO_TEX
        wanted = [stage for stage in stages if stage.notebook or not skipped]
        todo = [stage for stage in wanted if not is_done(stage, root)]
        if todo:
            check_names(todo)
            for stage in {stage.notebook: stage for stage in todo}.values():
                check_parameters(stage, root)
            speed = machine(settings)
            left = estimate(wanted, root, engine.jobs, speed)
            print(
                f"Profile {name}: {len(todo)} of {len(wanted)} stages to make with {engine.words}, "
                f"about {left}",
                flush=True,
            )
            snakemake(name, root, engine, wanted, speed, lock)
        failed = [line for stage in todo if (line := failure(stage, root))]
        missing = [stage for stage in todo if not is_done(stage, root)]
        for line in failed:
            print(line, file=sys.stderr)
        if missing and shutil.disk_usage(root / "results" / name).free < ROOM_FOR_A_LOG:
            raise UserError(FULL_DISK)
        written = paper.publish(wanted, root, canonical, part)
    if missing:
        log = f"results/{name}/snakemake.log"
        waiting = len(missing) - len(failed)
        raise UserError(
            f"profile {name} is not complete: {len(failed)} of {len(wanted)} stages failed, "
            f"{waiting} wait for them (Snakemake's own log: {log}); put it right and run again, "
            "the rest is kept."
        )
    if not todo and not written:
        print(f"nothing to do: everything for profile {name} is up to date ({len(wanted)} stages)")
    else:
        took = duration(time.monotonic() - clock)
        print(f"Profile {name}: made {len(todo)} stages, put {written} files in place, {took}")
    if skipped:
        print(skipped)
    elif todo or written:
        print(f"The paper is {'' if canonical or part else f'results/{name}/'}paper/main.pdf")


def foretell(name: str, root: Path, engine: Engine, overrides: Mapping[str, Any]) -> None:
    """Print what :func:`run_all` would do, and write nothing."""
    check_executor(engine.executor)
    path = profile.find(name, root)
    stages = plan(path, root, overrides)
    if stages[-1].name == "paper" and not paper.tex_is_here():
        print(NO_TEX)
        stages.pop()
    todo = [stage for stage in stages if not is_done(stage, root)]
    for stage in todo:
        print(f"would run {stage.name}  {stage.directory}")
    words = f"Profile {name}: {len(todo)} of {len(stages)} stages would be made"
    if todo:
        left = estimate(stages, root, engine.jobs, machine(profile.read(path, overrides)))
        words += f" with {engine.words}, about {left}"
    print(f"{words}; nothing was run")


def check_names(stages: Sequence[Stage]) -> None:
    """Raise :class:`UserError` for a world or a variant that does not exist, before any work."""
    from lab import worlds  # these import torch, so only when there is something to do
    from tsae import saes

    for kind, known in (("world", worlds.names()), ("variant", saes.names())):
        for stage in stages:
            runs = [stage.parameters, *stage.parameters.get("grid", [])]
            for name in (run[kind] for run in runs if kind in run):
                if name not in known:
                    raise UserError(
                        f"stage {stage.name}: there is no {kind} {name!r}; choose one of: "
                        f"{', '.join(known)}."
                    )
