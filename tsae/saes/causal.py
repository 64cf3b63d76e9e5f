r"""B. A static SAE that tracks which latents follow which, and may use it.

    pre[t] = (x[t] − b_dec) W_enc + b_enc + ρ Σ_{ℓ=1..w} Σ_j C_ℓ[j→·] z⁰_j[t−ℓ]

C is the running log-lift of :mod:`tsae.tracking`: sparse, moved by every training batch, frozen
in ``eval``, never part of the graph. z⁰ are the *static* codes, act of the static pre-activation,
of earlier tokens of the same document, so that all tokens can be encoded at once and C does not
feed on what it has itself predicted. ρ is one learned scalar, 0 at the start. Without feedback
(ρ absent) codes and reconstruction are the static SAE's exactly. Source: this project.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tsae.kernels import sparse
from tsae.kernels.sparse import Codes
from tsae.saes.base import (
    DOCUMENT,
    SAE,
    FilledContext,
    SAEConfig,
    SAEOutput,
    SequenceContext,
    Stream,
    require,
)
from tsae.saes.registry import register
from tsae.tracking import (
    Active,
    CircularFeatureBuffer,
    TemporalCorrelationTracker,
    history,
    strongest,
)
from tsae.tracking.quantise import BITS
from tsae.tracking.relation import LEARNING
from tsae.training import distributed


@dataclass(frozen=True)
class CausalConfig(SAEConfig):
    """The static config plus what is tracked, how W is learned, and feedback."""

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
    """Slots of a token, taken by its largest codes; None for k. All pairs are tracked when at least
    as many as the token has active latents."""
    bits: int = 8
    """Bits in which earlier codes are remembered: 8, or 32 for float32."""
    learning: str = "logistic"
    """How W is learned: logistic, or norm (the naive penalty, an ablation)."""
    learning_weight: float = 0.1
    """Weight of that loss; it moves W alone."""
    pairs: int = 8192
    """Active latents a step from which W is learned, each against all of its window."""
    feedback: bool = False
    """Whether the prior joins the pre-activation."""
    checkpointing: bool = False
    """Whether the loss of W is computed again in the backward pass in place of being kept."""

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
        require(self.learning in LEARNING, "learning", self.learning, f"{' or '.join(LEARNING)}")
        require(self.learning_weight > 0, "learning_weight", self.learning_weight, "above 0")

    @property
    def slots(self) -> int:
        """Slots of a token."""
        return self.k if self.tracked is None else self.tracked


@register("causal", CausalConfig)
class CausalSAE(SAE):
    """The SAE of the module's equations; ``tracker`` holds C, and W with its learning."""

    cfg: CausalConfig
    apart = ("tracker.",)
    observed: tuple[Active, Tensor] | None

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
        if hasattr(self.act, "select"):
            rows, cols, crow = self.act.select(pre_NF, mask_N)
            values = pre_NF[rows, cols].clamp_min(0.0)
            active = strongest(
                Codes(values, rows, cols, crow, (len(pre_NF), pre_NF.shape[1])), self.cfg.slots
            )
        else:
            active = strongest(self.act(pre_NF, mask_N), self.cfg.slots)
        self.act.train(training)
        return active

    @torch.no_grad()
    def prior(self, active: Active, context: FilledContext) -> Tensor:
        """``Σ_ℓ Σ_j C_ℓ[j→·] z⁰_j[t−ℓ]`` [N, F]."""
        out_NF = self.b_enc.new_zeros(len(active.ids_NM), self.cfg.d_sae)
        for lagged in history(active, documents(context), self.cfg.window, self.cfg.bits):
            self.tracker.add_prior(out_NF, lagged.rows_n, lagged.past, lagged.lag)
        return out_NF

    def pre_activations(self, x_BTD: Tensor, context: FilledContext) -> Tensor:
        """``pre`` [N, F] by dense products; C is not moved."""
        pre = self.pre(x_BTD, context)
        if not self.cfg.feedback:
            return pre
        active = self.static_codes(pre, context.mask_BT.flatten())
        return pre + self.rho * self.prior(active, context)

    def encode(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        context = self.checked(x_BTD, context)
        pre = self.pre_activations(x_BTD, context)
        return self.act(pre, context.mask_BT.flatten()).unflatten(0, x_BTD.shape[:2])

    def forward(self, x_BTD: Tensor, context: SequenceContext | None = None) -> SAEOutput:
        context = self.checked(x_BTD, context)
        pre = self.pre_activations(x_BTD, context)
        z = self.act(pre, context.mask_BT.flatten()).unflatten(0, x_BTD.shape[:2])
        return SAEOutput(self.decode(z), z, pre.unflatten(0, x_BTD.shape[:2]), {})

    # ---- training -------------------------------------------------------------------------

    def codes(
        self, x_BTD: Tensor, context: FilledContext
    ) -> tuple[Codes | None, Tensor | None, Tensor]:
        if not self.cfg.feedback:
            codes, z_NF, pre_NF = super().codes(x_BTD, context)
            dense_or_sparse = z_NF if codes is None else codes
            assert dense_or_sparse is not None
            self.observe(strongest(dense_or_sparse, self.cfg.slots), context)
            return codes, z_NF, pre_NF
        mask_N = context.mask_BT.flatten()
        if not hasattr(self.act, "select") or self.dense_path:
            static = self.pre(x_BTD, context)
            pre = static + self.rho * self.fed_back(static.detach(), context)
            return None, self.act(pre, mask_N), pre
        prior_NF: Tensor

        def select(pre_NF: Tensor) -> sparse.Selection:
            nonlocal prior_NF
            prior_NF = self.fed_back(pre_NF, context)
            pre_NF.addcmul_(prior_NF, self.rho.detach())  # the kernel reads values from here
            return self.act.select(pre_NF, mask_N)

        pairs, bias_F = self.shortened(x_BTD, self.features(x_BTD, context))
        codes, pre = sparse.encode(select, bias_F, pairs)
        # The kernel knows nothing of ρ; this adds its gradient and the number 0.
        slope = prior_NF[codes.rows, codes.cols] * (codes.values > 0)
        values = codes.values + (self.rho - self.rho.detach()) * slope
        codes = codes._replace(values=values)
        return codes, None, pre

    def fed_back(self, static_NF: Tensor, context: FilledContext) -> Tensor:
        """The prior of a training batch, which then moves C.

        C of before the batch is used, or a token's prior would contain the token itself. Only the
        first batch fills an empty C ahead, so that there is something to learn ρ from.
        """
        active = self.static_codes(static_NF, context.mask_BT.flatten())
        fresh = int(self.tracker.updates) == 0
        if fresh:
            self.observe(active, context)
        prior_NF = self.prior(active, context)
        if not fresh:
            self.observe(active, context)
        return prior_NF

    def observe(self, active: Active, context: FilledContext) -> None:
        """Move C while training, and keep the codes for the loss of W: those of the whole batch,
        which every rank sees, so that all hold the same C."""
        if self.training:
            n = len(context.mask_BT)
            ids, values, opens = (
                distributed.in_batch_order(part, n)
                for part in (*active, opens_document(context).flatten())
            )
            self.observed = Active(ids, values), opens.cumsum(0)
            self.tracker.update(*self.observed)

    def extra_terms(
        self,
        x_BTD: Tensor,
        context: FilledContext,
        codes: Codes | None,
        z_NF: Tensor | None,
        pre_NF: Tensor,
    ) -> dict[str, Tensor]:
        """``relation``: the loss of W on the batch's codes, while training."""
        if not self.training:
            return {}
        assert self.observed is not None  # ``codes`` has observed the batch
        (active, document_N), self.observed = self.observed, None
        relation = self.tracker.relation
        if self.cfg.learning == "norm":
            return {"relation": self.cfg.learning_weight * relation.norm_loss()}
        arguments = (active, self.tracker.past(active), document_N, self.cfg.pairs)
        devices = [active.values_NM.device] if active.values_NM.is_cuda else []
        with torch.random.fork_rng(devices):  # the SAE trains as if nothing had been drawn here
            torch.manual_seed(int(self.tracker.updates))
            if self.cfg.checkpointing:
                loss = checkpoint(relation.logistic_loss, *arguments, use_reentrant=False)
            else:
                loss = relation.logistic_loss(*arguments)
        return {"relation": self.cfg.learning_weight * loss}

    def stream(self, batch_size: int) -> "CausalStream":
        return CausalStream(self, batch_size)


def opens_document(context: FilledContext) -> Tensor:
    """Whether a document starts at each token [B, T]; a sequence always starts one."""
    return context.boundary_BT >= DOCUMENT


def documents(context: FilledContext) -> Tensor:
    """The number [N] of each token's document."""
    return opens_document(context).flatten().cumsum(0)


class CausalStream(Stream):
    """A circular buffer of the last ``window`` tokens' static codes."""

    sae: CausalSAE

    def __init__(self, sae: CausalSAE, batch_size: int):
        super().__init__(sae, batch_size)
        cfg, device = sae.cfg, sae.b_dec.device
        self.buffer = CircularFeatureBuffer(batch_size, cfg.slots, cfg.window, cfg.bits, device)

    @torch.no_grad()
    def advance(self, x_BD: Tensor, boundary_B: Tensor | None, mask_B: Tensor) -> Tensor:
        sae = self.sae
        if not sae.cfg.feedback:
            return super().advance(x_BD, boundary_B, mask_B)
        if boundary_B is not None:
            self.buffer.clear(boundary_B >= DOCUMENT)
        static_BF = torch.where(mask_B[:, None], x_BD - sae.b_dec, 0.0) @ sae.W_enc + sae.b_enc
        prior_BF = torch.zeros_like(static_BF)
        rows_B = torch.arange(self.batch_size, device=x_BD.device)
        for lag in range(1, sae.cfg.window + 1):
            sae.tracker.add_prior(prior_BF, rows_B, self.buffer.at(lag), lag)
        self.buffer.push(sae.static_codes(static_BF, mask_B))
        return sae.act(static_BF + sae.rho * prior_BF, mask_B)
