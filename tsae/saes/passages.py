"""Losses that ask a memory for what lasts over a document, and what they read of a batch.

Tokens are drawn with the CPU's generator, which is the one that checkpoints restore bit for bit.
"""

import torch
from torch import Tensor, nn

from tsae.sequences import DOCUMENT, FilledContext


def starts(context: FilledContext, level: int) -> Tensor:
    """The token [N] at which each token's stretch of ``level`` starts; N = B * T."""
    opens_N = context.boundary_BT.flatten() >= level
    t_N = torch.arange(len(opens_N), device=opens_N.device)
    return torch.where(opens_N, t_N, 0).cummax(0).values


def drawn(flag_N: Tensor, limit: int) -> Tensor:
    """At most ``limit`` of the flagged tokens, at random."""
    rows = flag_N.nonzero()[:, 0]
    return rows[torch.randperm(len(rows))[:limit].to(rows.device)]


def info_nce(
    now_PG: Tensor, then_PG: Tensor, document_P: Tensor, temperature: float = 1.0
) -> Tensor:
    """Symmetric InfoNCE of the inner products of pairs, whose negatives are the pairs of other
    documents, since a document's own tokens should agree; 0 with fewer than two pairs."""
    if len(now_PG) < 2:
        return now_PG.new_zeros(())
    same = (document_P[:, None] == document_P).fill_diagonal_(False)
    alike = (now_PG @ then_PG.t() / temperature).masked_fill(same, -torch.inf)
    target, entropy = torch.arange(len(alike), device=alike.device), nn.functional.cross_entropy
    return 0.5 * (entropy(alike, target) + entropy(alike.t(), target))


def contrast(
    m_NG: Tensor,
    context: FilledContext,
    pairs: int,
    longest_lag: int,
    temperature: float,
    level: int = DOCUMENT,
    log_lags: bool = False,
) -> Tensor:
    """Symmetric InfoNCE between the cosines of ``m`` at t and t - lag of a stretch of ``level``.

    Lags from 1 to ``longest_lag`` are uniform, or uniform in their logarithm. At most ``pairs``
    tokens t are compared.
    """
    mask_N, start_N = context.mask_BT.flatten(), starts(context, DOCUMENT)
    t_N = torch.arange(len(mask_N), device=mask_N.device)
    share_N = torch.rand(len(t_N)).to(t_N.device)
    lag_N = (longest_lag + 1) ** share_N if log_lags else 1 + longest_lag * share_N
    then_N = t_N - lag_N.long()
    paired_N = (then_N >= starts(context, level)) & mask_N & mask_N[then_N.clamp_min(0)]
    now = drawn(paired_N, pairs)
    a, b = (nn.functional.normalize(m_NG[t], dim=1, eps=1e-6) for t in (now, then_N[now]))
    return info_nce(a, b, start_N[now], temperature)


def others_sum(u_ND: Tensor, context: FilledContext, level: int) -> tuple[Tensor, Tensor]:
    """The sum of ``u`` (0 at invalid tokens) over the other valid tokens of each token's stretch of
    ``level`` [N, d], and how many they are [N]."""
    start_N, valid_N = starts(context, level), context.mask_BT.flatten().long()
    sum_ND = torch.zeros_like(u_ND).index_add_(0, start_N, u_ND)
    n_N = torch.zeros_like(valid_N).index_add_(0, start_N, valid_N)
    return sum_ND[start_N] - u_ND, n_N[start_N] - valid_N


def next_sum(u_ND: Tensor, context: FilledContext, horizon: int) -> tuple[Tensor, Tensor]:
    """The sum of ``u`` (0 at invalid tokens) over the valid ones of the next ``horizon`` tokens of
    each token's document [N, d], and how many they are [N]."""
    start_N, valid_N = starts(context, DOCUMENT), context.mask_BT.flatten().long()
    t_N = torch.arange(len(u_ND), device=u_ND.device)
    last_N = torch.zeros_like(t_N).index_add_(0, start_N, torch.ones_like(t_N))
    stop_N = torch.minimum(t_N + 1 + horizon, (start_N + last_N[start_N]))
    sum_ND = nn.functional.pad(u_ND.double().cumsum(0), (0, 0, 1, 0))
    n_N = nn.functional.pad(valid_N.cumsum(0), (1, 0))
    total_ND = (sum_ND[stop_N] - sum_ND[t_N + 1]).to(u_ND.dtype)
    return total_ND, n_N[stop_N] - n_N[t_N + 1]
