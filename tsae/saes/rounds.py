r"""Two rounds of selection and one joint correction: a better static SAE, and a control.

    pre_1 = (x - b_dec) W_enc + b_enc,          z_1 = act(pre_1)
    pre_2 = (x - b_dec - z_1 W_dec) W_enc + b_enc + b_round,   z_2 = act(pre_2 outside z_1)
    z     = z_1 + z_2,   z <- max(z + eta (x - b_dec - z W_dec) W_dec^T, z / 20)  where z > 0

Each round has its share of k, so that the code is as sparse as the static one's. Nothing is
temporal: it shows what ``slowfast`` owes to its way of selecting. One round without correction is
the static SAE exactly. Source: this project; see :mod:`tsae.kernels.rounds` for the idea's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tsae.kernels import rounds
from tsae.kernels.sparse import Codes
from tsae.saes import activations
from tsae.saes.base import SAE, Encoding, SAEConfig, State, Tokens
from tsae.saes.config import require, split_by_shares
from tsae.saes.registry import register
from tsae.saes.shares import Grouped


class Found(NamedTuple):
    """Codes [N, F], the pre-activations of every round, and what the losses need of the slow part."""

    codes: Codes | Tensor
    pres: list[Tensor]
    aux: dict[str, Any]


@dataclass(frozen=True)
class RoundsConfig(SAEConfig):
    """The static config plus the rounds and the correction."""

    rounds: tuple[float, ...] = (0.5, 0.5)
    """Share of the selected latents that each round finds; (1.0,) for one round."""
    correct: bool = True
    """Whether all codes are corrected together once they are found."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.rounds
        ok = len(shares) > 0 and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6
        require(ok, "rounds", shares, "positive shares that sum to 1")
        require(len(shares) <= self.k, "rounds", shares, f"at most k={self.k} of them")


@register("rounds", RoundsConfig)
class RoundsSAE(SAE):
    """The rounds and the correction of the module's equations."""

    cfg: RoundsConfig

    def __init__(self, cfg: RoundsConfig):
        super().__init__(cfg)
        self.b_round = nn.Parameter(torch.zeros(len(cfg.rounds) - 1, self.n_fast))
        if cfg.correct:
            self.eta = nn.Parameter(torch.tensor(0.3))

    @property
    def n_fast(self) -> int:
        """Latents that the rounds choose from: the last ones of the dictionary."""
        return self.cfg.d_sae

    def make_activation(self) -> nn.Module:
        cfg, F = self.cfg, self.n_fast
        if self.is_static:
            return super().make_activation()
        parts = [activations.make(cfg.act, k, F, cfg) for k in split_by_shares(cfg.k, cfg.rounds)]
        return Grouped(parts, [F] * len(parts))

    @property
    def is_static(self) -> bool:
        """Whether this is the static SAE exactly."""
        return len(self.cfg.rounds) == 1 and not self.cfg.correct

    @property
    def dense_path(self) -> bool:
        """Also in half precision, for which there are no sparse products."""
        return super().dense_path or self.W_enc.element_size() < 4

    def biases(self) -> list[Tensor]:
        """The bias of each round [n_fast]."""
        bias_F = self.b_enc[self.cfg.d_sae - self.n_fast :]
        return [bias_F, *(bias_F + b for b in self.b_round)]

    def found(self, tokens: Tokens, state: State | None) -> Found:
        """The codes, and how they were found."""
        W_FD = self.W_enc.t().contiguous()  # by latent, once: every round's gradient reads it
        given = tokens.u_BTD.flatten(0, 1), W_FD.t(), self.W_dec, self.biases(), self.act.parts
        if self.dense_path:
            z_NF, pres, r_ND = rounds.dense_rounds(*given, tokens.mask_N)
            if self.cfg.correct:
                z_NF = rounds.dense_corrected(z_NF, r_ND, self.W_dec, self.eta)
            return Found(z_NF, pres, {})
        parts, pres, r_ND = rounds.sparse_rounds(*given, tokens.mask_N)
        codes = rounds.merged(parts)
        if self.cfg.correct:
            codes = rounds.corrected(codes, r_ND, self.W_dec, self.eta)
        return Found(codes, pres, {})

    def encoding(self, tokens: Tokens, state: State | None = None) -> Encoding:
        """``pre`` [N, F] is that of the first round, and no matter to a loss of sparse codes;
        ``aux["read"]``, beside dense codes, are those of all rounds."""
        if self.is_static:
            return super().encoding(tokens, state)
        codes, pres, aux = self.found(tokens, state)
        pre_NF = pres[0] if tokens.sparse else torch.cat(pres, 1)[:, : self.cfg.d_sae]
        if isinstance(codes, Tensor):
            aux["read"] = torch.cat(pres, 1)
        u_ND = tokens.u_BTD.flatten(0, 1)
        return Encoding(codes, pre_NF, u_ND, {}, aux, ((u_ND, self.W_enc),), tokens.context)
