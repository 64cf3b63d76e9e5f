"""Everything a profile asks for, in one call: what is missing is made, what is there stays.

Snakemake runs the stages, here or on a cluster; this says what it does and why it stopped.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from lab.pipeline import paper, profile
from lab.pipeline.estimate import duration, end_line, estimate
from lab.pipeline.planner import Stage, keep, plan
from lab.pipeline.stage import FULL_DISK, check_sizes, remove_unfinished
from tsae.errors import UserError
from tsae.files import disk_full_is_clear

SNAKEFILE = Path(__file__).resolve().parents[2] / "workflow" / "Snakefile"
ROOM_FOR_A_LOG = 2**20
LOOK_SECONDS = 2.0
CLUSTER_PATIENCE = 60.0
"""Seconds that Snakemake has to cancel its jobs on a cluster."""


def run_all(
    name: str,
    root: Path,
    overrides: Mapping[str, Any],
    jobs: int,
    executor: str = "local",
    options: Sequence[str] = (),
    dry_run: bool = False,
) -> None:
    """Make everything of profile ``name``: stages through Snakemake, then figures, tables, PDF.

    ``jobs``: stages at a time, on this machine (``local``) also the cores they share; ``executor``:
    that, or a plugin of Snakemake's (slurm, cluster-generic …); ``options``: further ones of its.

    Returns within seconds when nothing is missing; with ``dry_run`` it says what is, and writes
    nothing. Raises :class:`UserError` for bad input, for another run of the same profile, and,
    after all that could be made was made, for failed stages.
    """
    clock = time.monotonic()
    path = profile.find(name, root)
    settings = profile.read(path, overrides)
    stages = plan(path, root, overrides)
    todo = [stage for stage in stages if not stage.is_done(root)]
    words = f"Profile {name}: {len(todo)} of {len(stages)} stages "
    if todo:
        left = estimate(stages, root, jobs, settings.get("step_seconds"))
        place = "" if executor == "local" else f" handed to {executor}"
        done_by = f" with {jobs} jobs at a time{place}, about {left}"
    if dry_run:
        for stage in todo:
            print(f"would run {stage.name}  {stage.directory}")
        print(f"{words}would be made{done_by if todo else ''}; nothing was run")
        return
    home = paper.home(name, settings, root)
    with only_run(root / "results" / name, f"profile {name}") as lock:
        for stage in (stage for stage in stages if stage not in todo):
            check_sizes(root / stage.directory)
        if todo:
            check_input(todo, root)
            print(f"{words}to make{done_by}", flush=True)
            snakemake(name, root, stages, jobs, executor, options, lock)
        failed = [line for stage in todo if (line := failure(stage, root, name))]
        waiting = [stage for stage in todo if not stage.is_done(root)]
        print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr)
        if waiting and shutil.disk_usage(root / "results" / name).free < ROOM_FOR_A_LOG:
            raise UserError(FULL_DISK)
        for folder in (root / "results" / name, *(home / shown for shown in paper.SHOWN)):
            remove_unfinished(folder.rglob("*"))
        written = paper.publish(name, settings, stages, root)
        if waiting:
            raise UserError(
                f"profile {name} is not complete: {len(failed)} of {len(stages)} stages failed, "
                f"{len(waiting) - len(failed)} wait for them (Snakemake's own log: results/{name}/"
                "snakemake.log); put it right and run again, the rest is kept."
            )
        lacks = paper.missing(root)
        if not lacks and not paper.is_current(root, home):
            paper.build(root, home)
            written += 1
    if not todo and not written:
        print(f"nothing to do: everything for profile {name} is up to date ({len(stages)} stages)")
    else:
        took = duration(time.monotonic() - clock)
        print(f"Profile {name}: made {len(todo)} stages, put {written} files in place, {took}")
    if lacks or written:
        print(lacks or f"The paper is {(home / 'paper' / 'main.pdf').relative_to(root)}")


@contextlib.contextmanager
def only_run(directory: Path, what: str) -> Iterator[int]:
    """Hold ``directory/.lock``, which the system releases whenever its last holder ends.

    Yields the descriptor, for Snakemake to inherit. Raises :class:`UserError`, which names ``what``
    and the other process, if a run holds it.
    """
    with disk_full_is_clear(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"Another run of {what} is at work (process {file.read().strip()}); "
                "wait for it to end, or stop it."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()


def check_input(stages: Sequence[Stage], root: Path) -> None:
    """Raise :class:`UserError`, before any work, for a world or a variant that does not exist, and
    for a parameter that a notebook lacks: papermill only warns, and would leave it out."""
    import papermill  # all three are slow, so they are read when there is something to do

    from lab import worlds
    from tsae import saes

    known = {"world": worlds.names(), "variant": saes.names()}
    for stage in stages:
        for run in [stage.parameters, *stage.parameters.get("grid", [])]:
            for kind, names in known.items():
                if run.get(kind, names[0]) not in names:
                    raise UserError(
                        f"stage {stage.name}: there is no {kind} {run[kind]!r}; choose one of: "
                        f"{', '.join(names)}."
                    )
    for stage in {stage.notebook: stage for stage in stages}.values():
        try:
            names = sorted(papermill.inspect_notebook(str(root / stage.notebook)))
        except Exception as error:  # whatever is wrong inside the notebook
            raise UserError(f"{stage.notebook} cannot be read as a notebook: {error}.") from None
        if unknown := sorted(set(stage.parameters) - set(names)):
            raise UserError(
                f"{stage.notebook} has no parameter {', '.join(map(repr, unknown))}; its "
                f"parameters cell has {', '.join(names) or 'none'}."
            )


def snakemake(
    name: str,
    root: Path,
    stages: Sequence[Stage],
    jobs: int,
    executor: str,
    options: Sequence[str],
    lock: int,
) -> None:
    """Let Snakemake run what is missing; its own lines go to a log, ours tell what has ended.

    It and its jobs read the plan, which is made once. Its locks, metadata and completeness marks
    are off: a manifest is written last and whole, so its existence alone says that a stage is done,
    whatever was killed when. Raises :class:`UserError` when it stops although no stage says that
    it failed.
    """
    results = root / "results" / name
    keep(stages, results / "plan.json")
    local = executor == "local"
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(root),
        "--executor", executor, "--cores" if local else "--jobs", str(jobs),
        "--keep-going", "--nolock", "--ignore-incomplete",
        "--drop-metadata", "--rerun-triggers", "mtime", "--scheduler", "greedy",
        # A shared file system shows what another machine wrote a little later.
        "--latency-wait", "0" if local else "60",
        *(slurm_options(name) if executor == "slurm" else []),
        "--config", f"plan={results / 'plan.json'}", f"root={root}", *options,
    ]  # fmt: skip
    waiting = [stage for stage in stages if not stage.is_done(root)]
    for stage in waiting:  # a line of an earlier run must not be told again
        (root / stage.directory / "error.log").unlink(missing_ok=True)
    shutil.rmtree(results / "slurm", ignore_errors=True)
    log = results / "snakemake.log"
    with disk_full_is_clear(log), open(log, "wb") as errors:
        process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stderr=errors, pass_fds=(lock,)
        )
        try:
            ended = False
            while not ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_SECONDS)
                    ended = True
                for stage in [stage for stage in waiting if stage.is_done(root)]:
                    waiting.remove(stage)
                    print(end_line(stage, stages, root, jobs), flush=True)
        except BaseException:  # its stages must not go on alone, and unseen
            if not local:  # on this signal it cancels its jobs, on others it waits for them
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(CLUSTER_PATIENCE)
            with contextlib.suppress(psutil.NoSuchProcess):
                first = psutil.Process(process.pid)
                for one in [*first.children(recursive=True), first]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
            raise
    stuck = process.returncode and not any(failure(stage, root, name) for stage in stages)
    if stuck and shutil.disk_usage(results).free >= ROOM_FOR_A_LOG:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        refused = [line for line in lines if "sbatch: error: " in line]
        told = [*refused, *lines[-1:], "no message"][0].rpartition("error: ")[2].strip(" .'")
        raise UserError(f"Snakemake stopped before any stage failed: {told} (log: {log}).")


def slurm_options(name: str) -> list[str]:
    """Options without which the slurm executor waits in vain, or too long for short stages."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "There is no Slurm here (no sbatch on the PATH); call this where jobs are submitted."
        )
    options = ["--slurm-logdir", f"results/{name}/slurm"]
    options += ["--slurm-init-seconds-before-status-checks", "15"]
    # Without accounting sacct never tells that a job has ended; squeue does, for MinJobAge.
    accounts = subprocess.run("sacct --noheader --starttime now", shell=True, capture_output=True)
    return options if accounts.returncode == 0 else [*options, "--slurm-status-command", "squeue"]


def failure(stage: Stage, root: Path, name: str) -> str:
    """The line that a failed stage left behind, or what Slurm says of a job that it ended
    (cancelled, out of memory or time), or nothing."""
    log = root / stage.directory / "error.log"
    if stage.is_done(root):
        return ""
    if log.is_file():
        line = log.read_text(encoding="utf-8").partition("\n")[0]
        return f"{line} (log: {log.relative_to(root)})" if line else ""  # empty on a full disk
    logs = (root / "results" / name / "slurm" / f"rule_{stage.name}").glob("*.log")
    for log in sorted(logs, key=lambda file: file.stat().st_mtime, reverse=True):
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("slurmstepd") and "error: " in line:
                told = line.partition("error: ")[2].strip("* ").rstrip(".")
                place = log.relative_to(root)
                return f"stage {stage.name}: Slurm ended its job: {told} (log: {place})"
    return ""
