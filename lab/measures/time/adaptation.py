"""What temporal adaptation has learned."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds import World


@register("adaptation")
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None
) -> dict[str, Measured]:
    """Of every SAE that adapts (has ``adaptation()``); the others are left out.

    ``adaptation_beta``, ``adaptation_theta``, ``adaptation_tau``: as learned, means over latents
    where each has its own. ``adaptation_half_life``, group ``q=0.5``: median over latents of
    ln ½ / ln δ_i in tokens; δ = 1 would be a memory without end, 0 none at all.
    """
    found = {}
    adapting: dict[str, Any] = {n: s for n, s in saes.items() if hasattr(s, "adaptation")}
    for name, sae in adapting.items():
        values = {f"adaptation_{of}": getattr(sae, of).double() for of in ("beta", "theta", "tau")}
        rows = [row(of, "all", value.mean(), value.numel()) for of, value in values.items()]
        half_life_F = -math.log(2) / sae.adaptation()[0].double().log()
        median = half_life_F.quantile(0.5)
        rows.append(row("adaptation_half_life", "q=0.5", median, len(half_life_F)))
        found[name] = Measured(rows)
    return found
