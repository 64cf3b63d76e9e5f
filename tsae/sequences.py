"""What a text is to this library: sequences of tokens with documents, boundaries and labels.

Shape suffixes, here and everywhere: B sequences of a batch, T tokens of a sequence, N = B T
tokens, D width of the residual stream, F latents, G groups of latents, L lags.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")
"""Train on the first, choose on the second, read the third once; no document is in two of them."""
SCALES = ("document", "section", "token")
"""Time scales of a label, slowest first."""
SENTENCE, SECTION, DOCUMENT = 1, 2, 3
"""Boundary levels: what starts at a token (0: nothing). No context ever crosses a document's."""


class Sequence(NamedTuple):
    """``T`` tokens that a model reads at once; position 0 is BOS.

    ``tokens`` int32 [T]; ``doc`` int32 [T], −1 at BOS and padding; ``boundary`` uint8 [T], the
    level that starts at the token (0 none, 1 sentence, 2 section, 3 document; BOS and the first
    token after it are 3, because context is cut there); ``labels`` int16 [T] each, −1 where one
    does not apply.
    """

    tokens: np.ndarray
    doc: np.ndarray
    boundary: np.ndarray
    labels: dict[str, np.ndarray]


@dataclass(frozen=True)
class LabelSpec:
    """One label: its name, the time scale on which it changes, and its classes in index order."""

    name: str
    scale: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale!r}; allowed are {', '.join(SCALES)}")
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError(f"classes of label {self.name!r} must be distinct and not empty")


class TextSource(Protocol):
    """What a store is harvested from: a language model and the sequences that it reads.

    A source without a language model has ``activations`` of its own, tokens_BT → x_BTD.
    """

    name: str
    fingerprint: str
    seq_len: int
    d_model: int
    n_layers: int
    label_specs: dict[str, LabelSpec]

    def model(self, device: str = "cpu") -> Any:
        """The language model as a TransformerBridge, in eval mode, without gradients."""

    def sequences(self, split: str, limit_tokens: int | None = None) -> Iterator[Sequence]:
        """Packed sequences of ``split``; the same ones every time."""


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
