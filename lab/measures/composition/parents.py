"""Level 2 of a ``hierarchical`` SAE, read as an SAE of its own."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from tsae.saes.base import SAEOutput, SequenceContext
from tsae.saes.hierarchical import HierarchicalSAE


class Parents:
    """Codes h2 [B, T, F2], reconstruction x2 = h2 D2 W_dec + b; the weights are those of ``sae``.

    What a family asks of an SAE (call, ``encode``, ``decode``, ``W_dec``, ``cfg``, ``groups``,
    ``meta``, ``name``), so that it measures parents as it measures latents. Calling raises
    ``ValueError`` when ``sae`` has one level.
    """

    def __init__(self, sae: HierarchicalSAE):
        cfg = sae.cfg
        self.sae, self.meta, self.name = sae, sae.meta, f"parents({sae.name})"
        self.groups: dict[str, Tensor] = {}  # level 1's groups are of other latents
        size: dict[str, Any] = {"levels": 1, "ratio": 1, "d_sae": cfg.n_parents}
        active: dict[str, Any] = {
            "act": cfg.act2 or cfg.act,
            "k": cfg.parents_per_token,
            "k2": None,
        }
        self.cfg = replace(cfg, **size, **active)
        self.parameters = sae.parameters

    @property
    def W_dec(self) -> Tensor:
        """[F2, d] what one unit of each parent adds to x2; not of norm 1."""
        return self.sae.D2 @ self.sae.W_dec

    def encode(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        return self.sae.parents(x_BTD, context)

    def decode(self, z: Tensor) -> Tensor:
        return self.sae.decode_parents(z)

    def __call__(self, x_BTD: Tensor, context: SequenceContext | None = None) -> SAEOutput:
        """``pre`` is h2 itself: what went into its activation is not kept."""
        h2 = self.encode(x_BTD, context)
        return SAEOutput(self.decode(h2), h2, h2, {})
