"""Loops compiled for the CPU."""

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Compiled on first use, and kept on disk where some place for it can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # a read-only installation and no cache folder either
        return numba.njit(nogil=True)(function)
