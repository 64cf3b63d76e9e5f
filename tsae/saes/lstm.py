r"""C. Recurrent codes with a feature memory, introduced into a static SAE in three phases.

    pre[t] = (x[t] - b) W_enc + b_enc + rho * gate * (h[t] W_h + m[t] W_m)
    h      = LSTM(x - b),   m[t] = attention over the last w codes   (:mod:`tsae.saes.recurrence`)
    x_hat  = z W_dec + b  [+ sigmoid(h[t-1] u + c) h[t-1] W_out      with decoder="lstm"]
    L      = base + lambda_gate mean_i P(gate_i > 0)

``rho`` and ``gate`` are per latent; rho starts at 0, so training starts at the static SAE exactly.
State starts at zero in each document and passes over masked tokens. The memory holds projections of
*static* codes, the largest of (x - b) W_enc + b_enc: those of the final codes would have to be
computed token after token; only the projection learns by them. The recurrent decoder sees h[t-1],
not h[t]: it predicts from the past and cannot copy the token past the dictionary. Without hidden
units and memory this is the static SAE. Gate: Louizos et al. 2018 (arXiv 1712.01312).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tsae.kernels import sparse
from tsae.kernels.sparse import Codes
from tsae.saes.base import (
    SAE,
    FilledContext,
    Phase,
    SAEConfig,
    SAEOutput,
    SequenceContext,
    Stream,
    require,
)
from tsae.saes.bridge import copy_static, grown, load_static, match, origin
from tsae.saes.cells import pieces_of, run_lstm
from tsae.saes.recurrence import Recurrence, RecurrentStream
from tsae.saes.registry import register

FIRST = ("static", "distil")


@dataclass(frozen=True)
class LSTMConfig(SAEConfig):
    """The static config plus recurrence, memory, gate, decoder and phases."""

    hidden: int = 256
    """Hidden units of the LSTM; 0 for none."""
    memory: int = 16
    """Preceding tokens whose codes the memory holds; 0 for no memory."""
    memory_k: int = 8
    """Strongest static codes of a token that the memory holds; finding more costs more."""
    rank: int = 64
    """Width to which the memory projects codes."""
    lambda_gate: float = 0.01
    """Weight of the mean probability that a latent's temporal gate is open; after introduction."""
    gated: bool = True
    """Whether latents have sparse gates; without, every gate is 1 and costs nothing."""
    bridge: bool = True
    """Whether rho starts at 0, the static SAE; without, it starts at 1."""
    decoder: str = "static"
    """static, or lstm: a gated prediction from h[t-1] joins the reconstruction."""
    tbptt: int | None = None
    """Tokens of a document after which the gradient through the state is cut; None: never."""
    teacher: str | None = None
    """Directory of a static checkpoint to start from and distil; None trains the static part."""
    anneal: float = 4.0
    """Starting k over k in the static phase, falling to 1 along a cosine; no use with a teacher."""
    phase_shares: tuple[float, float, float] = (0.3, 0.3, 0.4)
    """Shares of the steps: static part, temporal parts on a frozen static part, all; 0 skips."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (("hidden", 0), ("memory", 0), ("memory_k", 1), ("rank", 1)):
            value = getattr(self, field)
            ok = isinstance(value, int) and value >= least
            require(ok, field, value, f"a whole number of at least {least}")
        require(self.lambda_gate >= 0, "lambda_gate", self.lambda_gate, "at least 0")
        allowed = "static, or lstm with hidden above 0"
        ok = self.decoder == "static" or (self.decoder == "lstm" and self.hidden > 0)
        require(ok, "decoder", self.decoder, allowed)
        ok = self.tbptt is None or (isinstance(self.tbptt, int) and self.tbptt > 0)
        require(ok, "tbptt", self.tbptt, "None or a whole number above 0")
        require(self.anneal >= 1, "anneal", self.anneal, "at least 1")
        shares = self.phase_shares
        ok = len(shares) == 3 and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6
        require(ok, "phase_shares", shares, "three shares of at least 0 that sum to 1")


@register("lstm", LSTMConfig)
class LSTMSAE(SAE):
    """The recurrent SAE of the module's equations."""

    cfg: LSTMConfig

    def __init__(self, cfg: LSTMConfig):
        super().__init__(cfg)
        self.teacher: list[SAE] = []  # a list, so that it is no part of this module's state
        self.k_now = cfg.k
        self.kept: list[Tensor] | None = None
        self.static = cfg.hidden == 0 and cfg.memory == 0
        self.muted = False
        if not self.static:
            self.recurrent = Recurrence(cfg)
        if cfg.teacher is not None:
            self.meta = origin(cfg.teacher)  # lets the trainer refuse a store of another world

    @classmethod
    def from_static(cls, sae: SAE, **options: Any) -> "LSTMSAE":
        """The bridge: a trained static SAE with temporal parts at rho = 0, so with equal codes.

        ``sae`` is also the teacher of the first phase. ``options`` are config fields. Raises
        :class:`CheckpointError` when ``sae`` is not static, ``ValueError`` on a bad option.
        """
        made = grown("lstm", sae, **options)
        assert isinstance(made, cls)
        made.teacher = [sae]
        return made

    # ---- encoder --------------------------------------------------------------------------

    @property
    def off(self) -> bool:
        """Whether the temporal parts are left out: there are none, or rho is still frozen at 0."""
        return self.static or self.muted or self.phase in FIRST

    def states(self, x_ND: Tensor, pre_NF: Tensor | None, context: FilledContext) -> Tensor:
        """[h; m] [N, H + r], whichever of the two there are; 0 at invalid tokens."""
        parts, recurrent, pieces = [], self.recurrent, pieces_of(context)
        x_nD = x_ND[pieces.rows_n]
        if recurrent.lstm is not None:
            parts.append(run_lstm(recurrent.lstm, x_nD, pieces, self.cfg.tbptt))
        if recurrent.memory is not None:
            assert pre_NF is not None  # made wherever there is a memory
            c_NR = recurrent.memory.projected(pre_NF, context.mask_BT.flatten())
            c_nR = c_NR[pieces.rows_n]
            parts.append(recurrent.memory(c_nR, pieces.position_n))
        u_nS = torch.cat(parts, 1).to(x_ND.dtype)
        if self.kept is not None:
            h = u_nS[:, : self.cfg.hidden]
            before = torch.cat([torch.zeros_like(h[:1]), h[:-1]]) * (pieces.position_n > 0)[:, None]
            part = self.recurrent.predicted(before)
            self.kept.append(torch.zeros_like(x_ND).index_copy(0, pieces.rows_n, part))
        return x_ND.new_zeros(len(x_ND), u_nS.shape[1]).index_copy(0, pieces.rows_n, u_nS)

    def features(self, x_BTD: Tensor, context: FilledContext) -> list[tuple[Tensor, Tensor]]:
        return self.features_and_pre(x_BTD, context)[0]

    def features_and_pre(
        self, x_BTD: Tensor, context: FilledContext
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """The pairs of :meth:`features` and the first one's product, where it was needed."""
        pairs = super().features(x_BTD, context)
        if self.off:
            return pairs, None
        # The bias is not asked to serve the recurrence, but whoever asks for dx gets it.
        x_ND = pairs[0][0] if x_BTD.requires_grad else pairs[0][0].detach()
        pre_NF = None
        if self.recurrent.memory is not None:
            with torch.no_grad():
                pre_NF = torch.addmm(self.b_enc, x_ND, self.W_enc)
        u_NS = self.states(x_ND, pre_NF, context)
        return [*pairs, (u_NS, self.recurrent.weight())], pre_NF

    def codes(
        self, x_BTD: Tensor, context: FilledContext
    ) -> tuple[Codes | None, Tensor | None, Tensor]:
        """As the base, with the static product made once for memory and codes."""
        if self.off or self.dense_path or not hasattr(self.act, "select"):
            return super().codes(x_BTD, context)
        mask_N = context.mask_BT.flatten()
        pairs, first = self.features_and_pre(x_BTD, context)
        pairs, bias_F = self.shortened(x_BTD, pairs)
        select = partial(self.act.select, mask_N=mask_N)
        codes, pre = sparse.encode(select, bias_F, pairs, first=first)
        return codes, None, pre

    def forward(self, x_BTD: Tensor, context: SequenceContext | None = None) -> SAEOutput:
        """As the static SAE; ``decoder="lstm"``: x_hat = decode(z) + ``extra["x_recurrent"]``."""
        if self.cfg.decoder == "static":
            return super().forward(x_BTD, context)
        self.kept = []
        try:
            out = super().forward(x_BTD, context)
            part = self.kept[0].view_as(x_BTD) if self.kept else torch.zeros_like(x_BTD)
        finally:
            self.kept = None
        return out._replace(x_hat=out.x_hat + part, extra={"x_recurrent": part})

    # ---- loss -----------------------------------------------------------------------------

    def loss(self, x_BTD: Tensor, context: SequenceContext | None = None) -> dict[str, Tensor]:
        """The base terms and ``gate``. With the recurrent decoder ``mse`` is the static part's and
        ``recurrent`` what the recurrent part changes it by: FVE = (1 - mse) + (-recurrent) is split
        in two. While distilling: ``match_codes``, ``match_output`` (:meth:`distil`). Reported and
        not part of the total: ``gates_open``, ``rho`` (:meth:`Recurrence.openness`)."""
        if self.phase == "distil":
            return self.distil(x_BTD, self.checked(x_BTD, context))
        self.kept = [] if self.cfg.decoder == "lstm" else None
        try:
            terms = super().loss(x_BTD, context)
        finally:
            self.kept = None  # or its graph would live until the next step
        return terms if self.off else {**terms, **self.recurrent.openness()}

    def aux_term(
        self, x_BTD: Tensor, context: FilledContext, error_ND: Tensor
    ) -> dict[str, Tensor]:
        """AuxK through the static encoder: reviving the dead needs no second run of the LSTM."""
        self.muted = True
        try:
            return super().aux_term(x_BTD, context, error_ND)
        finally:
            self.muted = False

    def extra_terms(
        self,
        x_BTD: Tensor,
        context: FilledContext,
        codes: Codes | None,
        z_NF: Tensor | None,
        pre_NF: Tensor,
    ) -> dict[str, Tensor]:
        if self.off:
            return {}
        terms = {}
        # While rho leaves 0 no gate has earned its price yet.
        if self.recurrent.gate is not None and self.phase != "introduce":
            open_F = self.recurrent.gate.open_probability()
            terms["gate"] = self.cfg.lambda_gate * open_F.mean()
        if self.kept:
            mask_N = context.mask_BT.flatten()[:, None]
            if codes is None:
                assert z_NF is not None
                decoded = z_NF @ self.W_dec
            else:
                decoded = sparse.decode(codes, self.W_dec)
            error = torch.where(mask_N, x_BTD.flatten(0, 1) - decoded - self.b_dec, 0.0)
            gain = (error - self.kept[0]).square().sum() - error.square().sum()
            terms["recurrent"] = gain / (mask_N.sum().clamp_min(1) * self.cfg.d_in)
        return terms

    def distil(self, x_BTD: Tensor, context: FilledContext) -> dict[str, Tensor]:
        """See :func:`tsae.saes.bridge.match`."""
        if not self.teacher:
            assert self.cfg.teacher is not None  # or there would be no such phase
            self.teacher = [load_static(self.cfg.teacher, self.cfg, self.W_dec.device)]
        out, terms = match(self, self.teacher[0], x_BTD, context)
        if self.training:
            fired_F = (out.z > 0).flatten(0, 1).any(0)
            self.count_idle(fired_F, int(context.mask_BT.sum().clamp_min(1)))
        return terms

    # ---- what the trainer calls -----------------------------------------------------------

    def phases(self) -> tuple[Phase, ...]:
        """``distil`` (with a teacher) or ``static``; ``introduce``; ``refine``."""
        if self.static:
            return super().phases()
        static = tuple(n for n, _ in self.named_parameters() if not n.startswith("recurrent."))
        names = ("distil" if self.teacher or self.cfg.teacher else "static", "introduce", "refine")
        parts = zip(names, self.cfg.phase_shares, (static, ("recurrent.",), None), strict=True)
        return tuple(Phase(*part) for part in parts if part[1] > 0)

    def start_step(self, step: int, n_steps: int, phase: str = "train") -> None:
        """Also anneal k along the static phase: k (1 + (anneal - 1)(1 + cos(pi p)) / 2)."""
        super().start_step(step, n_steps, phase)
        p = min(1.0, self.progress / self.cfg.phase_shares[0]) if phase == "static" else 1.0
        factor = 1 + (self.cfg.anneal - 1) * (1 + math.cos(math.pi * p)) / 2
        self.k_now = min(round(self.cfg.k * factor), self.cfg.d_sae)
        self.train(self.training)

    def train(self, mode: bool = True) -> "LSTMSAE":
        """Switch the mode; the annealed k is for training alone, inference always has k."""
        super().train(mode)
        if hasattr(self.act, "k"):
            self.act.k = self.k_now if mode else self.cfg.k
        return self

    def finish_step(self) -> None:
        """As the base, unless a perfect match leaves the decoder where it is: rounding its norms
        then would make a mismatch, and Adam a step of full size from any gradient at all."""
        if self.phase != "distil" or self.W_dec.grad is None or bool(self.W_dec.grad.any()):
            super().finish_step()

    @torch.no_grad()
    def initialise(self, mean_D: Tensor) -> None:
        """b_dec at the mean activation, or the whole static part from the teacher."""
        if not self.teacher and self.cfg.teacher is not None:
            self.teacher = [load_static(self.cfg.teacher, self.cfg, self.W_dec.device)]
        if self.teacher:
            copy_static(self.teacher[0], self)
        else:
            super().initialise(mean_D)

    def stream(self, batch_size: int) -> "Stream":
        return Stream(self, batch_size) if self.off else RecurrentStream(self, batch_size)
