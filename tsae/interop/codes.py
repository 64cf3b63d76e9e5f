"""Codes as a ``datasets`` folder, one row a sequence, for use without this package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tsae.files import atomic
from tsae.saes import SAE


def export_codes(
    sae: SAE,
    store: Any,
    directory: str | Path,
    *,
    split: str = "test",
    limit_tokens: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
) -> Path:
    """Write the sparse codes of ``split``; ``datasets.load_from_disk(directory)`` reads them.

    Columns, a row being one sequence of T tokens: ``tokens``, ``doc`` (−1 at BOS and padding),
    ``boundary`` (the level that starts at the token), ``valid`` (False where nothing was encoded),
    ``latents`` and ``values`` (per token the active latents in ascending order and their codes, in
    the store's units). Whole sequences, until ``limit_tokens`` are reached. An old folder is
    replaced in one step. Raises :class:`UserError` when the disk is full.
    """
    import datasets

    def rows() -> Iterator[dict[str, Any]]:
        seen = 0
        for batch in store.batches(split, batch_size):
            batch = batch.to(device)
            with torch.no_grad():
                z_BTF = sae.encode(batch.x_BTD, batch.context).cpu()
            for b, z_TF in enumerate(z_BTF):
                active = [z_F.nonzero()[:, 0] for z_F in z_TF]
                yield {
                    "tokens": batch.tokens_BT[b].tolist(),
                    "doc": batch.doc_BT[b].tolist(),
                    "boundary": batch.context.boundary_BT[b].tolist(),
                    "valid": batch.context.mask_BT[b].tolist(),
                    "latents": [ids.tolist() for ids in active],
                    "values": [z_F[ids].tolist() for z_F, ids in zip(z_TF, active, strict=True)],
                }
                seen += len(z_TF)
                if limit_tokens is not None and seen >= limit_tokens:
                    return

    sae = sae.to(device).eval()
    each = datasets.Sequence
    features = datasets.Features(
        {
            "tokens": each(datasets.Value("int32")),
            "doc": each(datasets.Value("int32")),
            "boundary": each(datasets.Value("uint8")),
            "valid": each(datasets.Value("bool")),
            "latents": each(each(datasets.Value("int32"))),
            "values": each(each(datasets.Value("float32"))),
        }
    )
    directory = Path(directory)
    with atomic(directory, own=("*.arrow",)) as unfinished:
        datasets.Dataset.from_list(list(rows()), features=features).save_to_disk(unfinished)
    return directory
