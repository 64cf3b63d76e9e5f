r"""What passes between the parts of an SAE: the batch, what a variant adds to it, what came out.

    pre[t] = u[t] W_enc + b_enc + Delta[t],    Delta[t] = sum_j u_j[t] W_j + dense[t]

``Tokens`` is what a variant's ``delta`` reads, :class:`Delta` what it answers, and
:class:`Encoding` is made once a step and handed to everything that is computed from it.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tsae.kernels.sparse import Codes
from tsae.sequences import DOCUMENT, FilledContext

if TYPE_CHECKING:
    from tsae.saes.base import SAE

State = dict[str, Any]
"""What a stream remembers between two tokens; empty before the first, filled by ``delta``."""


class Tokens:
    """A batch as the static encoder sees it; a product that several parts need is made once.

    ``x_BTD``, ``context``, ``u_BTD`` = x - b_dec (0 at invalid tokens). ``learn``: whether this is
    a training step, in which running averages move. ``sparse``: whether the encoder's gradient is
    that of the active latents alone.
    """

    def __init__(
        self,
        sae: "SAE",
        x_BTD: Tensor,
        context: FilledContext,
        learn: bool = False,
        sparse: bool = False,
    ):
        self.sae, self.x_BTD, self.context = sae, x_BTD, context
        self.learn, self.sparse = learn, sparse
        self.mask_N = context.mask_BT.flatten()
        self.u_BTD = sae.centred(x_BTD, context)
        self.first: list[Tensor] = []

    def pair(self) -> tuple[Tensor, Tensor]:
        """u [N, d] and the bias, the same in value, with a cheap gradient of b_dec.

        Of the gradient of x - b_dec only the sum over tokens is wanted, unless x asks for its own,
        and the bias has that sum already: what is added is zero, and its gradient is a product of
        vectors where that of x - b_dec is one of matrices.
        """
        sae, u_ND = self.sae, self.u_BTD.flatten(0, 1)
        if self.x_BTD.requires_grad or not torch.is_grad_enabled():
            return u_ND, sae.b_enc
        zero_F = (sae.b_dec - sae.b_dec.detach()) @ sae.W_enc.detach()
        return u_ND.detach(), sae.b_enc - zero_F

    def total(self, delta: "Delta") -> Tensor:
        """``pre`` of the equations [N, F], whose gradient is one of all latents."""
        u_ND, bias_F = self.pair()
        pre_NF = sum((u @ W for u, W in delta.pairs), u_ND @ self.sae.W_enc) + bias_F
        if delta.dense is not None:
            pre_NF = pre_NF + delta.dense
        for number, slope_NF in delta.slopes:
            pre_NF = pre_NF + (number - number.detach()) * slope_NF
        return pre_NF

    @property
    def static_NF(self) -> Tensor:
        """The static pre-activation ``u W_enc + b_enc`` [N, F], without a gradient."""
        if not self.first:
            with torch.no_grad():
                u_ND = self.u_BTD.flatten(0, 1)
                self.first = [torch.addmm(self.sae.b_enc, u_ND, self.sae.W_enc)]
        return self.first[0]


class Delta(NamedTuple):
    """What a variant adds to the static pre-activation, and what it needs later.

    ``pairs``: (u_j [N, d_j], W_j [d_j, F]). ``dense`` [N, F], without a gradient; ``slopes``: its
    derivatives (p, d dense / d p [N, F]) by numbers p, one for all latents or one for each [F].
    ``x_BTD``: what the codes read and reconstruct in place of x. ``beside``: parts of x_hat [N, d]
    that no code accounts for. ``aux``: for the own terms.
    """

    pairs: tuple[tuple[Tensor, Tensor], ...] = ()
    dense: Tensor | None = None
    slopes: tuple[tuple[Tensor, Tensor], ...] = ()
    x_BTD: Tensor | None = None
    beside: dict[str, Tensor] = {}  # noqa: RUF012
    aux: dict[str, Any] = {}  # noqa: RUF012


class Encoding(NamedTuple):
    """What one encoding of a batch gives; N = B T tokens, invalid ones 0.

    ``codes``: z [N, F], sparse or dense. ``pre`` [N, F]. ``target`` [N, d]: what the codes
    reconstruct, x - b_dec or what :attr:`Delta.x_BTD` leaves of it. ``beside`` and ``aux`` are the
    variant's (:class:`Delta`); ``pairs`` are all that ``pre`` is the sum of, b_enc aside.
    """

    codes: Codes | Tensor
    pre: Tensor
    target: Tensor
    beside: dict[str, Tensor]
    aux: dict[str, Any]
    pairs: tuple[tuple[Tensor, Tensor], ...]
    context: FilledContext

    @property
    def mask_N(self) -> Tensor:
        """Which tokens are valid."""
        return self.context.mask_BT.flatten()

    @property
    def n(self) -> Tensor:
        """How many tokens are valid, at least 1."""
        return self.context.mask_BT.sum().clamp_min(1)

    @property
    def z_NF(self) -> Tensor:
        """The codes, dense."""
        return self.codes if isinstance(self.codes, Tensor) else self.codes.dense()


def recent(
    x_BTD: Tensor, context: FilledContext, state: State | None, width: int
) -> tuple[Tensor, FilledContext]:
    """The batch itself; in a stream, the last ``width`` tokens of each text, this one included."""
    if state is None:
        return x_BTD, context
    if not state:
        shape = (len(x_BTD), width)
        state["x"] = x_BTD.new_zeros(*shape, x_BTD.shape[2])
        state["mask"] = torch.zeros(shape, dtype=torch.bool, device=x_BTD.device)
        state["boundary"] = torch.full(shape, DOCUMENT, dtype=torch.uint8, device=x_BTD.device)
    for name, now in (("x", x_BTD), ("mask", context.mask_BT), ("boundary", context.boundary_BT)):
        kept = state[name]
        kept[:, :-1] = kept[:, 1:].clone()
        kept[:, -1] = now[:, 0]
    return state["x"], FilledContext(state["mask"], state["boundary"])


class SAEOutput(NamedTuple):
    """What ``forward`` returns: reconstruction, codes, pre-activations, and ``beside``, the parts
    [B, T, d] of the reconstruction that no code accounts for."""

    x_hat: Tensor
    z: Tensor
    pre: Tensor
    beside: dict[str, Tensor]


def check_input(x_BTD: Tensor, W_DF: Tensor) -> None:
    """Raise ``ValueError`` unless x is what an encoder ``W`` [d, F] reads."""
    if not isinstance(x_BTD, Tensor):
        kind = type(x_BTD).__name__
        raise ValueError(f"x is a {kind}; give a tensor, torch.as_tensor(x).float().")
    if x_BTD.ndim != 3 or x_BTD.shape[-1] != len(W_DF) or x_BTD.numel() == 0:
        raise ValueError(
            f"x has shape {tuple(x_BTD.shape)}; this SAE reads [B, T, {len(W_DF)}] with at least "
            "one token."
        )
    if x_BTD.dtype != W_DF.dtype:
        raise ValueError(f"x is {x_BTD.dtype}, this SAE {W_DF.dtype}: give x.to({W_DF.dtype}).")
    if x_BTD.device != W_DF.device:
        raise ValueError(f"x is on {x_BTD.device}, this SAE on {W_DF.device}: move one of them.")
