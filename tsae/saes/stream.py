"""Token-by-token encoding, as a deployed model would need it."""

from typing import TYPE_CHECKING

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
        """Codes [B, F] of the next token. ``boundary_B`` uint8, ``mask_B`` bool (None: valid)."""
        mask = None if mask_B is None else mask_B[:, None]
        return self.sae.encode(x_BD[:, None], SequenceContext(mask))[:, 0]
