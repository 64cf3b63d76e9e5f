r"""When to edit: a running score of evidence u that is held to a threshold set on retained text.

    token   s[t] = u[t]                         window  s[t] = mean of the last w valid u
    share   s[t] = Σ 1[u > 0] / (n + 4) over the document's n tokens up to t     (ρ of dynamic guardrails)
    ema     s[t] = ρ s[t−1] + (1 − ρ) u[t]
    cusum   s[t] = max(0, s[t−1] + u[t] − κ),   κ = E u + σ(u) / 2                  (Page 1954)
    open    s[t] > h

h is the smallest score on retained text that at most a share ``false_positive_rate`` of its tokens
exceeds; E u and σ(u) are over it too. s starts at 0 in every document, stands still at masked
tokens, and looks at the past alone. ``share`` is what DSG (arXiv 2504.08192) thresholds, made
causal, with four silent tokens put in front, since the share of a document's first token is 0 or 1:
benign text in front of a question dilutes it, while ``ema`` and ``cusum`` forget that text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lab.edits.evidence import Coded
from tsae.saes.config import require
from tsae.sequences import DOCUMENT, FilledContext

SILENT = 4
"""Tokens put in front of a document by the score ``share``."""
SCORES = ("token", "window", "share", "ema", "cusum")
Evidence = Callable[[Tensor, Tensor, FilledContext], Tensor]


@dataclass(frozen=True)
class GateConfig:
    """How the running score is made and calibrated."""

    score: str = "ema"
    """The running score: token, window, share, ema or cusum."""
    decay: float = 0.8
    """ρ of the EMA, per token."""
    window: int = 16
    """Tokens of the window."""
    false_positive_rate: float = 0.01
    """Largest share of retained tokens at which the gate may be open."""
    latent_rate: float = 0.01
    """Share of retained tokens at which each latent may be above its own threshold q."""

    def __post_init__(self) -> None:
        require(self.score in SCORES, "score", self.score, f"one of {', '.join(SCORES)}")
        require(0 <= self.decay < 1, "decay", self.decay, "in [0, 1)")
        require(self.window >= 1, "window", self.window, "at least 1")
        for field in ("false_positive_rate", "latent_rate"):
            require(0 <= getattr(self, field) < 1, field, getattr(self, field), "in [0, 1)")


@dataclass(frozen=True, eq=False)
class Gate:
    """What a calibration found: κ, h, and the share of retained tokens above h.

    ``scores_N``: s of the retained tokens, the largest first.
    """

    cfg: GateConfig
    evidence: Evidence
    drift: float = 0.0
    threshold: float = math.inf
    measured_rate: float = 0.0
    scores_N: Tensor | None = None

    def at(self, rate: float) -> "Gate":
        """The same gate with h set for another false-positive rate."""
        assert self.scores_N is not None
        threshold = float(self.scores_N[math.floor(rate * len(self.scores_N) + 1e-9)])
        measured = float((self.scores_N > threshold).double().mean())
        cfg = replace(self.cfg, false_positive_rate=rate)
        return replace(self, cfg=cfg, threshold=threshold, measured_rate=measured)

    def score(self, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext) -> Tensor:
        """s [B, T]."""
        return running(self.evidence(x_BTD, z_BTF, context), context, self.cfg, self.drift)

    def open(self, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext) -> Tensor:
        """[B, T] bool: valid tokens at which the score is above the threshold."""
        return (self.score(x_BTD, z_BTF, context) > self.threshold) & context.mask_BT


def running(u_BT: Tensor, context: FilledContext, cfg: GateConfig, drift: float) -> Tensor:
    """s [B, T] of the evidence; see the module's equations."""
    if cfg.score == "token":
        return u_BT
    if cfg.score in ("window", "share"):
        return averaged(u_BT, context, cfg)
    starts_BT = context.boundary_BT >= DOCUMENT
    s_B = torch.zeros_like(u_BT[:, 0])
    scores = []
    for t in range(u_BT.shape[1]):
        s_B = torch.where(starts_BT[:, t], 0.0, s_B)
        if cfg.score == "ema":
            moved_B = cfg.decay * s_B + (1 - cfg.decay) * u_BT[:, t]
        else:
            moved_B = (s_B + u_BT[:, t] - drift).clamp_min(0.0)
        s_B = torch.where(context.mask_BT[:, t], moved_B, s_B)
        scores.append(s_B)
    return torch.stack(scores, 1)


def averaged(u_BT: Tensor, context: FilledContext, cfg: GateConfig) -> Tensor:
    """``window`` and ``share``: the mean over valid tokens since the later of the window's and the
    document's start, 0 where there is none."""
    valid_BT = context.mask_BT.to(u_BT.dtype)
    value_BT = (u_BT > 0).to(u_BT.dtype) if cfg.score == "share" else u_BT
    zero_B1 = u_BT.new_zeros(len(u_BT), 1, dtype=torch.float64)
    sum_BT = torch.cat([zero_B1, (value_BT * valid_BT).double().cumsum(1)], 1)
    count_BT = torch.cat([zero_B1, valid_BT.double().cumsum(1)], 1)
    at_T = torch.arange(u_BT.shape[1], device=u_BT.device)
    start_BT = torch.where(context.boundary_BT >= DOCUMENT, at_T, 0).cummax(1).values
    if cfg.score == "window":
        start_BT = torch.maximum(start_BT, (at_T + 1 - cfg.window).clamp_min(0))
    n_BT = count_BT[:, 1:] - count_BT.gather(1, start_BT)
    total_BT = sum_BT[:, 1:] - sum_BT.gather(1, start_BT)
    n_BT = n_BT + SILENT if cfg.score == "share" else n_BT.clamp_min(1)
    return (total_BT / n_BT).to(u_BT.dtype)


@torch.no_grad()
def calibrate(evidence: Evidence, retain: Sequence[Coded], cfg: GateConfig) -> Gate:
    """Set κ and h on retained text.

    The measured rate equals the asked one up to 1/n and ties (a score that is 0 nearly everywhere
    has h = 0 and a lower rate).
    """
    found = [evidence(t.x_BTD, t.z_BTF.to_dense(), t.context) for t in retain]
    u_N = torch.cat([u[t.keep_BT] for u, t in zip(found, retain, strict=True)]).double()
    drift = float(u_N.mean() + u_N.std(correction=0) / 2)
    parts = zip(found, retain, strict=True)
    s_N = torch.cat([running(u, t.context, cfg, drift)[t.keep_BT] for u, t in parts])
    rough = Gate(cfg, evidence, drift, scores_N=s_N.sort(descending=True).values)
    return rough.at(cfg.false_positive_rate)
