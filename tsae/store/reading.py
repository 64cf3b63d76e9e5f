"""Reading a store: batches of whole sequences in normalised units."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tsae.errors import StoreError
from tsae.sequences import FilledContext
from tsae.store import layout
from tsae.store.sampling import Sampler


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

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with every tensor changed."""
        return Batch(
            change(self.x_BTD),
            change(self.tokens_BT),
            change(self.doc_BT),
            FilledContext(change(self.context.mask_BT), change(self.context.boundary_BT)),
            {name: change(label_BT) for name, label_BT in self.labels.items()},
        )

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch with every tensor on ``device``."""
        return self.each(lambda tensor: tensor.to(device))

    def first(self, length: int) -> "Batch":
        """The same sequences up to their first ``length`` positions."""
        return self.each(lambda tensor: tensor[:, :length])


class ActivationStore:
    r"""The activations of one world at one layer, as ``harvest`` left them.

    Normalised units: x = scale · raw, with

        scale = sqrt(d / E‖raw − E raw‖²),   so that   E‖x − mean‖² = d,

    expectations over the valid tokens of the train split (not BOS, padding or massive). The mean
    squared error per dimension is then 1 − FVE. ``mean_D`` [d] is E x, in normalised units;
    raw = x / scale.

    ``massive_share`` is the share of train tokens (BOS and padding aside) whose norm is above 10
    times the median. Residuals are read when they are asked for; tokens, documents, boundaries and
    labels stay in memory once they have been.
    """

    def __init__(self, directory: str | Path) -> None:
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
        self._small: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    @classmethod
    def open(cls, directory: str | Path, verify: str = "size") -> "ActivationStore":
        """Open a complete store after checking each shard's size ("checksum": its SHA-256 too).

        Raises :class:`StoreError`, naming the shard and what to do, when one is missing, truncated
        or changed, and when the directory is foreign, unfinished or of another version.
        """
        if verify not in ("size", "checksum"):
            raise ValueError(f"verify is {verify!r}; allowed are 'size', 'checksum'")
        store = cls(directory)
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

    def batch(
        self, split: str, indices: Sequence[int] | np.ndarray | Tensor, device: str = "cpu"
    ) -> Batch:
        """Sequences ``indices`` of ``split``, in that order, normalised, on ``device``.

        Half-precision residuals travel to an accelerator as they are and are widened there. Raises
        IndexError outside 0 … n_sequences − 1.
        """
        n = self.n_sequences(split)
        on_cpu = torch.device(device).type == "cpu"
        half = getattr(torch, self.dtype)
        shape = (len(indices), self.seq_len, self.d_model)
        x_BTD = torch.empty(shape, dtype=torch.float32 if on_cpu else half)
        rows: list[dict[str, np.ndarray]] = []
        for b, index in enumerate(int(i) for i in indices):
            if not 0 <= index < n:
                raise IndexError(f"sequence {index} of {split!r}: the store holds 0 … {n - 1}")
            number = bisect.bisect_right(self._starts[split], index) - 1
            small, row = self.small(split, number), index - self._starts[split][number]
            entry = self.manifest["shards"][split][number]
            bits_TD = layout.read_array(self.directory, entry, "x", self.manifest, row)
            x_BTD[b].copy_(torch.from_numpy(bits_TD).view(half))
            if on_cpu:
                x_BTD[b].mul_(self.scale)  # while the row is still in the cache
            rows.append({name: array[row] for name, array in small.items()})
        if not on_cpu:
            x_BTD = x_BTD.to(device).float().mul_(self.scale)

        def stacked(name: str) -> Tensor:
            return torch.from_numpy(np.stack([row[name] for row in rows])).to(device)

        context = FilledContext(stacked("validity") == layout.VALID, stacked("boundary"))
        labels = zip(self.label_specs, stacked("labels").unbind(1), strict=True)
        return Batch(x_BTD, stacked("tokens").long(), stacked("doc").long(), context, dict(labels))

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Every sequence of ``split`` once, in order; the last batch may be smaller."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; allowed are whole numbers from 1")
        order = np.arange(self.n_sequences(split))
        return (self.batch(split, order[i : i + batch_size]) for i in order[::batch_size])

    def sampler(
        self, split: str, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> Sampler:
        """Endless shuffled indices of ``split`` for :meth:`batch`; see :class:`Sampler`."""
        return Sampler(self.n_sequences(split), batch_size, seed, split, rank, world_size)

    def small(self, split: str, number: int) -> dict[str, np.ndarray]:
        """All arrays of a shard but the residuals, by name."""
        if (split, number) not in self._small:
            entry = self.manifest["shards"][split][number]
            if bad := layout.damage(self.directory, entry):
                raise StoreError(f"Shard {entry['file']} of {self.directory} {bad}.")
            self._small[split, number] = {
                name: layout.read_array(self.directory, entry, name, self.manifest)
                for name in layout.SMALL
            }
        return self._small[split, number]
