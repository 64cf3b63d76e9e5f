"""Pushes through codes and along directions: clamp, hold, ablation, mean and random direction."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from lab.edits.edit import Push, distinct
from tsae.saes.base import SAE
from tsae.saes.config import require
from tsae.sequences import FilledContext


class CodePush(Push):
    """A push whose v is decode(z') − decode(z); a subclass says in :meth:`edited` what z' is."""

    @abstractmethod
    def edited(
        self, sae: SAE, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext, m: float, unit: float
    ) -> Tensor:
        """z' [B, T, F]."""

    def shift(
        self, sae: SAE, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext, m: float, unit: float
    ) -> Tensor:
        """See :meth:`Push.shift`."""
        new_BTF = self.edited(sae, x_BTD, z_BTF, context, m, unit)
        moves_BT1 = (new_BTF != z_BTF).any(-1, keepdim=True)
        return torch.where(moves_BT1, sae.decode(new_BTF) - sae.decode(z_BTF), 0.0)


class Clamp(CodePush):
    r"""``z'_i = −m · unit`` for chosen i with z_i > q_i (all chosen i with ``hold``), else z_i.

    q = 0 unless given. Source: SAEBench ``unlearning`` (Farrell et al. 2024, arXiv 2410.19278);
    q and ``hold`` are this project's.
    """

    def __init__(
        self,
        sae: SAE,
        latents: Tensor | Iterable[int],
        hold: bool = False,
        q_K: Tensor | None = None,
    ):
        self.latents, self.hold = distinct(latents, sae), hold
        self.q_K = torch.zeros(len(self.latents)) if q_K is None else q_K
        same = len(self.q_K) == len(self.latents)
        require(same, "q_K", len(self.q_K), f"of the {len(self.latents)} chosen latents")
        self.q_K = self.q_K.to(self.latents.device)

    def edited(
        self, sae: SAE, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext, m: float, unit: float
    ) -> Tensor:
        old_BTK = z_BTF[..., self.latents]
        acts_BTK = torch.ones_like(old_BTK, dtype=torch.bool) if self.hold else old_BTK > self.q_K
        new_BTF = z_BTF.clone()
        new_BTF[..., self.latents] = torch.where(acts_BTK, -m * unit, old_BTK)
        return new_BTF


class Ablation(CodePush):
    r"""``z'_i = (1 − m / 100) z_i`` for chosen i: at m = 100 what they say is taken away."""

    def __init__(self, sae: SAE, latents: Tensor | Iterable[int]):
        self.latents = distinct(latents, sae)

    def edited(
        self, sae: SAE, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext, m: float, unit: float
    ) -> Tensor:
        new_BTF = z_BTF.clone()
        new_BTF[..., self.latents] *= 1 - m / 100
        return new_BTF


class Direction(Push):
    r"""``v = −m · unit · u`` along a unit direction u [d]: no dictionary takes part in it."""

    def __init__(self, u_D: Tensor):
        norm = float(u_D.norm())
        require(norm > 0, "u_D", norm, "a direction, not 0")
        self.u_D, self.latents = u_D / norm, torch.zeros(0, dtype=torch.long)

    def shift(
        self, sae: SAE, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext, m: float, unit: float
    ) -> Tensor:
        """See :meth:`Push.shift`."""
        return (-m * unit * self.u_D).to(x_BTD).expand_as(x_BTD)


def random_control(
    latents: Tensor | Iterable[int], frequency_F: Tensor, seed: int = 0, candidates: int = 8
) -> Tensor:
    """As many latents as ``latents``, drawn at random among others of like firing frequency.

    In a random order each chosen latent is replaced by one of the ``candidates`` still free latents
    whose log frequency lies nearest to its own, all equally likely; neither chosen nor silent ones
    are drawn. Raises ValueError when too few latents fire.
    """
    chosen = torch.as_tensor(latents, dtype=torch.long).flatten().cpu()
    log_F = frequency_F.detach().double().cpu().clamp_min(1e-12).log()
    free = frequency_F.detach().cpu() > 0
    free[chosen] = False
    if int(free.sum()) < len(chosen):
        raise ValueError(
            f"{int(free.sum())} other latents fire; a control of {len(chosen)} needs that many."
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty_like(chosen)
    for i in torch.randperm(len(chosen), generator=generator).tolist():
        ids = free.nonzero()[:, 0]
        near = ids[(log_F[ids] - log_F[chosen[i]]).abs().argsort(stable=True)[:candidates]]
        drawn[i] = near[torch.randint(len(near), (1,), generator=generator)]
        free[drawn[i]] = False
    return drawn
