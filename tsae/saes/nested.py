"""Nested dictionaries: what every prefix of the latents leaves of the target."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tsae.kernels import sparse
from tsae.kernels.sparse import Codes, rows_to_crow


def decoded_blocks(codes: Codes | Tensor, W_dec: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """``z W_dec`` [N, d] of each block's latents alone, for all blocks but the last.

    ``sizes``: latents of each block, in order. Sparse codes are read as N (P-1) rows, one a token
    and block, so that one sparse product decodes them all.
    """
    P = len(sizes) - 1
    if isinstance(codes, Tensor):
        blocks = zip(codes.split(sizes, 1), W_dec.split(sizes), strict=True)
        return [z @ W for z, W in list(blocks)[:P]]
    last_F = torch.tensor(sizes, device=W_dec.device).cumsum(0)
    block = torch.searchsorted(last_F, codes.cols, right=True)
    kept = (block < P).nonzero()[:, 0]
    rows, cols = codes.rows[kept] * P + block[kept], codes.cols[kept]
    N, F = codes.shape
    # Columns ascend within a token, so the new rows ascend too.
    crow = rows_to_crow(torch.bincount(rows, minlength=N * P))
    nested = Codes(codes.values[kept], rows, cols, crow, (N * P, F))
    return list(sparse.decode(nested, W_dec).unflatten(0, (N, P)).unbind(1))


def prefix_error(
    codes: Codes | Tensor,
    target_ND: Tensor,
    W_dec: Tensor,
    sizes: Sequence[int],
    weights: Sequence[float],
) -> Tensor:
    """``sum_p w_p |target - z[:n_p] W_dec[:n_p]|^2`` over all prefixes but the full dictionary."""
    total, prefix_ND = target_ND.new_zeros(()), torch.zeros_like(target_ND)
    for weight, block_ND in zip(weights, decoded_blocks(codes, W_dec, sizes), strict=True):
        prefix_ND = prefix_ND + block_ND
        total = total + weight * nn.functional.mse_loss(prefix_ND, target_ND, reduction="sum")
    return total
