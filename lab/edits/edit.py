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
from typing import Any

import torch
from torch import Tensor

from lab.edits.gate import Gate
from lab.edits.ranking import Read
from tsae.saes.base import SAE
from tsae.saes.config import require
from tsae.sequences import DOCUMENT, FilledContext, SequenceContext


class Push(ABC):
    """What an edit does; ``latents``: the K latent ids that it may set."""

    latents: Tensor

    @abstractmethod
    def shift(self, sae: SAE, read: Read, share: float) -> Tensor:
        """v [B, T, d] at strength ``share`` = m / 100, 0 where it does nothing; looks at the past
        alone."""


class CodePush(Push):
    """A push whose v is decode(z') − decode(z)."""

    @abstractmethod
    def values(self, sae: Any, read: Read, share: float) -> Tensor:
        """z' [B, T, K] of ``latents``."""

    def shift(self, sae: SAE, read: Read, share: float) -> Tensor:
        """See :meth:`Push.shift`."""
        new_BTF = read.z_BTF.clone()
        new_BTF[..., self.latents] = self.values(sae, read, share)
        moves_BT1 = (new_BTF != read.z_BTF).any(-1, keepdim=True)
        return torch.where(moves_BT1, sae.decode(new_BTF) - sae.decode(read.z_BTF), 0.0)


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
    ``matched``; else of the typical one, √d, *for each latent*. Without a ``gate`` every valid
    token is open.

    Never edited: position 0 (BOS), tokens outside the context's mask, and tokens whose raw norm
    exceeds ``massive_norm``. Without a context (see :meth:`within`) all other tokens are valid and
    no boundary lies inside the sequence. ``touched_BT`` is the last call's. Raises ValueError on a
    bad value, and for an SAE in training mode (its batchtopk would couple tokens).
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
        massive_norm: float = math.inf,
    ) -> None:
        self.sae, self.push, self.gate, self.matched = sae, push, gate, matched
        self.m, self.scale, self.massive_norm = m, scale, massive_norm
        require(0 < m < math.inf, "m", m, "above 0 and finite")
        require(0 < scale < math.inf, "scale", scale, "above 0 and finite")
        require(not sae.training, "sae.training", True, "False; call sae.eval() first")
        self.context = SequenceContext()
        self.touched_BT: Tensor

    def within(self, context: SequenceContext) -> "Edit":
        """This edit, from now on with the mask and boundaries of the batch that it will be given.

        A longer batch (generation) is allowed: what lies beyond the context is valid, and no
        boundary starts there. Returns the edit itself.
        """
        self.context = context
        return self

    def read(self, raw_BTD: Tensor) -> Read:
        """Normalised x, its codes, and the context they were made in."""
        context = context_of(self.context, raw_BTD, self.massive_norm)
        x_BTD = raw_BTD.float() * self.scale
        return Read(x_BTD, self.sae.encode(x_BTD, context), context)

    @torch.no_grad()
    def __call__(self, raw_BTD: Tensor) -> Tensor:
        """The edited residual; every token that is left alone keeps its bits."""
        read = self.read(raw_BTD)
        open_BT = read.context.mask_BT
        if self.gate is not None:
            open_BT = open_BT & self.gate.open(read)
        share = 1.0 if self.matched else self.m / 100
        v_BTD = torch.zeros_like(read.x_BTD)
        rows = open_BT.any(1)  # whole sequences, since a decoder may have memory
        if rows.any():
            v_BTD[rows] = self.push.shift(self.sae, read.rows(rows), share)
        norm_BT1 = v_BTD.norm(dim=-1, keepdim=True)
        self.touched_BT = open_BT & (norm_BT1[..., 0] > 0)
        if self.matched:
            x_BT1 = read.x_BTD.norm(dim=-1, keepdim=True)
            v_BTD = v_BTD * (self.m / 100 * x_BT1 / norm_BT1.clamp_min(1e-12))
        moved_BTD = raw_BTD + (v_BTD / self.scale).to(raw_BTD.dtype)
        return torch.where(self.touched_BT[..., None], moved_BTD, raw_BTD)


def context_of(given: SequenceContext, raw_BTD: Tensor, massive_norm: float) -> FilledContext:
    """The context at the length of ``raw``, with BOS and massive tokens masked; ValueError for one
    of another batch, or longer."""
    B, T = raw_BTD.shape[:2]
    mask_BT = torch.ones(B, T, dtype=torch.bool, device=raw_BTD.device)
    boundary_BT = torch.zeros(B, T, dtype=torch.uint8, device=raw_BTD.device)
    for whole_BT, part in ((mask_BT, given.mask_BT), (boundary_BT, given.boundary_BT)):
        if part is not None:
            fits = part.shape[0] == B and part.shape[1] <= T
            require(fits, "context", tuple(part.shape), f"of {B} rows of at most {T} tokens")
            whole_BT[:, : part.shape[1]] = part
    mask_BT[:, 0] = False
    boundary_BT[:, :2] = DOCUMENT  # context is cut at BOS and at the first token after it
    return FilledContext(mask_BT & (raw_BTD.norm(dim=-1) <= massive_norm), boundary_BT)
