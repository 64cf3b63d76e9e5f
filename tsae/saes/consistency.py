"""The contrastive distance between a slow code and its past, over sampled pairs of tokens."""

import torch
from torch import Tensor, nn

from tsae.kernels.sparse import Codes


def sampled_pairs(keep_N: Tensor, lag: int, limit: int) -> Tensor:
    """The later tokens [P <= limit] of random pairs (n + lag, n) that ``keep_N`` [N - lag] keeps."""
    rows = keep_N.nonzero()[:, 0] + lag
    return rows[torch.randperm(rows.numel(), device=rows.device)[:limit]]


def block_of(
    codes: Codes | None, z_NF: Tensor | None, rows_P: Tensor, start: int, stop: int
) -> Tensor:
    """Latents ``start … stop - 1`` of the given (distinct) tokens [P, stop - start], with gradient.

    From sparse codes only the active entries of these tokens are read.
    """
    if codes is None:
        assert z_NF is not None
        return z_NF[rows_P, start:stop]
    place_N = torch.full((codes.shape[0],), -1, device=rows_P.device)
    place_N[rows_P] = torch.arange(rows_P.numel(), device=rows_P.device)
    place = place_N[codes.rows]
    inside = ((place >= 0) & (codes.cols >= start) & (codes.cols < stop)).nonzero()[:, 0]
    empty = codes.values.new_zeros(rows_P.numel(), stop - start)
    return empty.index_put((place[inside], codes.cols[inside] - start), codes.values[inside])


def info_nce(now_PG: Tensor, then_PG: Tensor, segment_P: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE between z_g[t] and z_g[t - lag]; 0 for fewer than two pairs.

    Tokens of the same segment are no negatives of each other: a slow code should agree on them.
    The similarity is the raw inner product over (temperature x mean energy): an independent
    replication of T-SAE (arXiv 2511.05541) found that cosines do not separate time scales.
    """
    if len(now_PG) < 2:
        return now_PG.new_zeros(())
    energy = now_PG.detach().square().sum(1).mean().clamp_min(1e-6)
    same = segment_P[:, None] == segment_P[None]
    same.fill_diagonal_(False)
    logits = (now_PG @ then_PG.t() / (temperature * energy)).masked_fill(same, float("-inf"))
    target = torch.arange(len(now_PG), device=now_PG.device)
    cross_entropy = nn.functional.cross_entropy
    return 0.5 * (cross_entropy(logits, target) + cross_entropy(logits.t(), target))
