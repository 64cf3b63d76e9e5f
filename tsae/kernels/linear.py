"""Dense layers by oneDNN where PyTorch's own product leaves half of the CPU idle.

PyTorch multiplies float32 on a CPU by MKL, which on CPUs of other makers than its own uses no
AVX-512: on a core of an EPYC of 2025 it reaches 106 GFLOP/s and oneDNN, at the same precision, 240.
A language model's forward pass is nine tenths such products.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@cache
def is_slow() -> bool:
    """Whether this machine has AVX-512, and MKL does not use it. The same on every call and run."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    vendor = next((line.split()[-1] for line in lines if line.startswith("vendor_id")), "")
    return vendor not in ("", "GenuineIntel") and torch.backends.mkldnn.is_available()


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b over the last dimension, by oneDNN; without a gradient. Equal to ``F.linear``."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Dense(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not torch.is_grad_enabled():
            x, weight, bias = _given(*args, **kwargs)
            here = x.device.type == weight.device.type == "cpu"
            if here and x.dtype == weight.dtype == torch.float32 and x.numel():
                return dense(x, weight, bias)
        return func(*args, **kwargs)


def _given(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, ...]:
    return input, weight, bias


def fast_linear() -> AbstractContextManager:
    """Inside the block, ``F.linear`` of float32 on the CPU runs the faster way where no gradient is
    kept; nothing changes where PyTorch's own is no slower."""
    return _Dense() if is_slow() else nullcontext()
