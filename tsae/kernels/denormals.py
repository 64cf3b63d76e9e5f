"""Numbers too small for a full mantissa, in which every operation costs a CPU a hundredfold."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed() -> Iterator[None]:
    """What is below 1.2e-38 counts as 0 on this thread, as it does on a GPU.

    Gradients that decay along a sequence get there, and Adam's first moments of latents that no
    longer fire; neither moves a weight.
    """
    already = float(torch.tensor(1e-39) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)
