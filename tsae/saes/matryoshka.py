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

from tsae.saes.base import SAE, Encoding, SAEConfig
from tsae.saes.config import require, split_by_shares
from tsae.saes.nested import prefix_error
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

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``prefixes`` = sum of w_p times the error of each prefix but the full one, which ``mse``
        counts once: where it has a weight w_P, w_P - 1 times ``mse`` joins them."""
        if len(self.sizes) == 1:
            return {}
        target_ND = self.centred(x_BTD, enc.context).flatten(0, 1)
        *weights, last = self.prefix_weights
        total = prefix_error(enc.codes, target_ND, self.W_dec, self.sizes, weights)
        prefixes = total / (enc.n * self.cfg.d_in)
        return {"prefixes": prefixes + (last - 1.0) * enc.aux["mse"] if last != 1 else prefixes}
