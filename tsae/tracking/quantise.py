r"""Codes in 8 bits with one scale a token.

    scale = max_i z_i / 255,   q_i = max(1, round(z_i / scale)) if z_i > 0 else 0,   ẑ_i = q_i scale

|z − ẑ| ≤ scale / 2 for z ≥ scale / 2, and < scale below: an active latent stays active.
"""

import torch
from torch import Tensor

LEVELS = 255
BITS = (8, 32)


def quantise(values_NM: Tensor) -> tuple[Tensor, Tensor]:
    """Levels [..., M] uint8 and scales [...] float32 of codes [..., M] >= 0."""
    scale_N = values_NM.amax(-1).float() / LEVELS
    levels = (values_NM / scale_N.clamp_min(1e-30)[..., None]).round().clamp(1, LEVELS)
    return torch.where(values_NM > 0, levels, 0).to(torch.uint8), scale_N


def dequantise(levels_NM: Tensor, scale_N: Tensor) -> Tensor:
    """Codes [..., M] float32 from levels and scales."""
    return levels_NM * scale_N[..., None]


def remembered(values_NM: Tensor, bits: int) -> Tensor:
    """The codes as memory of ``bits`` (8 or 32) gives them back."""
    return values_NM if bits == 32 else dequantise(*quantise(values_NM))
