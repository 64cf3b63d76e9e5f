"""The order in which training sees sequences: a function of seed, epoch and position alone."""

from typing import Any

import numpy as np

from tsae.errors import CheckpointError


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of ``n`` sequences in one epoch, int64 [n]; fixed by (seed, epoch)."""
    return np.random.default_rng((seed, epoch)).permutation(n)


class Sampler:
    """Endless shuffled sequence indices of one split.

    Epochs follow one another without a gap: with p_e = ``permutation(n, seed, e)``, the stream is
    p_0, p_1, p_2, …, cut into batches of ``batch_size``, so that every sequence is seen exactly
    once an epoch and every batch is full. Under data parallelism rank r of R takes the positions
    r, r + R, … of every batch: the ranks' shares do not overlap and together are the batch.

    Raises ValueError when ``n`` < 1, when ``batch_size`` is not a positive multiple of
    ``world_size``, or when ``rank`` is not below ``world_size``.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, split: str, rank: int = 0, world_size: int = 1
    ) -> None:
        if n < 1:
            raise ValueError(f"split {split!r} holds {n} sequences; a sampler needs at least 1")
        if world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; allowed is 0 ≤ rank < world_size = {world_size}")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size is {batch_size}; allowed are positive multiples of world_size = "
                f"{world_size}"
            )
        self.n, self.batch_size, self.seed, self.split = n, batch_size, seed, split
        self.rank, self.world_size = rank, world_size
        self.epoch = self.position = 0
        self._order = permutation(n, seed, 0)

    def next_indices(self) -> np.ndarray:
        """This rank's share of the next batch, int64 [batch_size / world_size]."""
        parts, wanted = [], self.batch_size
        while wanted:
            if self.position == self.n:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = permutation(self.n, self.seed, self.epoch)
            part = self._order[self.position : self.position + wanted]
            self.position += len(part)
            wanted -= len(part)
            parts.append(part)
        return np.concatenate(parts)[self.rank :: self.world_size]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, with what fixes it; the same on every rank."""
        return {
            "split": self.split,
            "seed": self.seed,
            "n_sequences": self.n,
            "epoch": self.epoch,
            "position": self.position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; :class:`CheckpointError` if in another stream."""
        own = self.state_dict()
        other = {key: state.get(key) for key in ("split", "seed", "n_sequences")}
        for key, value in other.items():
            if value != own[key]:
                raise CheckpointError(
                    f"The checkpoint's sampler has {key} {value!r} and this run has {own[key]!r}: "
                    "resume with its settings and store, or start in a new directory."
                )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._order = permutation(self.n, self.seed, self.epoch)
