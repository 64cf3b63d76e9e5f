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

from torch import Tensor

from tsae.saes.activations import Counting
from tsae.saes.base import Delta, Encoding, Phase, SAEConfig, State, Tokens
from tsae.saes.bridge import Growing, match, origin
from tsae.saes.config import require
from tsae.saes.recurrence import Recurrence
from tsae.saes.registry import register
from tsae.saes.terms import count_idle

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
class LSTMSAE(Growing):
    """The recurrent SAE of the module's equations."""

    cfg: LSTMConfig
    start = "teacher"

    def __init__(self, cfg: LSTMConfig):
        super().__init__(cfg)
        self.static = cfg.hidden == 0 and cfg.memory == 0
        if not self.static:
            self.recurrent = Recurrence(cfg)
        if cfg.teacher is not None:
            self.meta = origin(cfg.teacher)  # lets the trainer refuse a store of another world

    # ---- encoder --------------------------------------------------------------------------

    @property
    def off(self) -> bool:
        """Whether the temporal parts are left out: there are none, or rho is still frozen at 0."""
        return self.static or self.phase in FIRST

    @property
    def looks_back(self) -> bool:
        return not self.static

    @property
    def codes_learn(self) -> bool:
        """False while distilling an equal activation: codes are compared at the teacher's
        threshold."""
        return self.phase != "distil" or self.parent().cfg.act != self.cfg.act

    def delta(self, tokens: Tokens, state: State | None) -> Delta:
        if self.off:
            return Delta()
        recurrent = self.recurrent
        # The bias is not asked to serve the recurrence, but whoever asks for dx gets it.
        asked = tokens.x_BTD.requires_grad
        x_ND = (tokens.u_BTD if asked else tokens.u_BTD.detach()).flatten(0, 1)
        c_NR = None
        if recurrent.memory is not None:
            c_NR = recurrent.memory.projected(tokens.static_NF, tokens.mask_N)
        if state is None:
            u_NS, before_NH = recurrent.states(x_ND, c_NR, tokens.context, self.cfg.tbptt)
        else:
            u_NS, before_NH = recurrent.advance(x_ND, c_NR, tokens.context, state)
        beside = {}
        if self.cfg.decoder == "lstm":
            part_ND = recurrent.predicted(before_NH)
            beside = {"x_recurrent": part_ND * tokens.mask_N[:, None]}
        return Delta(((u_NS, recurrent.weight()),), beside=beside)

    # ---- loss -----------------------------------------------------------------------------

    def terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """As the base; while distilling, those of :func:`tsae.saes.bridge.match`."""
        if self.phase != "distil":
            return super().terms(x_BTD, enc)
        terms = match(self, self.parent(), x_BTD, enc)
        if self.training:
            count_idle(self.idle_tokens, (enc.z_NF > 0).any(0), int(enc.n))
        return terms

    def aux_term(self, enc: Encoding, error_ND: Tensor) -> dict[str, Tensor]:
        """AuxK through the static encoder alone: the recurrence is not asked to revive the dead."""
        return super().aux_term(enc._replace(pairs=enc.pairs[:1]), error_ND)

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``gate``; and with the recurrent decoder ``recurrent``, what its part changes ``mse`` by,
        so that FVE = (1 - mse) + (-recurrent) is split in two."""
        terms = {}
        # While rho leaves 0 no gate has earned its price yet.
        if not self.off and self.recurrent.gate is not None and self.phase != "introduce":
            open_F = self.recurrent.gate.open_probability()
            terms["gate"] = self.cfg.lambda_gate * open_F.mean()
        if "x_recurrent" in enc.beside:
            error = enc.target - enc.aux["decoded"]
            gain = (error - enc.beside["x_recurrent"]).square().sum() - error.square().sum()
            terms["recurrent"] = gain / (enc.n * self.cfg.d_in)
        return terms

    def reported(self, enc: Encoding) -> dict[str, Tensor]:
        """Also ``gates_open`` and ``rho`` (:meth:`Recurrence.openness`), or the static ``mse`` while
        distilling."""
        own = {} if self.off else self.recurrent.openness()
        if self.phase == "distil":
            error = enc.target - self.decoded(enc.codes).detach()
            own = {"mse": error.square().sum() / (enc.n * self.cfg.d_in)}
        return super().reported(enc) | own

    # ---- what the trainer calls -----------------------------------------------------------

    def phases(self) -> tuple[Phase, ...]:
        """``distil`` (with a teacher) or ``static``; ``introduce``; ``refine``."""
        if self.static:
            return super().phases()
        static = tuple(n for n, _ in self.named_parameters() if not n.startswith("recurrent."))
        names = ("distil" if self.grows else "static", "introduce", "refine")
        parts = zip(names, self.cfg.phase_shares, (static, ("recurrent.",), None), strict=True)
        return tuple(Phase(*part) for part in parts if part[1] > 0)

    def start_step(self, step: int, n_steps: int, phase: str = "train") -> None:
        """Also anneal k along the static phase: k (1 + (anneal - 1)(1 + cos(pi p)) / 2)."""
        super().start_step(step, n_steps, phase)
        p = min(1.0, self.progress / self.cfg.phase_shares[0]) if phase == "static" else 1.0
        factor = 1 + (self.cfg.anneal - 1) * (1 + math.cos(math.pi * p)) / 2
        if isinstance(self.act, Counting):  # inference always has k
            self.act.k_training = min(round(self.cfg.k * factor), self.cfg.d_sae)

    def finish_step(self) -> None:
        """As the base, unless a perfect match leaves the decoder where it is: rounding its norms
        then would make a mismatch, and Adam a step of full size from any gradient at all."""
        if self.phase != "distil" or self.W_dec.grad is None or bool(self.W_dec.grad.any()):
            super().finish_step()
