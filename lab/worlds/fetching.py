"""What a world fetches or makes once and keeps: packages of the Python index, the hub's files."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tsae.errors import UserError, WorldError
from tsae.files import atomic, disk_full_is_clear


def default_cache() -> Path:
    """Where a world keeps what it fetched when the caller names no ``cache_dir``: ~/.cache/tsae."""
    return Path.home() / ".cache" / "tsae"


def made_once(path: Path, lock: str, make: Callable[[Path], None]) -> Path:
    """``path``, which ``make`` writes, to a path that it is given, where it is missing.

    Processes that want it at once wait for one, at the file ``lock`` beside it; a killed one leaves
    nothing that counts.
    """
    if path.exists():
        return path
    with disk_full_is_clear(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / lock):
            if not path.exists():
                for left_over in path.parent.glob(f"{path.name}.tmp-*"):  # of a run that was killed
                    shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
                with atomic(path) as unfinished:
                    make(unfinished)
    return path


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
        said = (line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line)
        reason = [f"pip ended with {done.returncode}", *said][-1].strip().rstrip(".")
        raise WorldError(
            f"{what} needs {requirement}, which could not be fetched ({reason}); "
            f"connect to PyPI, or {instead}."
        )
    return found[0]


@contextmanager
def hub_is_clear(what: str, repository: str, instead: str) -> Iterator[None]:
    """Turn whatever a missing hub or a closed gate raises into one :class:`WorldError`.

    ``what`` needs ``repository``; the user may give ``instead``. A full disk and an interrupt pass.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # httpx, huggingface_hub, datasets and fsspec each have their own
        causes: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None and cause not in causes:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        if any(type(cause).__name__ == "GatedRepoError" for cause in causes):
            raise WorldError(
                f"{what} needs {repository}, which is gated: accept its terms at "
                f"https://huggingface.co/{repository} and run `hf auth login`, or give {instead}."
            ) from error
        if any(getattr(cause, "errno", None) == 28 for cause in causes):
            raise
        reason = " ".join(str(error).split())[:120].rstrip(".")
        offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE")
        raise WorldError(
            f"{what} needs {repository} from the Hugging Face hub, which could not be fetched "
            f"({type(error).__name__}: {reason}); connect to the hub"
            f"{' and unset HF_HUB_OFFLINE' if offline else ''}, or give {instead}."
        ) from error
