r"""Temporal crosscoder: one code for a window of tokens, with its own weights at each place.

    pre[t] = b_enc + sum_{j<w} g[t,j] u[t-j] W_j,     u = x - b_dec
    z[t]   = act(pre[t]),     x_hat[t-j] = z[t] D_j + b_dec
    loss   = sum_{j<w} mean_t g[t,j] |x[t-j] - x_hat[t-j]|^2 / d  +  sparsity  +  AuxK

g[t,j] is 1 where token t-j lies in the document of t, else 0. W_0 and D_0 are the static SAE's
encoder and decoder, so the code of a token is that of the window which ends there: it reads no
later token, and ``decode`` gives the token's own place. Every token has a window of its own, so k
is the number of active latents of a token *and* of a window; windows that do not overlap spend k/w
a token at the same k. Parameters: w times those of the static SAE; d_sae/w latents match them.
Window 1 is the static SAE exactly.

Source: "Crosscoding Through Time" (Mech Interp Workshop, ICML 2026), window 5 there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsae.kernels import sparse
from tsae.saes.base import SAE, Delta, Encoding, SAEConfig, State, Tokens
from tsae.saes.config import require
from tsae.saes.encoding import recent
from tsae.saes.registry import register
from tsae.sequences import DOCUMENT, FilledContext


@dataclass(frozen=True)
class TXCConfig(SAEConfig):
    """The static config plus the window."""

    window: int = 5
    """Tokens w that one code explains: its own and w - 1 predecessors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        window = self.window
        require(isinstance(window, int) and window >= 1, "window", window, "a whole number >= 1")


def reach(context: FilledContext, window: int) -> list[Tensor]:
    """``g`` [B, T] for j = 1 … window-1: whether token t-j is in the document of t."""
    open_BT = context.boundary_BT < DOCUMENT
    reaches, g = [], torch.ones_like(open_BT)
    for _ in range(1, window):
        g = open_BT & nn.functional.pad(g[:, :-1], (1, 0))
        reaches.append(g)
    return reaches


def earlier(u_BTD: Tensor, g_BT: Tensor, j: int) -> Tensor:
    """``g[t,j] u[t-j]`` [B, T, d]."""
    return nn.functional.pad(u_BTD, (0, 0, j, 0))[:, : u_BTD.shape[1]] * g_BT[..., None]


def window_error(made: list[Tensor], enc: Encoding) -> Tensor:
    """``sum_j mean_t |u[t-j] - made_j[t]|^2 / d`` of reconstructions [N, d], j = 1 … w-1, at the
    tokens that have a valid token of their document there."""
    mask_BT, total = enc.context.mask_BT, enc.target.new_zeros(())
    u_BTD = enc.target.unflatten(0, mask_BT.shape)
    for j, (g_BT, made_ND) in enumerate(
        zip(reach(enc.context, len(made) + 1), made, strict=True), 1
    ):
        there_BT = g_BT & mask_BT & nn.functional.pad(mask_BT, (j, 0))[:, : mask_BT.shape[1]]
        error_BTD = made_ND.unflatten(0, mask_BT.shape) - earlier(u_BTD, there_BT, j)
        total = total + (error_BTD * there_BT[..., None]).square().sum()
    return total / (enc.n * u_BTD.shape[2])


@register("txc", TXCConfig)
class TXCSAE(SAE):
    """The crosscoder of the module's equations."""

    cfg: TXCConfig

    def __init__(self, cfg: TXCConfig):
        super().__init__(cfg)
        places = max(cfg.window - 1, 0)
        self.W_past = nn.Parameter(self.W_enc.detach().repeat(places, 1, 1) / cfg.window**0.5)
        self.D_past = nn.Parameter(self.W_dec.detach().repeat(places, 1, 1))

    @property
    def looks_back(self) -> bool:
        return self.cfg.window > 1

    def delta(self, tokens: Tokens, state: State | None) -> Delta:
        window, T = self.cfg.window, tokens.x_BTD.shape[1]
        if window == 1:
            return Delta()
        x_BTD, context = recent(tokens.x_BTD, tokens.context, state, window)
        u_BTD = tokens.u_BTD if state is None else self.centred(x_BTD, context)
        places = zip(reach(context, window), self.W_past, strict=True)
        lagged = [(earlier(u_BTD, g_BT, j), W) for j, (g_BT, W) in enumerate(places, start=1)]
        return Delta(tuple((u[:, -T:].flatten(0, 1), W) for u, W in lagged))

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``window``: the error at the places before the last, summed over them."""
        if self.cfg.window == 1:
            return {}
        z = enc.codes
        made = [z @ D if isinstance(z, Tensor) else sparse.decode(z, D) for D in self.D_past]
        return {"window": window_error(made, enc)}
