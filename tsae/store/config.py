"""How much a harvest takes, and in what portions."""

import math
from dataclasses import dataclass

from tsae.sequences import SPLITS, TextSource
from tsae.store.shard import MIB, least_mapped

DTYPES = ("float16", "bfloat16")
# Measured: at most so much is taken beyond a harvest's own arrays, and so much per element of a
# batch (float32, its half, both of the batch ahead, and the allocator's gaps).
OVERHEAD, BATCH_BYTES = 32 * MIB, 40
BATCH_SEQUENCES = 16


@dataclass(frozen=True)
class HarvestConfig:
    """How much to harvest and in what portions."""

    tokens: dict[str, int]
    """Tokens to have of each split, BOS included, rounded up to whole sequences, or as many as the
    text has."""
    dtype: str | None = None
    """Number format of the residuals on disk; None is float16, and bfloat16 as soon as a value
    exceeds 65504."""
    shard_tokens: int = 65536
    """Tokens of a full shard, in whole sequences; an interruption loses at most one shard."""
    batch_sequences: int | None = None
    """Sequences of a forward pass; None is 16, or as many as the memory limit lets through."""
    memory_limit_mb: float = 512
    """Most that buffers and mapped pages may take, MiB; the model's own memory comes on top."""

    def __post_init__(self) -> None:
        if not self.tokens or set(self.tokens) - set(SPLITS):
            raise ValueError(f"tokens are for {sorted(self.tokens)}; allowed are {SPLITS}")
        counts = {f"tokens[{split!r}]": n for split, n in self.tokens.items()}
        counts["shard_tokens"] = self.shard_tokens
        counts["batch_sequences"] = 1 if self.batch_sequences is None else self.batch_sequences
        for name, n in counts.items():
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                raise ValueError(f"{name} is {n!r}; allowed are whole numbers from 1")
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype is {self.dtype!r}; allowed are {DTYPES} or None")

    def batch_for(self, world: TextSource) -> int:
        """Sequences of a forward pass over ``world`` that the memory limit lets through.

        Raises ValueError when a shard is below one sequence or the buffers are above the limit.
        """
        length, d = world.seq_len, world.d_model
        if self.shard_tokens < length:
            raise ValueError(
                f"shard_tokens is {self.shard_tokens}; allowed are whole numbers from {length}, "
                "one sequence"
            )
        each = BATCH_BYTES * length * d
        others = OVERHEAD + self.shard_tokens * (24 + 2 * len(world.label_specs))
        n = self.batch_sequences
        if n is None:
            n = max(1, min(BATCH_SEQUENCES, int(self.memory_limit_mb * MIB - others) // each))
        least = math.ceil(max(others + n * each, least_mapped(length, d)) / MIB)
        if self.memory_limit_mb < least:
            raise ValueError(
                f"memory_limit_mb is {self.memory_limit_mb}; with batch_sequences {n} and "
                f"shard_tokens {self.shard_tokens}, allowed is {least} or more"
            )
        return n
