"""How alike a group's codes are over time, and how often its latents are on."""

import torch
from torch import Tensor

from tsae.kernels.sparse import Codes


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


def cosine_distance(
    z_NG: Tensor, segment_N: Tensor, mask_N: Tensor, lags: tuple[int, ...]
) -> Tensor:
    """``sum_lag mean_t 1 - z[t].z[t - lag] / (|z[t]| |z[t - lag]|)`` within the group's segments."""
    energy_N, total = z_NG.square().sum(1), z_NG.new_zeros(())
    for lag in lags:
        keep_N = (segment_N[lag:] == segment_N[:-lag]) & mask_N[lag:] & mask_N[:-lag]
        both_N = (z_NG[lag:] * z_NG[:-lag]).sum(1)
        # The constant keeps the root's gradient finite where a group is silent.
        far_N = 1.0 - both_N / (energy_N[lag:] * energy_N[:-lag] + 1e-6).sqrt()
        total = total + (far_N * keep_N).sum()
    return total / mask_N.sum().clamp_min(1)
