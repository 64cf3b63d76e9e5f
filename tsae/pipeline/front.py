"""Everything a profile asks for, in one call: what is missing is made, what is there stays."""

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tsae.errors import UserError
from tsae.files import disk_full_is_clear
from tsae.pipeline import paper, profile
from tsae.pipeline.alone import only_run
from tsae.pipeline.execution import FULL_DISK, check_parameters, duration, is_done, remaining
from tsae.pipeline.provenance import check_sizes, read_manifest
from tsae.pipeline.stages import Stage, plan

SNAKEFILE = Path(__file__).resolve().parents[2] / "workflow" / "Snakefile"
NO_TEX = "paper/main.pdf is skipped: TeX is missing (latexmk, pdflatex); install it and run again."
ROOM_FOR_A_LOG = 2**20
PATIENCE = 5.0
"""Seconds that what is interrupted has to end by itself."""
NO_PAPER = "The PDF is skipped: there is no paper/main.tex; restore it with git."


class Engine(NamedTuple):
    """How Snakemake runs the stages."""

    jobs: int
    """Stages at a time; with ``local``, also the cores they share."""
    executor: str = "local"
    """``local``, or an executor plugin: slurm, cluster-generic …"""
    options: tuple[str, ...] = ()
    """Further options of Snakemake's own, such as ``--default-resources``."""


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
            left = duration(remaining(wanted, root, engine.jobs))
            print(
                f"Profile {name}: {len(todo)} of {len(wanted)} stages to make, about {left} with "
                f"{engine.jobs} jobs at a time",
                flush=True,
            )
            snakemake(name, root, engine, overrides, wanted, lock)
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


def failure(stage: Stage, root: Path) -> str:
    """The line that a failed stage left behind, or nothing."""
    log = root / stage.directory / "error.log"
    if is_done(stage, root) or not log.is_file():
        return ""
    line = log.read_text(encoding="utf-8").partition("\n")[0]
    return f"{line} (log: {log.relative_to(root)})" if line else ""  # empty on a full disk


def stop(process: subprocess.Popen) -> None:
    """End ``process`` and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        running = psutil.Process(process.pid)
        family = [*running.children(recursive=True), running]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(family, PATIENCE)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def check_executor(name: str) -> None:
    """Raise :class:`UserError` when Snakemake has no such executor here."""
    module = f"snakemake_executor_plugin_{name.replace('-', '_')}"
    if name != "local" and importlib.util.find_spec(module) is None:
        raise UserError(
            f"Snakemake has no executor {name!r} here: install snakemake-executor-plugin-{name} "
            "into this environment (the extra 'slurm' of this package for slurm)."
        )


def check_names(stages: Sequence[Stage]) -> None:
    """Raise :class:`UserError` for a world or a variant that does not exist, before any work."""
    from tsae import saes, worlds  # these import torch, so only when there is something to do

    for kind, known in (("world", worlds.names()), ("variant", saes.names())):
        for stage in stages:
            runs = [stage.parameters, *stage.parameters.get("grid", [])]
            for name in (run[kind] for run in runs if kind in run):
                if name not in known:
                    raise UserError(
                        f"stage {stage.name}: there is no {kind} {name!r}; choose one of: "
                        f"{', '.join(known)}."
                    )


def snakemake(
    name: str,
    root: Path,
    engine: Engine,
    overrides: Mapping[str, Any],
    stages: Sequence[Stage],
    lock: int,
) -> None:
    """Let Snakemake run what is missing; stages print their own lines, its own go to a log.

    Its locks, metadata and completeness marks are off: a manifest is written last and whole, so
    its existence alone says that a stage is done, whatever was killed when.
    """
    settings = {
        "root": str(root),
        "profile": name,
        "jobs": engine.jobs,
        "skip_paper": not any(stage.name == "paper" for stage in stages),
        "overrides": json.dumps(dict(overrides)),
    }
    local = engine.executor == "local"
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(root),
        "--executor", engine.executor, "--cores" if local else "--jobs", str(engine.jobs),
        "--keep-going", "--nolock", "--ignore-incomplete",
        "--drop-metadata", "--rerun-triggers", "mtime", "--scheduler", "greedy",
        # A shared file system shows what another machine wrote a little later.
        "--latency-wait", "0" if local else "60", "--quiet", "all",
        "--config", *(f"{key}={value}" for key, value in settings.items()), *engine.options,
    ]  # fmt: skip
    for stage in stages:
        if not is_done(stage, root):  # a line of an earlier run must not be told again
            (root / stage.directory / "error.log").unlink(missing_ok=True)
    log = root / "results" / name / "snakemake.log"
    with disk_full_is_clear(log), open(log, "wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(lock,),
        )
        try:
            status = process.wait()
        except BaseException:  # its stages must not go on alone, and unseen
            stop(process)
            raise
    stuck = status and not any(failure(stage, root) for stage in stages)
    if stuck and shutil.disk_usage(log.parent).free >= ROOM_FOR_A_LOG:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        told = lines[-1].strip() if lines else "no message"
        raise UserError(f"Snakemake stopped before any stage failed: {told} (log: {log}).")
