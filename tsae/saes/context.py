"""What an encoder is told about the tokens beside their activations."""

from typing import NamedTuple

import torch
from torch import Tensor

from tsae.sequences import DOCUMENT


def in_levels(boundary: Tensor) -> bool:
    """Whether all entries are levels, 0 to 3."""
    return bool(((boundary >= 0) & (boundary <= DOCUMENT)).all())


class SequenceContext(NamedTuple):
    """Per token: is it valid, and which boundary level starts at it.

    ``mask_BT`` bool (or 0 and 1), False at BOS, padding and massive activations (None: all valid).
    ``boundary_BT`` uint8: 0 none, 1 sentence, 2 section, 3 document (None: none inside). The
    first token of a sequence always starts a document.
    """

    mask_BT: Tensor | None = None
    boundary_BT: Tensor | None = None

    def filled(self, x_BTD: Tensor) -> "FilledContext":
        """Both tensors present, of their types, on the device of ``x``.

        A mask of another type may hold 0 and 1 alone (Hugging Face's ``attention_mask`` does), a
        boundary of another whole type 0 to 3. Raises ``ValueError`` for others and wrong shapes.
        """
        shape = x_BTD.shape[:2]
        mask, boundary = self
        if mask is None:
            mask = torch.ones(shape, dtype=torch.bool, device=x_BTD.device)
        if boundary is None:
            boundary = torch.zeros(shape, dtype=torch.uint8, device=x_BTD.device)
        for name, tensor in (("mask_BT", mask), ("boundary_BT", boundary)):
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, x has {tuple(shape)}.")
        if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask_BT must be True or 1 at valid tokens and False or 0 at others.")
        kind, whole = boundary.dtype, not boundary.is_floating_point()
        if kind == torch.bool or not whole or (kind != torch.uint8 and not in_levels(boundary)):
            raise ValueError(
                f"boundary_BT ({kind}) must hold the level that starts at each token, 0 none, 1 "
                "sentence, 2 section, 3 document; where documents start, give 3."
            )
        boundary = boundary.to(x_BTD.device, torch.uint8, copy=True)
        boundary[:, 0] = DOCUMENT
        return FilledContext(mask.to(x_BTD.device, torch.bool), boundary)


class FilledContext(SequenceContext):
    """A context of which both tensors are there, as :meth:`SequenceContext.filled` returns it."""

    mask_BT: Tensor
    boundary_BT: Tensor
