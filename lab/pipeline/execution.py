"""Run one stage: its notebook through papermill, then its manifest, written last."""

import errno
import re
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.pipeline import paper
from lab.pipeline.alone import only_run, remove_unfinished
from lab.pipeline.progress import duration, end_line, heartbeat, is_done, pace
from lab.pipeline.provenance import git_state, outputs, read_manifest, versions
from lab.pipeline.stages import Stage
from tsae.errors import UserError
from tsae.files import disk_full_is_clear, write_json
from tsae.kernels.memory import KEPT

KERNEL = "python3"
KERNEL_SECONDS = 600
"""How long a kernel may take to start; on a machine with much else to do a minute is not enough."""
ANSI = re.compile(r"\x1b\[[0-9;]*m")
ENVIRONMENT = {
    **paper.REPRODUCIBLE,
    "OMP_WAIT_POLICY": "passive",  # two jobs share the cores
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    # Freed blocks stay with the process (glibc): logits come and go by the hundred megabytes.
    "MALLOC_MMAP_THRESHOLD_": str(KEPT),
    "MALLOC_TRIM_THRESHOLD_": str(2 * KEPT),
}
DEAD_KERNEL = (
    "the notebook's kernel died, most likely of too little memory: run again with --cores 1, or "
    "with a smaller batch_tokens or d_sae in the profile."
)
FULL_DISK = "The disk is full: free some space and run again; what was finished is kept."


def environment(stage: Stage) -> dict[str, str]:
    """Environment variables that a stage's process must have before it starts its kernel."""
    threads = str(stage.threads)
    return {**ENVIRONMENT, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def check_parameters(stage: Stage, root: Path) -> None:
    """Raise :class:`UserError` when the notebook lacks a parameter that the stage gives it.

    papermill itself only warns, and the misspelled value would be left out in silence.
    """
    import papermill

    if not stage.notebook:
        return
    try:
        known = papermill.inspect_notebook(str(root / stage.notebook))
    except Exception as error:  # whatever is wrong inside the notebook, it is not ours to handle
        raise UserError(f"{stage.notebook} cannot be read as a notebook: {error}.") from None
    if unknown := sorted(set(stage.parameters) - set(known)):
        raise UserError(
            f"{stage.notebook} has no parameter {', '.join(map(repr, unknown))}; its parameters "
            f"cell has {', '.join(sorted(known)) or 'none'}."
        )


def execute(stage: Stage, root: str | Path) -> dict[str, Any]:
    """Run ``stage`` with ``root`` as working directory and return its manifest.

    What a killed run left in the directory stays, so that the notebook can resume from it, but for
    files that were being written. Raises :class:`UserError` whose one line names the stage, what is
    wrong and where the full log lies, or the process that is making this stage already.
    """
    directory = Path(root) / stage.directory
    with only_run(directory, f"stage {stage.name}"):
        with disk_full_is_clear(directory):
            (directory / "error.log").unlink(missing_ok=True)
            remove_unfinished(list(directory.rglob("*")))
        return make(stage, Path(root))


def make(stage: Stage, root: Path) -> dict[str, Any]:
    """:func:`execute` in a directory that is this process's alone."""
    directory = root / stage.directory
    log = directory / "error.log"
    check_parameters(stage, root)
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        if stage.notebook:
            run_notebook(stage, root)
        else:
            given = stage.parameters
            paper.build(root, directory, root / given["figures_dir"], given["part"])
    except Exception as error:
        line, details = describe(error)
        line = f"stage {stage.name}: {line}"
        try:
            log.write_text(f"{line}\n\n{details}\n", encoding="utf-8")
        except OSError:  # a full disk must not hide the line
            raise UserError(line) from None
        raise UserError(f"{line} (log: {log.relative_to(root)})") from None
    usage = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    manifest = {
        "stage": stage.name,
        "notebook": stage.notebook,
        "fingerprint": stage.fingerprint,
        "parameters": stage.parameters,
        "seed": stage.parameters.get("seed"),
        "inputs": {name: read_manifest(root / path)["fingerprint"] for name, path in inputs(stage)},
        "git": git_state(root),
        "versions": versions(),
        "started": started.isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - clock, 2),
        "peak_memory_mb": round(usage / (2**20 if sys.platform == "darwin" else 2**10)),
        "outputs": outputs(directory),
    }
    write_json(root / stage.manifest, manifest)
    return manifest


def inputs(stage: Stage) -> Iterator[tuple[str, str]]:
    """(name of the parameter, directory) of every input stage of ``stage``; an empty one is none."""
    for name, value in stage.parameters.items():
        if not value:
            continue
        if name.endswith("_dir") and name != "out_dir":
            yield name, value
        elif name.endswith("_dirs"):
            yield from ((f"{name}[{i}]", directory) for i, directory in enumerate(value))


def run_notebook(stage: Stage, root: Path) -> None:
    """Execute the notebook into ``notebook.ipynb`` of the stage's directory."""
    import papermill

    with disk_full_is_clear(root / stage.directory):
        papermill.execute_notebook(
            str(root / stage.notebook),
            str(root / stage.directory / "notebook.ipynb"),
            parameters=stage.parameters,
            kernel_name=KERNEL,
            start_timeout=KERNEL_SECONDS,
            cwd=str(root),
            progress_bar=False,
            log_output=False,
        )


def describe(error: Any) -> tuple[str, str]:
    """(one line, all details) of what stopped a stage."""
    name, message = type(error).__name__, str(error)
    details = ANSI.sub("", message)
    if hasattr(error, "ename"):  # a cell raised: papermill hands on its type and message
        name, message = error.ename, str(error.evalue)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FULL_DISK, details
    elif name == "DeadKernelError":
        return DEAD_KERNEL, details
    line = " ".join(ANSI.sub("", message).split()) or "no message"
    if name == "OSError" and "Errno 28" in line:
        return FULL_DISK, details
    speaks = name == "ValueError" or name in {cls.__name__ for cls in user_errors()}
    return (line if speaks else f"{name}: {line}"), details


def user_errors() -> list[type[UserError]]:
    """UserError and what derives from it in :mod:`tsae.errors`."""
    return [UserError, *UserError.__subclasses__()]


def run(stage: Stage, stages: Sequence[Stage], root: Path, jobs: int, machine: float) -> None:
    """:func:`execute` with one line at the start and one at the end, with what is left."""
    title = stage.name.replace("/", " ", 1)
    position = f"[{sum(is_done(other, root) for other in stages) + 1}/{len(stages)}]"
    expected = duration(stage.seconds * pace(stages, root, machine))
    print(f"{position} {title} … started, about {expected}", flush=True)
    try:
        with heartbeat(f"{position} {title}"):
            manifest = execute(stage, root)
    except UserError:
        print(f"{position} {title} … failed", flush=True)
        raise
    print(end_line(stage, stages, root, jobs, manifest), flush=True)
