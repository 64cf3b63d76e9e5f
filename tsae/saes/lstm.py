r"""C. Recurrent codes with a feature memory, introduced into a static SAE in three phases.

    pre[t] = (x[t] - b) W_enc + b_enc + rho * gate * (h[t] W_h + m[t] W_m)
    h      = LSTM(x - b),   m[t] = attention over the last w codes   (:mod:`tsae.saes.recurrence`)
    x_hat  = z W_dec + b  [+ sigmoid(h[t-1] u + c) h[t-1] W_out      with decoder="lstm"]
    L      = base + predict CE(z[t] active; softmax([h; m][t-1] W_next + b_next))
             + price mean_t sum_i relu(z_i[t] - z_i[t-1]) / d + lambda_gate mean_i P(gate_i > 0)

The prediction asks the recurrence for what comes, the price on births asks the codes to stay.
``rho`` and ``gate`` are per latent; rho starts at 0, so training starts at the static SAE exactly.
The memory holds projections of *static* codes, the largest of (x - b) W_enc + b_enc: those of the
final codes would have to be computed token after token; only the projection learns by them. The
recurrent decoder sees h[t-1], not h[t]: it predicts from the past and cannot copy the token past
the dictionary. Without hidden units and memory this is the static SAE, at most with a price.
Gate: Louizos et al. 2018 (arXiv 1712.01312).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tsae.saes.base import Delta, Encoding, Phase, State, Tokens
from tsae.saes.bridge import Growing, GrowingConfig
from tsae.saes.config import require
from tsae.saes.recurrence import Recurrence
from tsae.saes.registry import register
from tsae.saes.terms import births
from tsae.sequences import SequenceContext

TEMPORAL = ("recurrent.",)


@dataclass(frozen=True)
class LSTMConfig(GrowingConfig):
    """The static config plus recurrence, memory, gate, decoder, what asks for time, and phases."""

    hidden: int = 64
    """Hidden units of the LSTM; 0 for none."""
    memory: int = 16
    """Preceding tokens whose codes the memory holds; 0 for no memory."""
    memory_k: int = 8
    """Strongest static codes of a token that the memory holds; finding more costs more."""
    rank: int = 64
    """Width to which the memory projects codes."""
    predict: float = 0.1
    """Weight of the next token's active set, in nats, once the recurrence is introduced."""
    price: float = 0.3
    """Price of what latents rise by from token to token."""
    negatives: int = 1024
    """Latents in the softmax of the prediction; of a larger dictionary so many are drawn a step."""
    lambda_gate: float = 0.001
    """Weight of the mean probability that a latent's temporal gate is open; after introduction."""
    gated: bool = True
    """Whether latents have sparse gates; without, every gate is 1 and costs nothing."""
    bridge: bool = True
    """Whether rho starts at 0, the static SAE; without, it starts at 1."""
    decoder: str = "static"
    """static, or lstm: a gated prediction from h[t-1] joins the reconstruction."""
    anneal: float = 4.0
    """Starting k over k in the static phase, falling to 1 along a cosine; no use with a teacher."""
    phase_shares: tuple[float, float, float] = (0.3, 0.3, 0.4)
    """Shares of the steps: static part, temporal parts on a frozen static part, all; 0 skips."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wholes = (("hidden", 0), ("memory", 0), ("memory_k", 1), ("rank", 1), ("negatives", 1))
        for field, least in wholes:
            value = getattr(self, field)
            ok = isinstance(value, int) and value >= least
            require(ok, field, value, f"a whole number of at least {least}")
        for field in ("lambda_gate", "predict", "price"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "at least 0")
        allowed = "static, or lstm with hidden above 0"
        ok = self.decoder == "static" or (self.decoder == "lstm" and self.hidden > 0)
        require(ok, "decoder", self.decoder, allowed)
        require(self.anneal >= 1, "anneal", self.anneal, "at least 1")
        shares = self.phase_shares
        ok = len(shares) == 3 and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6
        require(ok, "phase_shares", shares, "three shares of at least 0 that sum to 1")

    @property
    def is_static(self) -> bool:
        """Whether nothing is recurrent."""
        return self.hidden == 0 and self.memory == 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """``distil`` (with a teacher) or ``static``; ``introduce``; ``refine``."""
        if self.is_static:
            return super().phases
        a, b, c = self.phase_shares
        first = Phase("static", a, frozen=TEMPORAL, anneal=self.anneal)
        if self.teacher is not None:
            first = Phase("distil", a, frozen=TEMPORAL)
        parts = (first, Phase("introduce", b, TEMPORAL), Phase("refine", c))
        return tuple(part for part in parts if part.share > 0)


@register("lstm", LSTMConfig)
class LSTMSAE(Growing):
    """The recurrent SAE of the module's equations."""

    cfg: LSTMConfig

    def __init__(self, cfg: LSTMConfig):
        super().__init__(cfg)
        if not cfg.is_static:
            self.recurrent = Recurrence(cfg)

    @property
    def looks_back(self) -> bool:
        return not self.cfg.is_static

    def delta(self, tokens: Tokens, state: State | None) -> Delta:
        if self.cfg.is_static or self.phase.frozen == TEMPORAL:  # rho is 0 there, and stays
            return Delta()
        recurrent = self.recurrent
        # The bias is not asked to serve the recurrence, but whoever asks for dx gets it.
        asked = tokens.x_BTD.requires_grad
        x_ND = (tokens.u_BTD if asked else tokens.u_BTD.detach()).flatten(0, 1)
        c_NR = None
        if recurrent.memory is not None:
            c_NR = recurrent.memory.projected(tokens.static_NF, tokens.mask_N)
        if state is None:
            u_NS, before_NH = recurrent.states(x_ND, c_NR, tokens.context)
        else:
            u_NS, before_NH = recurrent.advance(x_ND, c_NR, tokens.context, state)
        beside = {}
        if self.cfg.decoder == "lstm":
            part_ND = recurrent.predicted(before_NH)
            beside = {"x_recurrent": part_ND * tokens.mask_N[:, None]}
        return Delta(((u_NS, recurrent.weight()),), beside=beside, aux={"state": u_NS})

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``births``; ``match_codes`` and ``match_output`` while distilling; ``next``; ``gate``; and
        with the recurrent decoder ``recurrent``, what its part changes ``mse`` by, so that
        FVE = (1 - mse) + (-recurrent) is split in two."""
        cfg, terms = self.cfg, {}
        if cfg.price > 0:
            terms["births"] = cfg.price * births(enc)
        if self.phase.name == "distil":
            terms |= self.unmatched(x_BTD, enc)
        if "state" not in enc.aux:
            return terms
        if cfg.predict > 0:
            surprise = self.recurrent.surprise(enc.aux["state"], enc.codes, enc.context)
            terms["next"] = cfg.predict * surprise
        # While rho leaves 0 no gate has earned its price yet.
        if self.recurrent.gate is not None and self.phase.name != "introduce":
            open_F = self.recurrent.gate.open_probability()
            terms["gate"] = cfg.lambda_gate * open_F.mean()
        if "x_recurrent" in enc.beside:
            error = enc.target - enc.aux["decoded"]
            gain = (error - enc.beside["x_recurrent"]).square().sum() - error.square().sum()
            terms["recurrent"] = gain / (enc.n * cfg.d_in)
        return terms

    def reported(self, enc: Encoding) -> dict[str, Tensor]:
        """Also ``gates_open`` and ``rho`` (:meth:`Recurrence.openness`)."""
        own = self.recurrent.openness() if "state" in enc.aux else {}
        return super().reported(enc) | own

    @torch.no_grad()
    def next_logits(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        """[B, T, F] ``[h; m][t] W_next + b_next``: softmax gives the chances of t + 1's latents."""
        filled = self.checked(x_BTD, context)
        u_NS = self.delta(Tokens(self, x_BTD, filled), None).aux["state"]
        logits_NF = u_NS @ self.recurrent.W_next + self.recurrent.b_next
        return logits_NF.unflatten(0, x_BTD.shape[:2])
