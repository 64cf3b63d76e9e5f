"""The contrastive distance between a slow code and its past, over sampled pairs of tokens."""

import torch
from torch import Tensor, nn

from tsae.kernels.sparse import Codes


def sampled_pairs(keep_N: Tensor, lag: int, limit: int) -> Tensor:
    """The later tokens [P <= limit] of random pairs (n + lag, n) that ``keep_N`` [N - lag] keeps."""
    rows = keep_N.nonzero()[:, 0] + lag
    return rows[torch.randperm(rows.numel(), device=rows.device)[:limit]]


def block_of(codes: Codes | Tensor, rows_P: Tensor | None, start: int, stop: int) -> Tensor:
    """Latents ``start … stop - 1`` of the given (distinct) tokens [P, stop - start], with gradient;
    of all tokens for None.

    From sparse codes only the active entries of these tokens are read.
    """
    if isinstance(codes, Tensor):
        return codes[:, start:stop] if rows_P is None else codes[rows_P, start:stop]
    inside, place = (codes.cols >= start) & (codes.cols < stop), codes.rows
    if rows_P is not None:
        place_N = torch.full((codes.shape[0],), -1, device=rows_P.device)
        place_N[rows_P] = torch.arange(rows_P.numel(), device=rows_P.device)
        place = place_N[codes.rows]
        inside &= place >= 0
    kept = inside.nonzero()[:, 0]
    n = codes.shape[0] if rows_P is None else rows_P.numel()
    empty = codes.values.new_zeros(n, stop - start)
    return empty.index_put((place[kept], codes.cols[kept] - start), codes.values[kept])


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
