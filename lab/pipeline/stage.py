"""Run one stage: its notebook through papermill, then its manifest, written last."""

import errno
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from lab.pipeline.paper import REPRODUCIBLE
from lab.pipeline.planner import Stage, require_unchanged
from tsae.errors import UserError
from tsae.files import TURN, disk_full_is_clear, read_json, sha256, write_json
from tsae.kernels.memory import KEPT

KERNEL_SECONDS = 600
"""How long a kernel may take to start; on a machine with much else to do a minute is not enough."""
ANSI = re.compile(r"\x1b\[[0-9;]*m")
ENVIRONMENT = {
    **REPRODUCIBLE,
    "OMP_WAIT_POLICY": "passive",  # two jobs share the cores
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    # Freed blocks stay with the process (glibc): logits come and go by the hundred megabytes.
    "MALLOC_MMAP_THRESHOLD_": str(KEPT),
    "MALLOC_TRIM_THRESHOLD_": str(2 * KEPT),
}
"""What a stage's process must have before it starts its kernel, beside its number of threads."""
DEAD_KERNEL = (
    "the notebook's kernel died, most likely of too little memory: run again with --cores 1, or "
    "with a smaller batch_tokens or d_sae in the profile."
)
FULL_DISK = "The disk is full: free some space and run again; what was finished is kept."
PACKAGES = (
    "tsae", "torch", "transformer_lens", "transformers", "datasets", "numpy", "scipy",
    "scikit-learn", "pandas", "pyarrow", "matplotlib", "papermill", "snakemake",
)  # fmt: skip
LOCK = ".lock"
NOT_OUTPUTS = {"manifest.json", "notebook.ipynb", "error.log", LOCK, TURN}


def execute(stage: Stage, root: Path) -> dict[str, Any]:
    """Run ``stage`` with ``root`` as working directory and return its manifest.

    What a killed run left in the directory stays, so that the notebook can resume from it, but for
    files that were being written. Another process that makes this stage waits, and takes what is
    there then. Raises :class:`UserError` whose one line names the stage, what is wrong and where
    the full log lies.
    """
    directory = root / stage.directory
    with disk_full_is_clear(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / LOCK):  # its own: the notebook takes its turn inside
        if stage.is_done(root):
            return read_manifest(directory)
        remove_unfinished(directory.rglob("*"))
        try:
            manifest = made(stage, root)
        except Exception as error:
            line, details = describe(error)
            line, log = f"stage {stage.name}: {line}", directory / "error.log"
            try:
                log.write_text(f"{line}\n\n{details}\n", encoding="utf-8")
            except OSError:  # a full disk must not hide the line
                raise UserError(line) from None
            raise UserError(f"{line} (log: {log.relative_to(root)})") from None
        write_json(root / stage.manifest, manifest)
    return manifest


def made(stage: Stage, root: Path) -> dict[str, Any]:
    """Execute the notebook into the stage's directory; what is to be known about it."""
    import papermill  # slow, and a plan does without

    directory = root / stage.directory
    started = datetime.now(UTC)
    with disk_full_is_clear(directory):
        (directory / "error.log").unlink(missing_ok=True)
        papermill.execute_notebook(
            str(root / stage.notebook),
            str(directory / "notebook.ipynb"),
            parameters=stage.parameters,
            kernel_name="python3",
            start_timeout=KERNEL_SECONDS,
            cwd=str(root),
            progress_bar=False,
            log_output=False,
        )
    require_unchanged(stage, root)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    git = "git describe --always --dirty --abbrev=40 --exclude='*'"  # nothing where there is none
    commit = subprocess.run(git, shell=True, cwd=root, capture_output=True, text=True).stdout
    files = {str(f.relative_to(directory)): f for f in directory.rglob("*") if f.is_file()}
    return {
        "stage": stage.name,
        "notebook": stage.notebook,
        "fingerprint": stage.fingerprint,
        "parameters": stage.parameters,
        "git": commit.strip(),
        "versions": {"python": platform.python_version(), "platform": platform.platform()}
        | {name: version(name) for name in PACKAGES},
        "started": started.isoformat(timespec="seconds"),
        "wall_seconds": round((datetime.now(UTC) - started).total_seconds(), 2),
        "peak_memory_mb": round(usage / (2**20 if sys.platform == "darwin" else 2**10)),
        "outputs": {
            name: {"sha256": sha256(file), "bytes": file.stat().st_size}
            for name, file in sorted(files.items())
            if file.name not in NOT_OUTPUTS
        },
    }


def describe(error: Any) -> tuple[str, str]:
    """(one line, all details) of what stopped a stage."""
    # Where a cell raised, papermill hands on its type and message.
    name = getattr(error, "ename", type(error).__name__)
    details = ANSI.sub("", str(error))
    line = " ".join(ANSI.sub("", str(getattr(error, "evalue", error))).split()) or "no message"
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or (name == "OSError" and "Errno 28" in line):
        return FULL_DISK, details
    if name == "DeadKernelError":
        return DEAD_KERNEL, details
    ours = {"ValueError", "UserError", *(cls.__name__ for cls in UserError.__subclasses__())}
    return (line if name in ours else f"{name}: {line}"), details


def remove_unfinished(paths: Iterator[Path]) -> None:
    """Remove those of the paths that an atomic write left when it was killed; the caller holds the
    lock under which they are written."""
    for path in [path for path in paths if re.search(r"\.(tmp|old)-\d+$", path.name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a finished stage. Raises :class:`UserError` if missing or cut short."""
    manifest = read_json(Path(directory) / "manifest.json")
    if not isinstance(manifest, dict) or "outputs" not in manifest:
        raise UserError(f"{directory}/manifest.json is not a stage's manifest; delete it.")
    return manifest


def check_sizes(directory: Path) -> None:
    """Raise :class:`UserError` when a file of a finished stage is missing or cut short."""
    for name, record in read_manifest(directory)["outputs"].items():
        file = directory / name
        state = f"has {file.stat().st_size} bytes" if file.is_file() else "is missing"
        if state != f"has {record['bytes']} bytes":
            raise UserError(
                f"{file} {state}, its manifest says {record['bytes']} bytes: delete {directory} "
                "and run again to make that stage anew."
            )
