"""What an encoder is told about the tokens beside their activations."""

from typing import NamedTuple

import torch
from torch import Tensor

from tsae.sequences import DOCUMENT


class SequenceContext(NamedTuple):
    """Per token: is it valid, and which boundary level starts at it.

    ``mask_BT`` bool, False at BOS, padding and massive activations (None: all valid).
    ``boundary_BT`` uint8: 0 none, 1 sentence, 2 section, 3 document (None: none inside). The
    first token of a sequence always starts a document.
    """

    mask_BT: Tensor | None = None
    boundary_BT: Tensor | None = None

    def filled(self, x_BTD: Tensor) -> "FilledContext":
        """Both tensors present, on the device of ``x``. Raises ``ValueError`` on a wrong shape."""
        shape = x_BTD.shape[:2]
        mask, boundary = self
        if mask is None:
            mask = torch.ones(shape, dtype=torch.bool, device=x_BTD.device)
        if boundary is None:
            boundary = torch.zeros(shape, dtype=torch.uint8, device=x_BTD.device)
        for name, tensor in (("mask_BT", mask), ("boundary_BT", boundary)):
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, x has {tuple(shape)}.")
        boundary = boundary.to(x_BTD.device).clone()
        boundary[:, 0] = DOCUMENT
        return FilledContext(mask.to(x_BTD.device), boundary)


class FilledContext(SequenceContext):
    """A context of which both tensors are there, as :meth:`SequenceContext.filled` returns it."""

    mask_BT: Tensor
    boundary_BT: Tensor
