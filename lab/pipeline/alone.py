"""A directory that one process at a time works in, and what a killed one left there."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tsae.errors import UserError
from tsae.files import disk_full_is_clear

LOCK = ".lock"
UNFINISHED = re.compile(r"\.(?:tmp|old)-(\d+)$")
"""What :func:`tsae.files.atomic` adds to a name, with the number of the process."""


@contextmanager
def only_run(directory: Path, what: str) -> Iterator[int]:
    """Hold ``directory/.lock``, which the system releases whenever its last holder ends.

    Yields the descriptor, for Snakemake to inherit. Raises :class:`UserError`, which names ``what``
    and the other process, if a run holds it.
    """
    with disk_full_is_clear(directory):
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
    with file:
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


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Remove those of the paths that an atomic write left when it was killed; what a process that
    still runs is writing stays."""
    for path in paths:
        found = UNFINISHED.search(path.name)
        if found is None or is_running(int(found[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether there is a process of this number here."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
