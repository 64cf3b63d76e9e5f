"""Reading a store: memory-mapped shards, batches of whole sequences in normalised units."""

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tsae.errors import StoreError
from tsae.sequences import FilledContext
from tsae.store import layout
from tsae.store.sampling import Sampler, permutation
from tsae.store.shard import MIB, WINDOW, Shard, least_mapped

OPEN_SHARDS = 256  # each holds a file descriptor, of which a process has about a thousand


@dataclass
class Batch:
    """B whole sequences of T tokens.

    ``x_BTD`` float32, the residual times the store's scale; ``tokens_BT`` and ``doc_BT`` int64 (doc
    −1 at BOS and padding); ``context.mask_BT`` bool, False at BOS, padding and massive activations,
    and ``context.boundary_BT`` uint8; ``labels`` int16 [B, T] each, −1 where one does not apply.
    """

    x_BTD: Tensor
    tokens_BT: Tensor
    doc_BT: Tensor
    context: FilledContext
    labels: dict[str, Tensor]

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch with every tensor on ``device``."""
        return Batch(
            self.x_BTD.to(device),
            self.tokens_BT.to(device),
            self.doc_BT.to(device),
            FilledContext(self.context.mask_BT.to(device), self.context.boundary_BT.to(device)),
            {name: label_BT.to(device) for name, label_BT in self.labels.items()},
        )

    def first(self, length: int) -> "Batch":
        """The same sequences up to their first ``length`` positions."""
        if length >= self.tokens_BT.shape[1]:
            return self
        return Batch(
            self.x_BTD[:, :length],
            self.tokens_BT[:, :length],
            self.doc_BT[:, :length],
            FilledContext(self.context.mask_BT[:, :length], self.context.boundary_BT[:, :length]),
            {name: label_BT[:, :length] for name, label_BT in self.labels.items()},
        )


class ActivationStore:
    r"""The activations of one world at one layer, as ``harvest`` left them.

    Normalised units: x = scale · raw, with

        scale = sqrt(d / E‖raw − E raw‖²),   so that   E‖x − mean‖² = d,

    expectations over the valid tokens of the train split (not BOS, padding or massive). The mean
    squared error per dimension is then 1 − FVE. ``mean_D`` [d] is E x, in normalised units;
    raw = x / scale.

    ``massive_share`` is the share of train tokens (BOS and padding aside) whose norm is above 10
    times the median. Pages mapped while reading stay within ``memory_limit_mb`` MiB, whatever the
    store's size; a batch's own tensors come on top.
    """

    def __init__(self, directory: str | Path, memory_limit_mb: float = 512) -> None:
        self.directory = Path(directory)
        self.manifest = manifest = layout.read_manifest(self.directory)
        if not manifest["complete"]:
            raise StoreError(
                f"The harvest in {self.directory} has not finished: run the same harvest again; "
                "it continues where it stopped."
            )
        self.world: str = manifest["world"]
        self.fingerprint: str = manifest["fingerprint"]
        self.layer: int = manifest["layer"]
        self.seq_len: int = manifest["seq_len"]
        self.d_model: int = manifest["d_model"]
        self.dtype: str = manifest["dtype"]
        self.label_specs = layout.label_specs(manifest)
        self.scale: float = manifest["scale"]
        self.mean_D = torch.tensor(manifest["mean"], dtype=torch.float64).float()
        self.massive_share: float = manifest["massive_share"]
        self.median_norm: float = manifest["median_norm"]
        self._starts = {
            split: np.cumsum([0, *(shard["sequences"] for shard in shards)]).tolist()
            for split, shards in manifest["shards"].items()
        }
        self._shards: dict[tuple[str, int], Shard] = {}
        self._limit = int(memory_limit_mb * MIB)
        self._mapped: set[tuple[str, int, int]] = set()
        least = least_mapped(self.seq_len, self.d_model)
        if self._limit < least:
            raise ValueError(
                f"memory_limit_mb is {memory_limit_mb}; for sequences of {self.seq_len} × "
                f"{self.d_model}, allowed is {math.ceil(least / MIB)} or more"
            )

    @classmethod
    def open(
        cls, directory: str | Path, verify: str = "size", memory_limit_mb: float = 512
    ) -> "ActivationStore":
        """Open a complete store after checking each shard's size ("checksum": its SHA-256 too).

        Raises :class:`StoreError`, naming the shard and what to do, when one is missing, truncated
        or changed, and when the directory is foreign, unfinished or of another version.
        """
        if verify not in ("size", "checksum"):
            raise ValueError(f"verify is {verify!r}; allowed are 'size', 'checksum'")
        store = cls(directory, memory_limit_mb)
        for shards in store.manifest["shards"].values():
            for shard in shards:
                expected = layout.shard_bytes(shard["sequences"], store.manifest)
                if shard["bytes"] != expected:
                    raise StoreError(
                        f"{store.directory / layout.MANIFEST} is damaged at shard {shard['file']}: "
                        "harvest again into a new directory."
                    )
                bad = layout.damage(store.directory, shard, verify == "checksum")
                if bad:
                    raise StoreError(f"Shard {shard['file']} of {store.directory} {bad}.")
        return store

    def n_sequences(self, split: str) -> int:
        """Whole sequences in ``split``."""
        if split not in self._starts:
            raise ValueError(f"split is {split!r}; allowed are {', '.join(self._starts)}")
        return self._starts[split][-1]

    def n_tokens(self, split: str) -> int:
        """Tokens in ``split``: sequences times T, BOS and padding included."""
        return self.n_sequences(split) * self.seq_len

    @property
    def mapped_mb(self) -> float:
        """Upper bound of what is mapped into memory now, MiB; never above the limit."""
        return len(self._mapped) * WINDOW / MIB

    def batch(
        self, split: str, indices: Sequence[int] | np.ndarray | Tensor, device: str = "cpu"
    ) -> Batch:
        """Sequences ``indices`` of ``split``, in that order, normalised, on ``device``.

        Half-precision residuals travel to an accelerator as they are and are widened there. Raises
        IndexError outside 0 … n_sequences − 1.
        """
        n, length, n_labels = self.n_sequences(split), self.seq_len, len(self.label_specs)
        rows = [int(i) for i in indices]
        on_cpu = torch.device(device).type == "cpu"
        kind = torch.float32 if on_cpu else getattr(torch, self.dtype)
        x_BTD = torch.empty((len(rows), length, self.d_model), dtype=kind)
        tokens_BT = np.empty((len(rows), length), np.int64)
        doc_BT = np.empty_like(tokens_BT)
        boundary_BT = np.empty(tokens_BT.shape, np.uint8)
        mask_BT = np.empty(tokens_BT.shape, bool)
        labels_LBT = np.empty((n_labels, *tokens_BT.shape), np.int16)
        for b, index in enumerate(rows):
            if not 0 <= index < n:
                raise IndexError(f"sequence {index} of {split!r}: the store holds 0 … {n - 1}")
            shard, row = self._locate(split, index)
            x_BTD[b].copy_(shard.x[row])
            if on_cpu:
                x_BTD[b].mul_(self.scale)  # while the row is still in the cache
            tokens_BT[b] = shard.arrays["tokens"][row]
            doc_BT[b] = shard.arrays["doc"][row]
            boundary_BT[b] = shard.arrays["boundary"][row]
            np.equal(shard.arrays["validity"][row], layout.VALID, out=mask_BT[b])
            labels_LBT[:, b] = shard.arrays["labels"][row]
        if not on_cpu:
            x_BTD = x_BTD.to(device).float().mul_(self.scale)
        return Batch(
            x_BTD,
            torch.from_numpy(tokens_BT).to(device),
            torch.from_numpy(doc_BT).to(device),
            FilledContext(
                torch.from_numpy(mask_BT).to(device), torch.from_numpy(boundary_BT).to(device)
            ),
            {
                name: torch.from_numpy(labels_LBT[i]).to(device)
                for i, name in enumerate(self.label_specs)
            },
        )

    def batches(
        self, split: str, batch_size: int, shuffle: bool = False, seed: int = 0, device: str = "cpu"
    ) -> Iterator[Batch]:
        """Every sequence of ``split`` once; the last batch may be smaller."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; allowed are whole numbers from 1")
        n = self.n_sequences(split)
        order = permutation(n, seed, 0) if shuffle else np.arange(n)
        return (
            self.batch(split, order[i : i + batch_size], device) for i in range(0, n, batch_size)
        )

    def sampler(
        self, split: str, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> Sampler:
        """Endless shuffled indices of ``split`` for :meth:`batch`; see :class:`Sampler`."""
        return Sampler(self.n_sequences(split), batch_size, seed, split, rank, world_size)

    def _locate(self, split: str, index: int) -> tuple[Shard, int]:
        """The shard and row of a sequence, after making room for it under the memory limit."""
        number = bisect.bisect_right(self._starts[split], index) - 1
        row = index - self._starts[split][number]
        shard = self._shard(split, number)
        windows = {(split, number, window) for window in shard.windows(row)}
        if (len(self._mapped) + len(windows - self._mapped)) * WINDOW > self._limit:
            self._unmap()
            shard = self._shard(split, number)
        self._mapped |= windows
        return shard, row

    def _shard(self, split: str, number: int) -> Shard:
        if (split, number) not in self._shards:
            if len(self._shards) == OPEN_SHARDS:
                self._unmap()
            entry = self.manifest["shards"][split][number]
            self._shards[split, number] = Shard(self.directory, entry, self.manifest)
        return self._shards[split, number]

    def _unmap(self) -> None:
        """Give every mapped page and file back; the next read maps what it needs again."""
        self._shards.clear()
        self._mapped.clear()
