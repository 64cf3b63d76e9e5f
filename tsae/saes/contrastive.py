r"""The published temporal SAE (T-SAE): high latents of neighbouring tokens find each other.

    loss = w_1 mse(high prefix) + w_2 mse(full) + alpha/d C + sparsity + AuxK
    C    = 1/2 [CE(S, diagonal) + CE(S^T, diagonal)],   S_ij = s(h[t_i], h[t_j - 1])

h are the codes of the high latents, the first 20%; pairs (t, t-1) lie in one document with both
tokens valid. Encoding is per token, so the codes are those of a static SAE.

Source: Bhalla, Oesterling, Mayrink Verdun, Lakkaraju & Calmon (arXiv 2511.05541) and their code
(github.com/AI4LIFE-GROUP/temporal-saes: temporal_sequence_top_k.py, train_temporal.py, buffer.py):
BatchTopK k=20, m=16k, Adam 3e-4, threshold EMA 0.999, AuxK 1/32, alpha 1.0 (the code's flag
defaults to 0.1). ``similarity="cosine"`` with w = (1, 1) is the paper's text; ``"dot"`` with
w = (0.2, 0.8) is the code: raw inner products, no temperature. What differs here, and why:

- Their squared errors are sums over the d dimensions, ours are means: hence alpha/d.
- Their code takes the mean of the two weighted errors, not the sum: its alpha is half of ours.
- Their batch is 8192 pairs from 1000 shuffled contexts, so a negative is of the same context in
  0.1% of cases; ours holds a few whole sequences, where it would be 6%, each pushing apart codes
  that are to be equal. So no pair of the same document is a negative.
- Their code by default pairs t with a random earlier token: ``partner="earlier"``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tsae.saes.base import Encoding
from tsae.saes.config import require
from tsae.saes.consistency import block
from tsae.saes.matryoshka import MatryoshkaConfig, MatryoshkaSAE
from tsae.saes.passages import drawn, info_nce, starts
from tsae.saes.registry import register
from tsae.sequences import DOCUMENT, FilledContext

WEIGHTS = {"cosine": (1.0, 1.0), "dot": (0.2, 0.8)}
"""``(w_1, w_2)`` of the paper's text and of its released code."""


@dataclass(frozen=True)
class ContrastiveConfig(MatryoshkaConfig):
    """The nested config with two blocks, high and low, plus the contrastive term."""

    act: str = "batchtopk"
    """Activation: relu, topk, batchtopk (published) or jumprelu."""
    threshold_ema: float = 0.999
    """EMA rate of the inference threshold of batchtopk."""
    blocks: tuple[float, ...] = (0.2, 0.8)
    """Shares of high and low latents."""
    prefix_weights: tuple[float, ...] | None = None
    """Weights of the high prefix's and the full error; None for those of the similarity."""
    similarity: str = "dot"
    """s: cosine (the paper's text) or dot (its released code)."""
    alpha: float = 1.0
    """Weight of the contrastive term, against squared errors summed over d."""
    partner: str = "previous"
    """With what t is paired: the previous token, or a random earlier one of its document."""
    pairs: int = 512
    """Pairs a step that are compared with each other, drawn at random from the batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.blocks) <= 2, "blocks", self.blocks, "the shares of high and low, or one")
        kinds = ", ".join(WEIGHTS)
        require(self.similarity in WEIGHTS, "similarity", self.similarity, f"one of {kinds}")
        allowed = "previous or earlier"
        require(self.partner in allowed.split(" or "), "partner", self.partner, allowed)
        require(self.alpha >= 0, "alpha", self.alpha, "at least 0")
        ok = isinstance(self.pairs, int) and self.pairs >= 2
        require(ok, "pairs", self.pairs, "a whole number of at least 2")


@register("contrastive", ContrastiveConfig)
class ContrastiveSAE(MatryoshkaSAE):
    """The two nested dictionaries and the contrastive term of the module's equations."""

    cfg: ContrastiveConfig

    @property
    def prefix_weights(self) -> tuple[float, ...]:
        """``(w_1, w_2)``."""
        return self.cfg.prefix_weights or WEIGHTS[self.cfg.similarity][-len(self.sizes) :]

    @property
    def pairs_tokens(self) -> bool:
        """True where there is a contrastive term, whose negatives are other sequences' tokens."""
        return self.cfg.alpha > 0

    @property
    def groups(self) -> dict[str, Tensor]:
        """Latent ids of the ``high`` (slow, contrasted) and ``low`` latents (``all`` if one)."""
        ids = torch.arange(self.cfg.d_sae, device=self.W_dec.device)
        if len(self.sizes) == 1:
            return {"all": ids}
        return dict(zip(("high", "low"), ids.split(self.sizes), strict=True))

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``prefixes`` (the high prefix's error) and ``contrast`` = alpha/d C, weighted."""
        terms = super().own_terms(x_BTD, enc)
        if self.cfg.alpha > 0:
            contrast = self.contrast(block(enc.codes, 0, self.sizes[0]), enc.context)
            terms["contrast"] = self.cfg.alpha / self.cfg.d_in * contrast
        return terms

    def contrast(self, h_NH: Tensor, context: FilledContext) -> Tensor:
        """``C`` of the module's equations over at most ``pairs`` pairs; 0 with fewer than two."""
        mask_N, start_N = context.mask_BT.flatten(), starts(context, DOCUMENT)
        t_N = torch.arange(len(mask_N), device=mask_N.device)
        then_N = t_N - 1
        if self.cfg.partner == "earlier":
            share_N = torch.rand(len(t_N)).to(t_N.device)
            then_N = start_N + (share_N * (t_N - start_N)).long()
        now = drawn((t_N > start_N) & mask_N & mask_N[then_N.clamp_min(0)], self.cfg.pairs)
        here, there = h_NH[now], h_NH[then_N[now]]
        if self.cfg.similarity == "cosine":
            # The constant keeps the root's gradient finite where no high latent fires.
            pair = here, there
            here, there = (h * (h.square().sum(1, keepdim=True) + 1e-4).rsqrt() for h in pair)
        return info_nce(here, there, start_N[now])
