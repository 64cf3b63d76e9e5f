"""Memory that one training step has freed stays at hand for the next one, on Linux."""

import ctypes

KEPT = 256 << 20
"""Bytes up to which a freed block is kept."""


def keep_freed_blocks() -> bool:
    """Ask the C library to keep large freed blocks; whether it could be asked (glibc alone).

    By default it returns blocks of over 32 MiB to the system, and gets them back page by page, each
    zeroed, with the next step: a tenth of a TopK step at F = 4608 and 2048 tokens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(mmap_threshold, KEPT) and mallopt(trim_threshold, 2 * KEPT))
