"""Pushes of chosen latents and along a direction."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lab.edits.edit import CodePush, Push, distinct
from lab.edits.ranking import Read
from tsae.saes.base import SAE
from tsae.saes.config import require


class Clamp(CodePush):
    r"""``z'_i = −(m / 100) √d`` for chosen i with z_i > q_i (all chosen i with ``hold``), else z_i.

    q = 0 unless given. Source: SAEBench ``unlearning`` (Farrell et al. 2024, arXiv 2410.19278);
    q and ``hold`` are this project's.
    """

    def __init__(
        self,
        sae: SAE,
        latents: Tensor | Iterable[int],
        hold: bool = False,
        q_K: Tensor | float = 0.0,
    ):
        self.latents, self.hold, self.q_K = distinct(latents, sae), hold, q_K

    def values(self, sae: SAE, read: Read, share: float) -> Tensor:
        """See :meth:`CodePush.values`."""
        old_BTK = read.z_BTF[..., self.latents]
        acts_BTK = (old_BTK > self.q_K) | self.hold
        return torch.where(acts_BTK, -share * math.sqrt(sae.cfg.d_in), old_BTK)


class Ablation(CodePush):
    r"""``z'_i = (1 − m / 100) z_i`` for chosen i: at m = 100 what they say is taken away."""

    def __init__(self, sae: SAE, latents: Tensor | Iterable[int]):
        self.latents = distinct(latents, sae)

    def values(self, sae: SAE, read: Read, share: float) -> Tensor:
        """See :meth:`CodePush.values`."""
        return read.z_BTF[..., self.latents] * (1 - share)


class Direction(Push):
    r"""``v = −(m / 100) √d u`` along a unit direction u [d]: no dictionary takes part in it."""

    def __init__(self, u_D: Tensor):
        norm = float(u_D.norm())
        require(norm > 0, "u_D", norm, "a direction, not 0")
        self.u_D, self.latents = u_D / norm, torch.zeros(0, dtype=torch.long)

    def shift(self, sae: SAE, read: Read, share: float) -> Tensor:
        """See :meth:`Push.shift`."""
        v_D = -share * math.sqrt(sae.cfg.d_in) * self.u_D
        return v_D.to(read.x_BTD).expand_as(read.x_BTD)
