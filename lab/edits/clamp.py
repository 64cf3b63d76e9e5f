"""Clamping: wherever a chosen latent fires, it is set to a negative value. And its control."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lab.edits.edit import Edit
from tsae.saes.base import FilledContext


class Clamp(Edit):
    r"""``z'_i[t] = −m · unit`` (or ``−m‖x[t]‖/100``) for chosen i with z_i[t] > 0, else z_i[t].

    Source: SAEBench ``unlearning`` (Farrell et al. 2024, arXiv 2410.19278); the relative form is
    this project's.
    """

    strategy = "clamp"

    def edited(self, z_BTF: Tensor, x_BTD: Tensor, context: FilledContext) -> Tensor:
        old_BTK = z_BTF[..., self.latents]
        new_BTF = z_BTF.clone()
        new_BTF[..., self.latents] = torch.where(old_BTK > 0, self.target(x_BTD), old_BTK)
        return new_BTF


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
