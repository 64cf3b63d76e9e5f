"""From text to pieces: what a harvest runs the model on, batch by batch."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from tsae.errors import StoreError
from tsae.sequences import Sequence, TextSource
from tsae.store import layout

Item = TypeVar("Item")


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


def read_text(
    directory: Path, world: TextSource, manifest: dict, jobs: list[Job], batch_sequences: int
) -> Iterator[tuple[Job, list[Sequence]]]:
    """Forward batches of every job in order; a batch never reaches over the end of a shard."""
    for split, group in groupby(jobs, key=lambda job: job.split):
        text, at = iter(world.sequences(split)), 0
        for job in group:
            skipped = deque(islice(text, job.start - at), maxlen=1)
            if job.start > at:
                before = manifest["shards"][split][job.index - 1]
                stored_T = layout.read_array(directory, before, "tokens", manifest)[-1]
                if not skipped or not np.array_equal(skipped[0].tokens, stored_T):
                    raise StoreError(
                        f"The {split} text of {world.name} is not the one in {directory} any more: "
                        "harvest into another directory."
                    )
            for done in range(0, job.count, batch_sequences):
                sequences = list(islice(text, min(batch_sequences, job.count - done)))
                if sequences:
                    yield job, sequences
            at = job.start + job.count


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


def one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items; the next one is made in a thread while the caller uses the last."""
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = thread.submit(next, items, None)
            yield item


def until_full(job: Job, pieces: Iterable[tuple[Job, Piece]]) -> Iterator[Piece]:
    """The pieces of one shard, without asking for the next shard's first, which may fail."""
    left = job.count
    for _, piece in pieces:
        yield piece
        left -= len(piece.sequences)
        if not left:
            return
