"""Files that are either whole or absent: atomic writes, checksums, JSON."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from tsae.errors import UserError

TURN = ".turn.lock"
"""The lock file that :func:`in_turn` leaves in a directory."""


@contextmanager
def disk_full_is_clear(path: str | Path) -> Iterator[None]:
    """Turn ``ENOSPC``/``EDQUOT`` inside the block into a one-line :class:`UserError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors hides the number of a full disk in its text
        full = (errno.ENOSPC, errno.EDQUOT)
        told = any(f"(os error {code})" in str(error) for code in full)
        if not told and getattr(error, "errno", None) not in full:
            raise
        raise UserError(
            f"The disk that holds {path} is full: free some space and run the same command again; "
            "what was finished is kept."
        ) from error


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path`` in one step.

    A file or a directory may be written there. An old directory is replaced only if all in it has
    the name of something in the new one. On any failure the temporary is removed and the old
    ``path`` stays as it was. Raises :class:`UserError` when the
    disk is full, for a directory that holds other files, for a file where there is a directory and
    for a directory where there is a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with disk_full_is_clear(path.parent):
            yield temporary
            if temporary.is_dir():
                check_own(path, {TURN, *(entry.name for entry in temporary.iterdir())})
                old = path.with_name(f"{path.name}.old-{os.getpid()}")
                if path.exists():
                    os.rename(path, old)
                os.rename(temporary, path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                if path.is_dir():
                    raise UserError(f"{path} is a directory; give the path of a file.")
                with open(temporary, "rb") as written:
                    os.fsync(written.fileno())
                os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()


@contextmanager
def in_turn(*directories: str | Path) -> Iterator[None]:
    """Hold every directory's lock during the block; another process that wants one waits.

    What several processes make in one place is so made once: who waited finds it there. The
    system releases the locks whenever their holder ends. Directories are made where missing.
    """
    with ExitStack() as held, disk_full_is_clear(directories[0]):
        for directory in sorted({Path(d).resolve() for d in directories}):  # one order for all
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(directory / TURN))
        yield


def check_own(directory: Path, names: set[str]) -> None:
    """Raise :class:`UserError` if replacing ``directory`` would delete what is not ours."""
    if directory.is_file():
        raise UserError(f"{directory} is a file; give the path of a directory.")
    for entry in sorted(directory.iterdir()) if directory.exists() else ():
        if entry.name not in names:
            raise UserError(
                f"{directory} holds {entry.name}, which writing there would delete: give a new "
                "directory, or move that out of it."
            )


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: str | Path, error: type[UserError] = UserError) -> Any:
    """Read JSON; raise ``error`` with one sentence when it is missing or cut short."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path} does not exist; make it first, or check the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise error(f"{path} is not whole JSON; delete it and run the step again.") from None


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
