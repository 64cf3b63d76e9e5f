"""Snakemake as the engine: where the stages run, and what it says when it stops."""

import contextlib
import importlib.util
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from lab.pipeline.progress import end_line, is_done
from lab.pipeline.provenance import read_manifest
from lab.pipeline.stages import Stage, keep
from tsae.errors import UserError
from tsae.files import disk_full_is_clear

SNAKEFILE = Path(__file__).resolve().parents[2] / "workflow" / "Snakefile"
ROOM_FOR_A_LOG = 2**20
LOOK_SECONDS = 2.0
PATIENCE = 5.0
"""Seconds that what is interrupted has to end by itself."""
CLUSTER_PATIENCE = 60.0
"""Seconds that Snakemake has to cancel its jobs on a cluster."""


class Engine(NamedTuple):
    """How Snakemake runs the stages."""

    jobs: int
    """Stages at a time; with ``local``, also the cores they share."""
    executor: str = "local"
    """``local``, or an executor plugin: slurm, cluster-generic …"""
    options: tuple[str, ...] = ()
    """Further options of Snakemake's own, such as ``--default-resources``."""

    @property
    def words(self) -> str:
        """For a line of output: ``2 jobs at a time``, on a cluster with its name."""
        place = "" if self.executor == "local" else f" handed to {self.executor}"
        return f"{self.jobs} jobs at a time{place}"


def check_executor(name: str) -> None:
    """Raise :class:`UserError` when Snakemake has no such executor here, or it has no cluster."""
    module = f"snakemake_executor_plugin_{name.replace('-', '_')}"
    if name != "local" and importlib.util.find_spec(module) is None:
        raise UserError(
            f"Snakemake has no executor {name!r} here: install snakemake-executor-plugin-{name} "
            "into this environment (the extra 'slurm' of this package for slurm)."
        )
    if name == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "There is no Slurm here (no sbatch on the PATH); call this where jobs are submitted."
        )


def slurm_options(name: str) -> list[str]:
    """Options without which the slurm executor waits in vain, or too long for short stages."""
    options = ["--slurm-logdir", f"results/{name}/slurm"]
    options += ["--slurm-init-seconds-before-status-checks", "15"]
    try:
        asked = ["sacct", "--noheader", "--starttime", "now"]
        counts = subprocess.run(asked, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        counts = False
    # Without accounting sacct never tells that a job has ended; squeue does, for MinJobAge.
    return options if counts else [*options, "--slurm-status-command", "squeue"]


def failure(stage: Stage, root: Path) -> str:
    """The line that a failed stage left behind, or what Slurm says of its job, or nothing."""
    if is_done(stage, root):
        return ""
    log = root / stage.directory / "error.log"
    if not log.is_file():
        return ended_early(stage, root)
    line = log.read_text(encoding="utf-8").partition("\n")[0]
    return f"{line} (log: {log.relative_to(root)})" if line else ""  # empty on a full disk


def ended_early(stage: Stage, root: Path) -> str:
    """Slurm's line about a job that it ended: cancelled, out of memory or time; else nothing."""
    logs = list((slurm_logs(root / stage.directory) / f"rule_{stage.rule}").glob("*.log"))
    for log in sorted(logs, key=lambda file: file.stat().st_mtime, reverse=True):
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("slurmstepd") and "error: " in line:
                told = line.partition("error: ")[2].strip("* ").rstrip(".")
                place = log.relative_to(root)
                return f"stage {stage.name}: Slurm ended its job: {told} (log: {place})"
    return ""


def slurm_logs(directory: Path) -> Path:
    """Where Slurm's logs of the profile lie that the stage in ``directory`` belongs to."""
    return directory.parents[1] / "slurm"


def snakemake(
    name: str, root: Path, engine: Engine, stages: Sequence[Stage], machine: float, lock: int
) -> None:
    """Let Snakemake run what is missing; stages print their own lines, its own go to a log.

    It and its jobs read the plan, which is made once. Its locks, metadata and completeness marks
    are off: a manifest is written last and whole, so its existence alone says that a stage is done,
    whatever was killed when. Raises :class:`UserError` when it stops although no stage says that
    it failed.
    """
    keep(stages, machine, plan := root / "results" / name / "plan.json")
    settings = {"plan": str(plan), "root": str(root), "jobs": engine.jobs}
    local = engine.executor == "local"
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(root),
        "--executor", engine.executor, "--cores" if local else "--jobs", str(engine.jobs),
        "--keep-going", "--nolock", "--ignore-incomplete",
        "--drop-metadata", "--rerun-triggers", "mtime", "--scheduler", "greedy",
        # A shared file system shows what another machine wrote a little later.
        "--latency-wait", "0" if local else "60",
        *(slurm_options(name) if engine.executor == "slurm" else []),
        "--config", *(f"{key}={value}" for key, value in settings.items()), *engine.options,
    ]  # fmt: skip
    for stage in stages:
        if not is_done(stage, root):  # a line of an earlier run must not be told again
            (root / stage.directory / "error.log").unlink(missing_ok=True)
    shutil.rmtree(slurm_logs(root / stages[0].directory), ignore_errors=True)
    waiting = [] if local else [stage for stage in stages if not is_done(stage, root)]

    def tell() -> None:  # what a job elsewhere prints goes to the cluster's log, not here
        for stage in [stage for stage in waiting if is_done(stage, root)]:
            waiting.remove(stage)
            manifest = read_manifest(root / stage.directory)
            print(end_line(stage, stages, root, engine.jobs, manifest), flush=True)

    log = root / "results" / name / "snakemake.log"
    with disk_full_is_clear(log), open(log, "wb") as errors:
        process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stderr=errors, pass_fds=(lock,)
        )
        try:
            while running(process):
                tell()
        except BaseException:  # its stages must not go on alone, and unseen
            if not local:  # on this signal it cancels its jobs, on others it waits for them
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(CLUSTER_PATIENCE)
            stop(process)
            raise
        tell()
    stuck = process.returncode and not any(failure(stage, root) for stage in stages)
    if stuck and shutil.disk_usage(log.parent).free >= ROOM_FOR_A_LOG:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        refused = [line for line in lines if "sbatch: error: " in line]
        told = [*refused, *lines[-1:], "no message"][0].rpartition("error: ")[2].strip(" .'")
        raise UserError(f"Snakemake stopped before any stage failed: {told} (log: {log}).")


def running(process: subprocess.Popen) -> bool:
    """Whether ``process`` still runs after a while."""
    try:
        process.wait(LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def stop(process: subprocess.Popen) -> None:
    """End ``process`` and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        family = [*first.children(recursive=True), first]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(family, PATIENCE)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
