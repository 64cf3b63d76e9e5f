"""Everything a profile asks for, in one call: what is missing is made, what is there stays.

Snakemake runs the stages, here or on a cluster; this says what it does and why it stopped.
"""

import contextlib
import fcntl
import os
import re
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
    that, or a plugin of Snakemake's (slurm, …); ``options``: further ones of its. A ``dry_run``
    says what is missing and writes nothing. Raises :class:`UserError` for bad input, for another
    run of the same profile, and, after all that could be made was made, for failed stages.
    """
    clock = time.monotonic()
    path = profile.find(name, root)
    settings = profile.read(path, overrides)
    stages = plan(path, root, overrides)
    todo = [stage for stage in stages if not stage.is_done(root)]
    words, how = f"Profile {name}: {len(todo)} of {len(stages)} stages ", ""
    if todo:
        left = estimate(stages, root, jobs, settings.get("step_seconds"))
        place = "" if executor == "local" else f" handed to {executor}"
        how = f" with {jobs} jobs at a time{place}, about {left}"
    if dry_run:
        print(*(f"would run {stage.name}  {stage.directory}\n" for stage in todo), sep="", end="")
        print(f"{words}would be made{how}; nothing was run")
        return
    home = paper.home(name, settings, root)
    with only_run(root / "results" / name, f"profile {name}") as lock:
        for stage in (stage for stage in stages if stage not in todo):
            check_sizes(root / stage.directory)
        if todo:
            check_input(todo, root)
            print(f"{words}to make{how}", flush=True)
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
        lacks, text = paper.missing(root), "report" if settings.get("report") else "main"
        if not lacks and not paper.is_current(root, pdf := home / "paper" / f"{text}.pdf"):
            paper.build(root, home, text)
            written += 1
    if not todo and not written:
        print(f"nothing to do: everything for profile {name} is up to date ({len(stages)} stages)")
    else:
        took = duration(time.monotonic() - clock)
        print(f"Profile {name}: made {len(todo)} stages, put {written} files in place, {took}")
    if lacks or written:
        print(lacks or f"The {'paper' if text == 'main' else text} is {pdf.relative_to(root)}")


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
    for notebook in {stage.notebook for stage in stages}:
        known[notebook] = list(papermill.inspect_notebook(str(root / notebook)))
    for stage in stages:
        asked = [("parameter", name, known[stage.notebook]) for name in stage.parameters]
        for run in [stage.parameters, *stage.parameters.get("grid", [])]:
            asked += [(k, run[k], known[k]) for k in ("world", "variant") if k in run]
        for kind, name, names in asked:
            if name not in names:
                raise UserError(
                    f"stage {stage.name} ({stage.notebook}): there is no {kind} {name!r}; choose "
                    f"one of: {', '.join(sorted(names))}."
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

    Its locks, metadata and completeness marks are off: a manifest is written last and whole, so its
    existence alone says that a stage is done, whatever was killed when. Raises :class:`UserError`
    when it stops although no stage says that it failed.
    """
    results = root / "results" / name
    keep(stages, results / "plan.json")
    local = executor == "local"
    # A shared file system shows what another machine wrote a little later.
    apart = f"--cores {jobs} --latency-wait 0" if local else f"--jobs {jobs} --latency-wait 60"
    fixed = "--keep-going --nolock --ignore-incomplete --drop-metadata --rerun-triggers mtime"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    command += ["--directory", str(root), "--executor", executor, *apart.split(), *fixed.split()]
    command += ["--scheduler", "greedy", *(slurm_options(name) if executor == "slurm" else [])]
    command += ["--config", f"plan={results / 'plan.json'}", f"root={root}", *options]
    waiting = [stage for stage in stages if not stage.is_done(root)]
    for stage in waiting:  # a line of an earlier run must not be told again
        (root / stage.directory / "error.log").unlink(missing_ok=True)
    shutil.rmtree(results / "slurm", ignore_errors=True)
    log = results / "snakemake.log"
    with disk_full_is_clear(log), open(log, "wb") as errors:
        process = psutil.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stderr=errors, pass_fds=(lock,)
        )
        try:
            ended = False
            while not ended:
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(LOOK_SECONDS)
                    ended = True
                for stage in [stage for stage in waiting if stage.is_done(root)]:
                    waiting.remove(stage)
                    print(end_line(stage, stages, root, jobs), flush=True)
        except BaseException:  # its stages must not go on alone, and unseen
            if not local:  # on this signal it cancels its jobs, on others it waits for them
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(CLUSTER_PATIENCE)
            family = process.children(recursive=True) if process.is_running() else []
            for one in [*family, process]:
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
        ended = re.search(
            "(?m)^slurmstepd.*?error: [* ]*(.*?)[* .]*$", log.read_text(errors="replace")
        )
        if ended:
            told = f"Slurm ended its job: {ended[1]} (log: {log.relative_to(root)})"
            return f"stage {stage.name}: {told}"
    return ""
