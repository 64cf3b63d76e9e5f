"""From text to pieces: what a harvest runs the model on, batch by batch."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tsae.errors import StoreError
from tsae.sequences import Sequence, TextSource
from tsae.store import layout


@dataclass(frozen=True)
class Job:
    """One shard to make: number ``index`` of ``split``, ``count`` sequences from ``start`` on."""

    split: str
    index: int
    start: int
    count: int


class Overflow(StoreError):
    """A residual does not fit float16."""


class Piece(NamedTuple):
    """One forward batch: its sequences, the half-precision residuals and their norms [B, T]."""

    sequences: list[Sequence]
    x_BTD: Tensor
    norm_BT: np.ndarray


class Text:
    """The sequences of every split, read once from front to back."""

    def __init__(self, directory: Path, world: TextSource, manifest: dict):
        self.directory, self.world, self.manifest = directory, world, manifest
        self.split, self.at = "", 0
        self.left: Iterator[Sequence] = iter(())

    def batches(self, job: Job, size: int) -> Iterator[list[Sequence]]:
        """The sequences of ``job``, ``size`` at a time; jobs of a split come in their order.

        Raises :class:`StoreError` where the text before them is not what the store holds.
        """
        if job.split != self.split:
            self.split, self.at, self.left = job.split, 0, iter(self.world.sequences(job.split))
        skipped = deque(islice(self.left, job.start - self.at), maxlen=1)
        if job.start > self.at:
            before = self.manifest["shards"][job.split][job.index - 1]
            stored_T = layout.read_array(self.directory, before, "tokens", self.manifest)[-1]
            if not skipped or not np.array_equal(skipped[0].tokens, stored_T):
                raise StoreError(
                    f"The {job.split} text of {self.world.name} is not the one in "
                    f"{self.directory} any more: harvest into another directory."
                )
        self.at = job.start + job.count
        for done in range(0, job.count, size):
            if sequences := list(islice(self.left, min(size, job.count - done))):
                yield sequences


def forward(
    residual: Callable[[Tensor], Tensor], job: Job, manifest: dict, sequences: list[Sequence]
) -> Piece:
    """Run the model; half-precision residuals on the CPU and the norms of exactly those."""
    tokens_BT = torch.from_numpy(np.stack([sequence.tokens for sequence in sequences])).long()
    x_BTD = residual(tokens_BT)
    where = f"layer {manifest['layer']} of {manifest['world']}"
    expected = (*tokens_BT.shape, manifest["d_model"])
    if tuple(x_BTD.shape) != expected:
        raise StoreError(
            f"The residual at {where} has shape {tuple(x_BTD.shape)} instead of {expected}, so "
            "transformer_lens does not read this architecture as usual: give another model."
        )
    half_BTD = x_BTD.to(getattr(torch, manifest["dtype"]))
    norm_BT = torch.linalg.vector_norm(half_BTD, dim=-1, dtype=torch.float32)
    if not norm_BT.isfinite().all():
        if not x_BTD.isfinite().all():
            raise StoreError(
                f"The residual at {where} is not finite (NaN or infinity) on {job.split} text near "
                f"sequence {job.start}: its weights are damaged; copy the model again or give another."
            )
        raise Overflow(
            f"The residual at {where} reaches {x_BTD.abs().max().item():.4g}, beyond float16: "
            "leave dtype out, or harvest with dtype 'bfloat16' into another directory."
        )
    return Piece(sequences, half_BTD.cpu(), norm_BT.cpu().numpy())
