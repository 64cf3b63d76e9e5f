r"""What every intervention is: a change of codes whose effect alone reaches the residual stream.

    x  = scale · raw,   z = encode(x),   z' = ``edited(z)``
    raw' = raw + (decode(z') − decode(z)) / scale      where z'[t] ≠ z[t],      raw' = raw elsewhere

so the error term x − decode(z) is kept, and a token whose codes stay keeps every bit. Shapes: raw
and x [B, T, d], z [B, T, F]. Units: x in the store's, in which E‖x − mean‖² = d.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from tsae.saes.base import DOCUMENT, SAE, FilledContext, SequenceContext, require


class Edit(ABC):
    """A callable ``raw_BTD -> raw_BTD`` for ``models.logits_with`` and ``models.generate_with``.

    A strategy is a subclass in a file of its own that says, in :meth:`edited`, what the codes
    become. ``latents``: the K latent ids it may set; a chosen latent is set to

        −m · unit                    (``relative=False``; ``unit`` is sqrt(d) / 100 by default)
        −m · ‖x[t]‖ / 100            (``relative=True``)

    with the multiplier m. As sqrt(d) is the root mean square of ‖x − mean‖, m reads in both as *per
    cent of a residual's norm*, the typical token's or the token's own, so that one grid of m means
    the same push on every model, layer and width. SAEBench's m counts raw codes, whose meaning
    changes with the model's norm: ``unit=scale`` gives exactly that.

    Never edited: position 0 (BOS), tokens outside the context's mask, and tokens whose raw norm
    exceeds ``massive_norm``. Without a context (see :meth:`within`) all other tokens are valid and
    no boundary lies inside the sequence. ``touched`` and ``seen`` count edited and valid tokens
    since :meth:`reset`; ``touched_BT`` is the last call's.

    Raises ValueError on a bad value, a latent out of range, and an SAE in training mode (its
    batchtopk would couple tokens).
    """

    strategy: str

    def __init__(
        self,
        sae: SAE,
        latents: Tensor | Iterable[int],
        multiplier: float,
        scale: float,
        relative: bool = False,
        *,
        unit: float | None = None,
        massive_norm: float = math.inf,
    ) -> None:
        device = sae.W_dec.device
        self.sae = sae
        self.latents = torch.as_tensor(latents, dtype=torch.long, device=device).flatten()
        self.multiplier, self.scale, self.relative = multiplier, scale, relative
        self.unit = math.sqrt(sae.cfg.d_in) / 100 if unit is None else unit
        self.massive_norm = massive_norm
        for field in ("multiplier", "scale", "unit"):
            value = getattr(self, field)
            require(0 < value < math.inf, field, value, "above 0 and finite")
        require(massive_norm > 0, "massive_norm", massive_norm, "above 0")
        require(not sae.training, "sae.training", True, "False; call sae.eval() first")
        ids, F = self.latents, sae.cfg.d_sae
        inside = bool(((ids >= 0) & (ids < F)).all()) and len(ids.unique()) == len(ids)
        require(inside, "latents", ids.tolist(), f"distinct ids from 0 to {F - 1}")
        self.context = SequenceContext()
        self.reset()

    def reset(self) -> None:
        """Forget the counts of touched and seen tokens."""
        self.touched = self.seen = 0
        self.touched_BT: Tensor | None = None

    @property
    def touched_share(self) -> float:
        """Edited over valid tokens since :meth:`reset`; NaN before the first call."""
        return self.touched / self.seen if self.seen else float("nan")

    @property
    def triggers(self) -> Tensor:
        """Latents of which at least one has to fire in a sequence for anything to be edited."""
        return self.latents

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
        given = self.context
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
        mask_BT &= raw_BTD.norm(dim=-1) <= self.massive_norm
        return FilledContext(mask_BT, boundary_BT)

    def target(self, x_BTD: Tensor) -> Tensor:
        """The value [B, T, 1] to which a latent is set."""
        if self.relative:
            return -self.multiplier / 100 * x_BTD.norm(dim=-1, keepdim=True)
        return torch.full_like(x_BTD[..., :1], -self.multiplier * self.unit)

    @abstractmethod
    def edited(self, z_BTF: Tensor, x_BTD: Tensor, context: FilledContext) -> Tensor:
        """The new codes z' [B, T, F]; may depend on the same and earlier tokens alone."""

    def codes(self, raw_BTD: Tensor) -> tuple[Tensor, Tensor, FilledContext]:
        """Normalised x [B, T, d], its codes z [B, T, F], and the context they were made in."""
        context = self.context_of(raw_BTD)
        x_BTD = raw_BTD.float() * self.scale
        return x_BTD, self.sae.encode(x_BTD, context), context

    @torch.no_grad()
    def __call__(self, raw_BTD: Tensor) -> Tensor:
        x_BTD, z_BTF, context = self.codes(raw_BTD)
        new_BTF = self.edited(z_BTF, x_BTD, context)
        self.touched_BT = (new_BTF != z_BTF).any(-1) & context.mask_BT
        self.touched += int(self.touched_BT.sum())
        self.seen += int(context.mask_BT.sum())
        rows = self.touched_BT.any(1)
        if not rows.any():
            return raw_BTD
        shift = torch.zeros_like(x_BTD)  # whole sequences, since a decoder may have memory
        shift[rows] = self.sae.decode(new_BTF[rows]) - self.sae.decode(z_BTF[rows])
        moved_BTD = raw_BTD + (shift / self.scale).to(raw_BTD.dtype)
        return torch.where(self.touched_BT[..., None], moved_BTD, raw_BTD)
