r"""An edit of the residual stream: *when* (a gate) and *what* (a push), each chosen apart.

    x  = scale · raw,   z = encode(x),   v = push(x, z)                     v [B, T, d]
    raw' = raw + v / scale      at valid tokens where the gate is open and v ≠ 0,   raw elsewhere
    matched:  v ← (m / 100) ‖x‖ v / ‖v‖                   so that all pushes cost the same energy

A push through codes moves decode(z') − decode(z), so the error term x − decode(z) is kept, and a
token that is left alone keeps every bit. Shapes: raw and x [B, T, d], z [B, T, F]. Units: x in the
store's, in which E‖x − mean‖² = d.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from lab.edits.gate import Gate
from tsae.saes.base import SAE
from tsae.saes.config import require
from tsae.sequences import DOCUMENT, FilledContext, SequenceContext


class Push(ABC):
    """What an edit does, in a file of its own; ``latents``: the K latent ids that it may set."""

    latents: Tensor

    @abstractmethod
    def shift(
        self, sae: SAE, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext, m: float, unit: float
    ) -> Tensor:
        """v [B, T, d] at strength m, 0 where it does nothing; looks at the past alone."""


def distinct(latents: Tensor | Iterable[int], sae: SAE) -> Tensor:
    """The ids as int64 [K] on the SAE's device; ValueError for one that is none, or given twice."""
    ids = torch.as_tensor(latents, dtype=torch.long, device=sae.W_dec.device).flatten()
    F = sae.cfg.d_sae
    inside = bool(((ids >= 0) & (ids < F)).all()) and len(ids.unique()) == len(ids)
    require(inside, "latents", ids.tolist(), f"distinct ids from 0 to {F - 1}")
    return ids


class Edit:
    """A callable ``raw_BTD -> raw_BTD`` for ``models.logits_with``.

    ``m`` is the strength in per cent of a residual's norm: of the token's own where the energy is
    ``matched``; else of the typical one (``unit`` = √d / 100) *for each latent*, as in SAEBench,
    whose m counts raw codes (``unit=scale``). Without a ``gate`` every valid token is open.

    Never edited: position 0 (BOS), tokens outside the context's mask, and tokens whose raw norm
    exceeds ``massive_norm``. Without a context (see :meth:`within`) all other tokens are valid and
    no boundary lies inside the sequence. ``touched_BT`` is the last call's, as is ``seen_BT``, the
    valid tokens. Raises ValueError on a bad value, and for an SAE in training mode (its batchtopk
    would couple tokens).
    """

    def __init__(
        self,
        sae: SAE,
        push: Push,
        m: float,
        scale: float,
        *,
        gate: Gate | None = None,
        matched: bool = False,
        unit: float | None = None,
        massive_norm: float = math.inf,
    ) -> None:
        self.sae, self.push, self.gate, self.matched = sae, push, gate, matched
        self.m, self.scale, self.massive_norm = m, scale, massive_norm
        self.unit = math.sqrt(sae.cfg.d_in) / 100 if unit is None else unit
        for field in ("m", "scale", "unit"):
            value = getattr(self, field)
            require(0 < value < math.inf, field, value, "above 0 and finite")
        require(massive_norm > 0, "massive_norm", massive_norm, "above 0")
        require(not sae.training, "sae.training", True, "False; call sae.eval() first")
        self.context = SequenceContext()
        self.touched_BT: Tensor
        self.seen_BT: Tensor

    def within(self, context: SequenceContext) -> "Edit":
        """This edit, from now on with the mask and boundaries of the batch that it will be given.

        A longer batch (generation) is allowed: what lies beyond the context is valid, and no
        boundary starts there. Returns the edit itself.
        """
        self.context = context
        return self

    def context_of(self, raw_BTD: Tensor) -> FilledContext:
        """The context at the length of ``raw``, with BOS and massive tokens masked.

        Raises ValueError when the given context is of another batch or longer than ``raw``.
        """
        return context_of(self.context, raw_BTD, self.massive_norm)

    def codes(self, raw_BTD: Tensor) -> tuple[Tensor, Tensor, FilledContext]:
        """Normalised x [B, T, d], its codes z [B, T, F], and the context they were made in."""
        context = self.context_of(raw_BTD)
        x_BTD = raw_BTD.float() * self.scale
        return x_BTD, self.sae.encode(x_BTD, context), context

    def shift(self, raw_BTD: Tensor) -> Tensor:
        """v [B, T, d] in the store's units, 0 at tokens that are left alone."""
        x_BTD, z_BTF, context = self.codes(raw_BTD)
        open_BT = context.mask_BT
        if self.gate is not None:
            open_BT = open_BT & self.gate.open(x_BTD, z_BTF, context)
        m = 100.0 if self.matched else self.m
        v_BTD = x_BTD.new_zeros(x_BTD.shape)
        rows = open_BT.any(1)  # whole sequences, since a decoder may have memory
        if rows.any():
            here = FilledContext(context.mask_BT[rows], context.boundary_BT[rows])
            v_BTD[rows] = self.push.shift(self.sae, x_BTD[rows], z_BTF[rows], here, m, self.unit)
        norm_BT = v_BTD.norm(dim=-1)
        self.seen_BT, self.touched_BT = context.mask_BT, open_BT & (norm_BT > 0)
        if self.matched:
            ratio_BT = self.m / 100 * x_BTD.norm(dim=-1) / norm_BT.clamp_min(1e-12)
            v_BTD = v_BTD * ratio_BT[..., None]
        return torch.where(self.touched_BT[..., None], v_BTD, 0.0)

    @torch.no_grad()
    def __call__(self, raw_BTD: Tensor) -> Tensor:
        v_BTD = self.shift(raw_BTD)
        moved_BTD = raw_BTD + (v_BTD / self.scale).to(raw_BTD.dtype)
        return torch.where(self.touched_BT[..., None], moved_BTD, raw_BTD)


def context_of(given: SequenceContext, raw_BTD: Tensor, massive_norm: float) -> FilledContext:
    """See :meth:`Edit.context_of`."""
    shape, device = raw_BTD.shape[:2], raw_BTD.device
    filled = []
    for part, value, kind in (
        (given.mask_BT, True, torch.bool),
        (given.boundary_BT, 0, torch.uint8),
    ):
        whole = torch.full(shape, value, dtype=kind, device=device)
        if part is not None:
            if part.shape[0] != shape[0] or part.shape[1] > shape[1]:
                raise ValueError(
                    f"the context has shape {tuple(part.shape)}; the residual has "
                    f"{tuple(shape)}, and only its length may be larger."
                )
            whole[:, : part.shape[1]] = part.to(device, kind)
        filled.append(whole)
    mask_BT, boundary_BT = filled
    mask_BT[:, 0] = False
    boundary_BT[:, :2] = DOCUMENT  # context is cut at BOS and at the first token after it
    mask_BT &= raw_BTD.norm(dim=-1) <= massive_norm
    return FilledContext(mask_BT, boundary_BT)
