r"""Matryoshka: every prefix of the dictionary reconstructs on its own.

    x_hat_p = z[:n_p] W_dec[:n_p] + b_dec,   n_1 < n_2 < ... < n_P = F
    loss    = sum_p w_p mean (x - x_hat_p)^2  +  sparsity  +  AuxK of the full reconstruction

Source: Bussmann, Nabeshima, Karvonen & Nanda 2025 (arXiv 2503.17547): the codes are those of the
static SAE (their activation is BatchTopK, over all latents together), w_p = 1, and
the prefixes are fixed through training. One block is the static SAE exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tsae.kernels import sparse
from tsae.kernels.sparse import Codes, rows_to_crow
from tsae.saes.base import SAE, SAEConfig, SequenceContext, require
from tsae.saes.config import split_by_shares
from tsae.saes.registry import register


@dataclass(frozen=True)
class MatryoshkaConfig(SAEConfig):
    """The static config plus the nested blocks."""

    blocks: tuple[float, ...] = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """Shares of latents that each prefix adds to the one before; they sum to 1."""
    prefix_weights: tuple[float, ...] | None = None
    """Weight w_p of each prefix's error, the full dictionary's last; None for 1 each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks, weights = self.blocks, self.prefix_weights
        ok = len(blocks) > 0 and min(blocks) > 0 and abs(sum(blocks) - 1) < 1e-6
        require(ok, "blocks", blocks, "positive shares that sum to 1")
        sizes = split_by_shares(self.d_sae, blocks)
        require(min(sizes) > 0, "blocks", blocks, f"shares of at least one of {self.d_sae} latents")
        ok = weights is None or (len(weights) == len(blocks) and min(weights) > 0)
        require(ok, "prefix_weights", weights, f"{len(blocks)} numbers above 0, or None")


@register("matryoshka", MatryoshkaConfig)
class MatryoshkaSAE(SAE):
    """The nested dictionaries of the module's equations."""

    cfg: MatryoshkaConfig

    def __init__(self, cfg: MatryoshkaConfig):
        super().__init__(cfg)
        self.sizes = split_by_shares(cfg.d_sae, cfg.blocks)
        block = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))
        self.register_buffer("block_F", block, persistent=False)

    @property
    def prefix_weights(self) -> tuple[float, ...]:
        """``w_p``, the full dictionary's last."""
        return self.cfg.prefix_weights or (1.0,) * len(self.sizes)

    @property
    def groups(self) -> dict[str, Tensor]:
        """Latent ids by the block that first holds them: ``block1`` … (``all`` if one)."""
        ids = torch.arange(self.cfg.d_sae, device=self.W_dec.device)
        if len(self.sizes) == 1:
            return {"all": ids}
        return {f"block{p}": part for p, part in enumerate(ids.split(self.sizes), start=1)}

    def prefixes(self, codes: Codes | None, z_NF: Tensor) -> Tensor:
        """``z[:n_p] W_dec[:n_p]`` [N, P-1, d] of all prefixes but the full one, without b_dec.

        Each block is decoded once and the prefixes are their running sum. Sparse codes are read
        as N (P-1) rows, one a token and block, so that one sparse product decodes them all.
        """
        P = len(self.sizes) - 1
        if codes is None:
            blocks = zip(z_NF.split(self.sizes, 1), self.W_dec.split(self.sizes), strict=True)
            return torch.stack([z @ W for z, W in list(blocks)[:P]], 1).cumsum(1)
        block = self.block_F[codes.cols]
        kept = (block < P).nonzero()[:, 0]
        rows, cols = codes.rows[kept] * P + block[kept], codes.cols[kept]
        N, F = codes.shape
        # Columns ascend within a token, so the new rows ascend too.
        crow = rows_to_crow(torch.bincount(rows, minlength=N * P))
        nested = Codes(codes.values[kept], rows, cols, crow, (N * P, F))
        return sparse.decode(nested, self.W_dec).unflatten(0, (N, P)).cumsum(1)

    def extra_terms(
        self,
        x_BTD: Tensor,
        context: SequenceContext,
        codes: Codes | None,
        z_NF: Tensor,
        pre_NF: Tensor,
    ) -> dict[str, Tensor]:
        """``prefixes`` = sum of w_p times the error of each prefix but the full one."""
        if len(self.sizes) == 1:
            return {}
        mask_N = context.mask_BT.flatten()
        target_ND = x_BTD.flatten(0, 1) - self.b_dec
        missed_NPD = (target_ND[:, None] - self.prefixes(codes, z_NF)) * mask_N[:, None, None]
        mse_P = missed_NPD.square().sum((0, 2)) / (mask_N.sum().clamp_min(1) * self.cfg.d_in)
        return {"prefixes": mse_P @ mse_P.new_tensor(self.prefix_weights[:-1])}

    def loss(self, x_BTD: Tensor, context: SequenceContext | None = None) -> dict[str, Tensor]:
        """The base's terms and ``prefixes``; ``mse`` is the full error, unweighted.

        In ``total`` the full error counts ``prefix_weights[-1]`` times.
        """
        terms = super().loss(x_BTD, context)
        if self.prefix_weights[-1] != 1.0:
            terms["total"] = terms["total"] + (self.prefix_weights[-1] - 1.0) * terms["mse"]
        return terms
