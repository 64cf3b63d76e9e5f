r"""B. A static SAE that tracks which latents follow which, and may use it.

    pre[t] = (x[t] − b_dec) W_enc + b_enc + ρ Σ_{ℓ=1..w} Σ_j C_ℓ[j→·] z⁰_j[t−ℓ]

C is the running log-lift of :mod:`tsae.tracking`: sparse, moved by every training batch, frozen
in ``eval``, never part of the graph. z⁰ are the *static* codes, act of the static pre-activation,
of earlier tokens of the same document, so that all tokens can be encoded at once and C does not
feed on what it has itself predicted. ρ is one learned scalar, 0 at the start. Without feedback
(ρ absent) codes and reconstruction are the static SAE's exactly. Source: this project.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tsae.kernels.sparse import Codes, picked
from tsae.saes.base import SAE, Delta, Encoding, SAEConfig, State, Tokens
from tsae.saes.config import require
from tsae.saes.registry import register
from tsae.sequences import DOCUMENT, FilledContext
from tsae.tracking import (
    Active,
    CircularFeatureBuffer,
    TemporalCorrelationTracker,
    history,
    strongest,
)
from tsae.tracking.quantise import BITS
from tsae.training import distributed


@dataclass(frozen=True)
class CausalConfig(SAEConfig):
    """The static config plus what is tracked, the learning of W, and feedback."""

    window: int = 4
    """Longest lag in tokens."""
    rank: int = 64
    """Rank r of W."""
    alpha: float = 0.005
    """Share of all counts that is forgotten a step."""
    tau: float = 0.1
    """Log-lifts C at or below it, in nats, count as 0."""
    successors: int = 64
    """Successors kept of each latent at each lag."""
    tracked: int | None = None
    """Slots of a token, taken by its largest codes; None for k / 2, since weak codes say little of
    what follows and pairs cost the square."""
    bits: int = 8
    """Bits in which earlier codes are remembered: 8, or 32 for float32."""
    learning_weight: float = 0.1
    """Weight of the loss of W; it moves W alone."""
    pairs: int = 8192
    """Active latents a step from which W is learned, each against all of its window."""
    feedback: bool = False
    """Whether the prior joins the pre-activation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("window", "rank", "successors", "pairs"):
            value = getattr(self, field)
            require(isinstance(value, int) and value >= 1, field, value, "a whole number >= 1")
        require(0 < self.alpha <= 1, "alpha", self.alpha, "above 0 and at most 1")
        require(self.tau >= 0, "tau", self.tau, "at least 0")
        m = self.tracked
        ok = m is None or 1 <= m <= self.d_sae
        require(ok, "tracked", m, f"None or from 1 to d_sae={self.d_sae}")
        require(self.bits in BITS, "bits", self.bits, "8 or 32")
        require(self.learning_weight > 0, "learning_weight", self.learning_weight, "above 0")

    @property
    def slots(self) -> int:
        """Slots of a token."""
        return max(1, self.k // 2) if self.tracked is None else self.tracked


@register("causal", CausalConfig)
class CausalSAE(SAE):
    """The SAE of the module's equations; ``tracker`` holds C, and W with its learning."""

    cfg: CausalConfig
    apart = ("tracker.",)

    def __init__(self, cfg: CausalConfig):
        super().__init__(cfg)
        self.tracker = TemporalCorrelationTracker(
            cfg.d_sae, cfg.window, cfg.rank, cfg.alpha, cfg.tau, cfg.successors, cfg.bits
        )
        if cfg.feedback:
            self.rho = nn.Parameter(torch.zeros(()))

    # ---- encoding -------------------------------------------------------------------------

    @torch.no_grad()
    def static_codes(self, pre_NF: Tensor, mask_N: Tensor) -> Active:
        """The strongest static codes of each token; the activation is used as at inference, so
        that batchtopk neither couples tokens nor moves its threshold."""
        training = self.act.training
        self.act.eval()
        codes: Codes | Tensor
        if hasattr(self.act, "select"):
            codes = picked(partial(self.act.select, mask_N=mask_N), pre_NF)
        else:
            codes = self.act(pre_NF, mask_N)
        self.act.train(training)
        return strongest(codes, self.cfg.slots)

    @torch.no_grad()
    def prior(self, active: Active, context: FilledContext) -> Tensor:
        """``Σ_ℓ Σ_j C_ℓ[j→·] z⁰_j[t−ℓ]`` [N, F]."""
        out_NF = self.b_enc.new_zeros(len(active.ids_NM), self.cfg.d_sae)
        for lagged in history(active, documents(context), self.cfg.window, self.cfg.bits):
            self.tracker.add_prior(out_NF, lagged.rows_n, lagged.past, lagged.lag)
        return out_NF

    @property
    def looks_back(self) -> bool:
        return self.cfg.feedback

    def delta(self, tokens: Tokens, state: State | None) -> Delta:
        """ρ times the prior. A training step uses the C of before it, or a token's prior would
        contain the token itself; the first of all fills an empty C ahead, so that there is
        something to learn ρ from."""
        if not self.cfg.feedback:
            return Delta()
        active, aux = self.static_codes(tokens.static_NF, tokens.mask_N), {}
        if state is not None:
            prior_NF = self.streamed_prior(active, tokens, state)
            return Delta(dense=self.rho.detach() * prior_NF)
        fresh = int(self.tracker.updates) == 0
        if tokens.learn and fresh:
            aux["observed"] = self.observe(active, tokens.context)
        prior_NF = self.prior(active, tokens.context)
        if tokens.learn and not fresh:
            aux["observed"] = self.observe(active, tokens.context)
        slopes = ((self.rho, prior_NF),)
        return Delta(dense=self.rho.detach() * prior_NF, slopes=slopes, aux=aux)

    @torch.no_grad()
    def streamed_prior(self, active: Active, tokens: Tokens, state: State) -> Tensor:
        """The prior of one token, from a circular buffer of the static codes before it."""
        cfg, B = self.cfg, len(tokens.mask_N)
        if not state:
            device = self.b_dec.device
            state["buffer"] = CircularFeatureBuffer(B, cfg.slots, cfg.window, cfg.bits, device)
        buffer, rows_B = state["buffer"], torch.arange(B, device=self.b_dec.device)
        buffer.clear(tokens.context.boundary_BT[:, 0] >= DOCUMENT)
        prior_BF = self.b_enc.new_zeros(B, cfg.d_sae)
        for lag in range(1, cfg.window + 1):
            self.tracker.add_prior(prior_BF, rows_B, buffer.at(lag), lag)
        buffer.push(active)
        return prior_BF

    # ---- training -------------------------------------------------------------------------

    def observe(self, active: Active, context: FilledContext) -> tuple[Active, Tensor]:
        """Move C by the codes of the whole batch, which every rank sees, so that all hold the same
        C; returns them, with the number of each token's document."""
        parts = (*active, (context.boundary_BT >= DOCUMENT).flatten())
        ids, values, opens = (distributed.in_batch_order(p, len(context.mask_BT)) for p in parts)
        observed = Active(ids, values), opens.cumsum(0)
        self.tracker.update(*observed)
        return observed

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``relation``: the loss of W on the batch's codes, while training."""
        if not self.training:
            return {}
        if self.cfg.feedback:
            active, document_N = enc.aux["observed"]
        else:
            active, document_N = self.observe(strongest(enc.codes, self.cfg.slots), enc.context)
        relation = self.tracker.relation
        past = self.tracker.past(active)
        devices = [active.values_NM.device] if active.values_NM.is_cuda else []
        with torch.random.fork_rng(devices):  # the SAE trains as if nothing had been drawn here
            torch.manual_seed(int(self.tracker.updates))
            loss = relation.logistic_loss(active, past, document_N, self.cfg.pairs)
        return {"relation": self.cfg.learning_weight * loss}


def documents(context: FilledContext) -> Tensor:
    """The number [N] of each token's document; a sequence always starts one."""
    return (context.boundary_BT >= DOCUMENT).flatten().cumsum(0)
