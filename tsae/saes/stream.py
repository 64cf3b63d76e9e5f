"""Token-by-token encoding, as a deployed model would need it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsae.saes.context import SequenceContext

if TYPE_CHECKING:
    from tsae.saes.base import SAE


class Stream:
    """Encodes B parallel texts one token at a time; the static SAE needs no state."""

    def __init__(self, sae: "SAE", batch_size: int):
        self.sae = sae
        self.batch_size = batch_size

    def step(
        self, x_BD: Tensor, boundary_B: Tensor | None = None, mask_B: Tensor | None = None
    ) -> Tensor:
        """Codes [B, F] of the next token. ``boundary_B`` uint8, ``mask_B`` bool (None: valid).

        Raises ``ValueError`` on a wrong shape or type.
        """
        if tuple(x_BD.shape) != (self.batch_size, self.sae.cfg.d_in):
            raise ValueError(
                f"x has shape {tuple(x_BD.shape)}; this stream reads [{self.batch_size}, "
                f"{self.sae.cfg.d_in}]."
            )
        context = SequenceContext(
            *(None if part is None else part[:, None] for part in (mask_B, boundary_B))
        ).filled(x_BD[:, None])
        mask_B = context.mask_BT[:, 0]
        boundary_B = None if boundary_B is None else boundary_B.to(torch.uint8)
        return self.advance(x_BD, boundary_B, mask_B)

    def advance(self, x_BD: Tensor, boundary_B: Tensor | None, mask_B: Tensor) -> Tensor:
        """:meth:`step` on what was checked."""
        return self.sae.encode(x_BD[:, None], SequenceContext(mask_B[:, None]))[:, 0]
