"""How alike a group's codes are over time, and how often its latents are on."""

import torch
from torch import Tensor, nn

from tsae.kernels.sparse import Codes, group_energy, lag_dots
from tsae.sequences import FilledContext


def block(codes: Codes | Tensor, start: int, stop: int) -> Tensor:
    """The codes of latents ``start … stop - 1``, dense [N, stop - start], with their gradient."""
    if isinstance(codes, Tensor):
        return codes[:, start:stop]
    kept = ((codes.cols >= start) & (codes.cols < stop)).nonzero()[:, 0]
    empty = codes.values.new_zeros(codes.shape[0], stop - start)
    return empty.index_put((codes.rows[kept], codes.cols[kept] - start), codes.values[kept])


def excess_rate(codes: Codes | Tensor, n: Tensor) -> Tensor:
    """``sum_i relu(rate_i - 1/2)`` over ``n`` tokens, whose gradient lowers the codes of such latents
    in proportion."""
    if isinstance(codes, Tensor):
        count_F, sum_F = (codes > 0).sum(0), codes.sum(0)
    else:
        count_F = torch.bincount(codes.cols[codes.values > 0], minlength=codes.shape[1])
        sum_F = codes.values.new_zeros(codes.shape[1]).index_add(0, codes.cols, codes.values)
    ratio_F = sum_F / sum_F.detach().clamp_min(1e-8)
    return ((count_F / n - 0.5).clamp_min(0.0) * ratio_F).sum()


def distance(
    codes: Codes | Tensor,
    context: FilledContext,
    sizes: list[int],
    levels: tuple[int, ...],
    weight_G: Tensor,
    lags: tuple[int, ...],
    kind: str,
) -> Tensor:
    """``sum_g w_g sum_lag mean_t D(z_g[t], z_g[t - lag])`` within the groups' own stretches.

    ``cosine``: 1 - z.z' / (|z| |z'|). ``l2``: 1 - 2 z.z' / (|z|^2 + |z'|^2), which is scale-free.
    """
    mask, boundary = context.mask_BT.flatten(), context.boundary_BT.flatten()
    segment_NG = torch.stack([boundary >= level for level in levels], 1).cumsum(0)
    lags = tuple(lag for lag in lags if lag < context.mask_BT.shape[1])
    energy_NG, total = energy(codes, sizes), weight_G.new_zeros(())
    for lag, dots_NG in zip(lags, dots(codes, lags, sizes), strict=True):
        keep_NG = (segment_NG[lag:] == segment_NG[:-lag]) & (mask[lag:] & mask[:-lag])[:, None]
        now, then, both = energy_NG[lag:], energy_NG[:-lag], dots_NG[lag:]
        if kind == "cosine":
            # The epsilon keeps the root's gradient finite where a group is silent.
            far = 1.0 - both / (now * then + 1e-6).sqrt()
        else:
            far = 1.0 - 2.0 * both / (now + then + 1e-6)
        total = total + (far * keep_NG).sum(0) @ weight_G
    return total / context.mask_BT.sum().clamp_min(1)


def groups_of(sizes: list[int], device: torch.device) -> Tensor:
    """The group [F] of every latent."""
    return torch.arange(len(sizes), device=device).repeat_interleave(
        torch.tensor(sizes, device=device)
    )


def energy(codes: Codes | Tensor, sizes: list[int]) -> Tensor:
    """``|z_g|^2`` [N, G]."""
    if isinstance(codes, Tensor):
        return torch.stack([b.square().sum(1) for b in codes.split(sizes, 1)], 1)
    return group_energy(codes, groups_of(sizes, codes.cols.device), len(sizes))


def dots(codes: Codes | Tensor, lags: tuple[int, ...], sizes: list[int]) -> Tensor:
    """``z_g[t] . z_g[t-lag]`` [L, N, G] for every lag."""
    if not isinstance(codes, Tensor):
        return lag_dots(codes, lags, groups_of(sizes, codes.cols.device), len(sizes))
    products = [codes * nn.functional.pad(codes[:-lag], (0, 0, lag, 0)) for lag in lags]
    return torch.stack([torch.stack([b.sum(1) for b in p.split(sizes, 1)], 1) for p in products])
