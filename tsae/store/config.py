"""How much a harvest takes, and in what portions."""

from dataclasses import dataclass

from tsae.sequences import SPLITS, TextSource

DTYPES = ("float16", "bfloat16")


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
    batch_sequences: int = 16
    """Sequences of a forward pass."""

    def __post_init__(self) -> None:
        if not self.tokens or set(self.tokens) - set(SPLITS):
            raise ValueError(f"tokens are for {sorted(self.tokens)}; allowed are {SPLITS}")
        counts = {f"tokens[{split!r}]": n for split, n in self.tokens.items()}
        counts |= {"shard_tokens": self.shard_tokens, "batch_sequences": self.batch_sequences}
        for name, n in counts.items():
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                raise ValueError(f"{name} is {n!r}; allowed are whole numbers from 1")
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype is {self.dtype!r}; allowed are {DTYPES} or None")

    def sequences_a_shard(self, world: TextSource) -> int:
        """Sequences of a full shard. Raises ValueError when that is not one."""
        if self.shard_tokens < world.seq_len:
            raise ValueError(
                f"shard_tokens is {self.shard_tokens}; allowed are whole numbers from "
                f"{world.seq_len}, one sequence"
            )
        return self.shard_tokens // world.seq_len
