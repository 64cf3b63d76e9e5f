"""What families of before read; they are ported to :class:`lab.measures.reading.Reading`."""

from collections.abc import Iterator
from typing import Any

from lab.measures.reading import Measured, Tokens, latent_groups, pieces, row

__all__ = ["Measured", "Tokens", "encoded", "latent_groups", "pieces", "row"]


def encoded(
    sae: Any, store: Any, split: str, limit_tokens: int, batch_size: int, device: str
) -> Iterator[Tokens]:
    """Batches of a split as flattened tokens with codes, until ``limit_tokens`` valid ones."""
    seen = 0
    for batch in store.batches(split, batch_size):
        batch = batch.to(device)
        out = sae(batch.x_BTD, batch.context)
        tokens = Tokens.of(batch, out.z, out.x_hat)
        yield tokens
        seen += len(tokens)
        if seen >= limit_tokens:
            return
