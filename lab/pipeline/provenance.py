"""Manifests: where a result came from, and whether its files are still whole."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lab.pipeline.alone import LOCK
from tsae.errors import UserError
from tsae.files import TURN, read_json, sha256

PACKAGES = (
    "tsae", "torch", "transformer_lens", "transformers", "datasets", "numpy", "scipy",
    "scikit-learn", "pandas", "pyarrow", "matplotlib", "papermill", "snakemake",
)  # fmt: skip
NOT_OUTPUTS = {"manifest.json", "notebook.ipynb", "error.log", "latex.log", LOCK}


def git_state(root: Path) -> dict[str, Any]:
    """Commit and whether tracked files differ from it; None each where there is no git."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(root), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape results, without importing them."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def outputs(directory: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file under ``directory`` but the engine's own."""
    files = {str(f.relative_to(directory)): f for f in directory.rglob("*") if f.is_file()}
    return {
        name: {"sha256": sha256(file), "bytes": file.stat().st_size}
        for name, file in sorted(files.items())
        if name not in NOT_OUTPUTS and file.name != TURN and ".tmp-" not in name
    }


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a finished stage. Raises :class:`UserError` if missing or cut short."""
    manifest = read_json(Path(directory) / "manifest.json")
    if not isinstance(manifest, dict) or "outputs" not in manifest:
        raise UserError(f"{directory}/manifest.json is not a stage's manifest; delete it.")
    return manifest


def check_sizes(directory: Path, manifest: dict[str, Any]) -> None:
    """Raise :class:`UserError` when a file of a finished stage is missing or cut short."""
    for name, record in manifest["outputs"].items():
        file = directory / name
        size = file.stat().st_size if file.is_file() else None
        if size != record["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{file} {state}, its manifest says {record['bytes']} bytes: delete {directory} "
                "and run again to make that stage anew."
            )
