r"""Data parallelism under ``torchrun``: what the ranks must agree on.

Each rank holds every R-th sequence of a batch, with n_r of its n valid tokens. A mean over tokens
is then ``sum_r (n_r / n) mean_r``, so losses are weighted by n_r / n and gradients summed. What a
variant takes from the batch as a whole (idle counts, the cut of BatchTopK, variances, the error
that AuxK divides by) goes through the functions below. Outside a process group each returns what
it was given, to the bit.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from tsae.sequences import FilledContext


@contextmanager
def ranks(device: str = "cpu") -> Iterator[None]:
    """The process group of ``torchrun`` while the block runs; without torchrun, nothing.

    ``device``: where the ranks train: NCCL with one GPU a rank on ``cuda``, gloo elsewhere.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """How many ranks train together; 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is, from 0; rank 0 alone writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Go on when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


def reduced(value: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """The sum (or ``op``) of ``value`` over ranks; ``value`` itself where there is one."""
    if world_size() == 1:
        return value
    value = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(value, op)
    return value


def count(n: int) -> int:
    """The sum of a whole number over ranks."""
    if world_size() == 1:
        return n
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return int(reduced(torch.tensor(n, device=device)))


def anywhere(mask: Tensor) -> Tensor:
    """True where ``mask`` is on some rank."""
    return reduced(mask.to(torch.uint8), dist.ReduceOp.MAX).bool() if world_size() > 1 else mask


def mean(value: Tensor, n: Tensor | int) -> Tensor:
    """The mean over all tokens of a mean over this rank's ``n`` tokens."""
    return value if world_size() == 1 else reduced(value * n) / count(int(n))


def pooled(value: Tensor, n: Tensor | int) -> Tensor:
    """The sum over all tokens of a sum over this rank's ``n`` tokens, times n_r / n: what a sum
    of the rank is divided by where the loss is a ratio of sums, since the rank weighs n_r / n."""
    return value if world_size() == 1 else reduced(value) * (int(n) / count(int(n)))


def gathered(values: Tensor) -> Tensor:
    """The rows of all ranks [sum of n_r, ...], rank after rank; ranks may hold different numbers."""
    if world_size() == 1:
        return values
    sizes = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.full_like(sizes[0], len(values)))
    longest = max(int(size) for size in sizes)
    padded = values.new_zeros(longest, *values.shape[1:])
    padded[: len(values)] = values.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])


def in_batch_order(values: Tensor, n_sequences: int) -> Tensor:
    """The rows of the whole batch [B T, ...] from this rank's ``n_sequences`` sequences, in the
    order in which one process would hold them: sequence i is number i // R of rank i % R."""
    if world_size() == 1:
        return values
    parts = gathered(values).unflatten(0, (world_size(), n_sequences, -1))
    return parts.transpose(0, 1).flatten(0, 2)


def share(context: "FilledContext") -> Tensor | None:
    """n_r / n, by which the loss of a rank's tokens is weighted; None where there is one rank."""
    if world_size() == 1:
        return None
    n = context.mask_BT.sum().clamp_min(1)
    return n / count(int(n))


def summed(terms: dict[str, Tensor], share: Tensor | None) -> dict[str, Tensor]:
    """The terms of the whole batch's loss from this rank's."""
    if share is None:
        return terms
    values = reduced(torch.stack([term.detach().float() for term in terms.values()]) * share)
    return dict(zip(terms, values.unbind(), strict=True))


def sum_gradients(module: nn.Module) -> None:
    """Sum every gradient over ranks; a parameter that has one on some rank has it on all."""
    if world_size() == 1:
        return
    parameters = [p for p in module.parameters() if p.requires_grad]
    has = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
    pending = []
    for parameter, used in zip(parameters, anywhere(has).tolist(), strict=True):
        if used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            pending.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in pending:
        work.wait()
