r"""Stacked SAEs: the control of the crosscoder, whose places share no latent.

    pre_i[t] = b_i + g[t,j] u[t-j] W_i,     x_hat[t-j] = sum_{i: j(i)=j} z_i[t] d_i + b_dec

Each latent i belongs to one place j = j(i) of the window and reads and writes there alone; the
places have equal shares of the latents and of k, the token's own place the first. The loss is the
crosscoder's (:mod:`tsae.saes.txc`), and ``decode`` gives the token's own place. Parameters: those
of the static SAE, and k active latents a window of w tokens. What needs two tokens at once, no
latent can name. Window 1 is the static SAE exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsae.kernels.sparse import Codes
from tsae.saes import activations
from tsae.saes.base import SAE, Delta, Encoding, State, Tokens
from tsae.saes.config import require, split_by_shares
from tsae.saes.encoding import recent
from tsae.saes.nested import decoded_blocks
from tsae.saes.registry import register
from tsae.saes.shares import Grouped, ReservedTopK
from tsae.saes.txc import TXCConfig, earlier, reach, window_error


@dataclass(frozen=True)
class StackedConfig(TXCConfig):
    """The crosscoder's config."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.k >= self.window, "k", self.k, f"at least the window's places, {self.window}")


@register("stacked", StackedConfig)
class StackedSAE(SAE):
    """The independent dictionaries of the module's equations."""

    cfg: StackedConfig
    place_F: Tensor

    def __init__(self, cfg: StackedConfig):
        super().__init__(cfg)
        self.sizes = split_by_shares(cfg.d_sae, (1 / cfg.window,) * cfg.window)
        place = torch.arange(cfg.window).repeat_interleave(torch.tensor(self.sizes))
        self.register_buffer("place_F", place, persistent=False)

    def make_activation(self) -> nn.Module:
        cfg = self.cfg
        shares = (1 / cfg.window,) * cfg.window
        ks, sizes = split_by_shares(cfg.k, shares), split_by_shares(cfg.d_sae, shares)
        if cfg.window == 1 or cfg.act == "relu":
            return super().make_activation()
        if cfg.act == "topk":
            return ReservedTopK(ks, sizes)
        each = zip(ks, sizes, strict=True)
        return Grouped([activations.make(cfg.act, min(k, n), n, cfg) for k, n in each], sizes)

    @property
    def looks_back(self) -> bool:
        return self.cfg.window > 1

    def delta(self, tokens: Tokens, state: State | None) -> Delta:
        """Every latent's token in the place of the present one."""
        window, T = self.cfg.window, tokens.x_BTD.shape[1]
        if window == 1:
            return Delta()
        x_BTD, context = recent(tokens.x_BTD, tokens.context, state, window)
        u_BTD = tokens.u_BTD if state is None else self.centred(x_BTD, context)
        pairs = []
        for j, g_BT in enumerate(reach(context, window), start=1):
            moved_BTD = (earlier(u_BTD, g_BT, j) - u_BTD)[:, -T:]
            pairs.append((moved_BTD.flatten(0, 1), self.W_enc * (self.place_F == j)))
        return Delta(tuple(pairs))

    def places(self, codes: Codes | Tensor) -> list[Tensor]:
        """``z W_dec`` [N, d] of each place's latents alone."""
        return decoded_blocks(codes, self.W_dec, [*self.sizes, 0])

    def decode(self, z_BTF: Tensor) -> Tensor:
        """``x_hat`` [B, T, d] of the tokens' own place."""
        n = self.sizes[0]
        return z_BTF[..., :n] @ self.W_dec[:n] + self.b_dec

    def decoded(self, codes: Codes | Tensor) -> Tensor:
        return self.places(codes)[0]

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``window``: the error at the places before the last, summed over them."""
        if self.cfg.window == 1:
            return {}
        return {"window": window_error(self.places(enc.codes)[1:], enc)}
