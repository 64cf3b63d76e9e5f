r"""Two rounds of selection and one joint correction: a better static SAE, and a control.

    pre_1 = (x - b_dec) W_enc + b_enc,          z_1 = act(pre_1)
    pre_2 = (x - b_dec - z_1 W_dec) W_enc + b_enc + b_round,   z_2 = act(pre_2 outside z_1)
    z     = z_1 + z_2,   z <- max(z + eta (x - b_dec - z W_dec) W_dec^T, z / 20)  where z > 0

Each round has its share of k, so that the code is as sparse as the static one's. Nothing is
temporal: it shows what ``slowfast`` owes to its way of selecting. One round without correction is
the static SAE exactly. Source: this project; see :mod:`tsae.kernels.rounds` for the idea's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsae.kernels import rounds
from tsae.kernels.sparse import Codes
from tsae.saes import activations
from tsae.saes.base import SAE, FilledContext, SAEConfig, SAEOutput, SequenceContext, require
from tsae.saes.config import split_by_shares
from tsae.saes.registry import register


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
        return activations.Grouped(parts, [F] * len(parts))

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

    def found(
        self, x_BTD: Tensor, context: FilledContext
    ) -> tuple[Codes | None, Tensor | None, list[Tensor]]:
        """Sparse or dense codes, and the pre-activations of every round."""
        u_ND, mask_N = self.centred(x_BTD, context).flatten(0, 1), context.mask_BT.flatten()
        W_FD = self.W_enc.t().contiguous()  # by latent, once: every round's gradient reads it
        given = u_ND, W_FD.t(), self.W_dec, self.biases(), self.act.parts, mask_N
        if self.dense_path:
            z_NF, pres, r_ND = rounds.dense_rounds(*given)
            if self.cfg.correct:
                z_NF = rounds.dense_corrected(z_NF, r_ND, self.W_dec, self.eta)
            return None, z_NF, pres
        parts, pres, r_ND = rounds.sparse_rounds(*given)
        codes = rounds.merged(parts)
        if self.cfg.correct:
            codes = rounds.corrected(codes, r_ND, self.W_dec, self.eta)
        return codes, None, pres

    def codes(
        self, x_BTD: Tensor, context: FilledContext
    ) -> tuple[Codes | None, Tensor | None, Tensor]:
        """As the base's; beside dense codes, the pre-activations of all rounds side by side."""
        if self.is_static:
            return super().codes(x_BTD, context)
        codes, z_NF, pres = self.found(x_BTD, context)
        return codes, z_NF, pres[0] if z_NF is None else torch.cat(pres, 1)

    def encode(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        return self.forward(x_BTD, context).z

    def forward(self, x_BTD: Tensor, context: SequenceContext | None = None) -> SAEOutput:
        """``pre`` of the output is that of the first round."""
        if self.is_static:
            return super().forward(x_BTD, context)
        codes, z_NF, pres = self.found(x_BTD, self.checked(x_BTD, context))
        z_BTF = dense(codes, z_NF).unflatten(0, x_BTD.shape[:2])
        pre_NF = torch.cat(pres, 1)[:, : self.cfg.d_sae]
        return SAEOutput(self.decode(z_BTF), z_BTF, pre_NF.view_as(z_BTF), {})


def dense(codes: Codes | None, z_NF: Tensor | None) -> Tensor:
    """Whichever of the two there is, as a dense tensor [N, F]."""
    if codes is not None:
        return codes.dense()
    assert z_NF is not None
    return z_NF
