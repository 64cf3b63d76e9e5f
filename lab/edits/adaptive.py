r"""Clamping only while the text speaks of what is to be forgotten.

    u[t] = Σ_{i chosen} z_i[t] · 1[z_i[t] > q_i]              evidence ``mass``
    u[t] = Σ_i w_i z_i[t] + c                                 evidence ``logistic``
    s[t] = ρ s[t−1] + (1 − ρ) u[t]                            score ``ema``
    s[t] = max(0, s[t−1] + u[t] − κ),   κ = E u + σ(u) / 2    score ``cusum`` (Page 1954)
    z'_i[t] = −m · unit   where s[t] > h and (z_i[t] > q_i or ``hold``),   else z_i[t]

q_i is the (1 − ``latent_rate``) quantile of z_i on retained text, and h the smallest score there
that at most a share ``false_positive_rate`` of its tokens exceeds; E u and σ(u) are over it too.
w and c: a logistic regression that tells tokens of forget text from tokens of retained text by all
codes, for a dictionary that says the subject with many latents and with none alone. s starts at 0
in every document, stands still at masked tokens, and looks at the past alone. With ``hold`` the
edit goes on while the score remembers: what is named at one token is asked for some tokens later.
Source: this project.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lab.edits.edit import Edit
from tsae.saes.base import DOCUMENT, SAE, FilledContext, require

SCORES = ("ema", "cusum")
EVIDENCE = ("mass", "logistic")
REGULARISATION = 0.03
"""scikit-learn's C of the logistic evidence."""


@dataclass(frozen=True)
class DetectorConfig:
    """How the running score is made and calibrated."""

    score: str = "ema"
    """The running score: ema or cusum."""
    decay: float = 0.8
    """ρ of the EMA, per token."""
    false_positive_rate: float = 0.03
    """Largest share of retained tokens at which the score may be above its threshold."""
    latent_rate: float = 0.01
    """Share of retained tokens at which each latent may be above its own threshold."""
    hold: bool = False
    """Whether silent latents too are set while the score is above its threshold."""
    evidence: str = "mass"
    """What the score adds up: mass (of the chosen latents) or logistic (of all codes)."""

    def __post_init__(self) -> None:
        require(self.score in SCORES, "score", self.score, f"one of {', '.join(SCORES)}")
        require(
            self.evidence in EVIDENCE, "evidence", self.evidence, f"one of {', '.join(EVIDENCE)}"
        )
        require(0 <= self.decay < 1, "decay", self.decay, "in [0, 1)")
        for field in ("false_positive_rate", "latent_rate"):
            require(0 <= getattr(self, field) < 1, field, getattr(self, field), "in [0, 1)")


@dataclass(frozen=True, eq=False)
class Detector:
    """What a calibration found: q [K], κ and h, and the share of retained tokens above h.

    ``weights``: w [F] and c of the logistic evidence, else None. ``scores_N``: s of the retained
    tokens, the largest first.
    """

    cfg: DetectorConfig
    q_K: Tensor
    drift: float
    threshold: float
    measured_rate: float
    weights: tuple[Tensor, float] | None = None
    scores_N: Tensor | None = None

    def at(self, rate: float) -> "Detector":
        """The same detector with h set for another false-positive rate."""
        assert self.scores_N is not None
        threshold = float(self.scores_N[math.floor(rate * len(self.scores_N) + 1e-9)])
        measured = float((self.scores_N > threshold).double().mean())
        cfg = replace(self.cfg, false_positive_rate=rate)
        return replace(self, cfg=cfg, threshold=threshold, measured_rate=measured)

    def evidence(self, z_BTR: Tensor) -> Tensor:
        """u [B, T] of the codes that are read: the chosen latents', or all for ``logistic``."""
        if self.weights is not None:
            w_F, c = self.weights
            return z_BTR @ w_F + c
        return torch.where(z_BTR > self.q_K, z_BTR, 0.0).sum(-1)

    def score(self, z_BTR: Tensor, context: FilledContext) -> Tensor:
        """s [B, T] of the codes that are read."""
        return running(self.evidence(z_BTR), context, self.cfg, self.drift)

    def above(self, z_BTR: Tensor, context: FilledContext) -> Tensor:
        """[B, T] bool: valid tokens at which the score is above the threshold."""
        return (self.score(z_BTR, context) > self.threshold) & context.mask_BT


def running(mass_BT: Tensor, context: FilledContext, cfg: DetectorConfig, drift: float) -> Tensor:
    """s [B, T] of an evidence u [B, T]; see the module's equations."""
    starts_BT = context.boundary_BT >= DOCUMENT
    s_B = torch.zeros_like(mass_BT[:, 0])
    scores = []
    for t in range(mass_BT.shape[1]):
        s_B = torch.where(starts_BT[:, t], 0.0, s_B)
        if cfg.score == "ema":
            moved_B = cfg.decay * s_B + (1 - cfg.decay) * mass_BT[:, t]
        else:
            moved_B = (s_B + mass_BT[:, t] - drift).clamp_min(0.0)
        s_B = torch.where(context.mask_BT[:, t], moved_B, s_B)
        scores.append(s_B)
    return torch.stack(scores, 1)


def exceeded_at_most(values_N: Tensor, share: float) -> Tensor:
    """Along dim 0, the smallest of the values that at most a share ``share`` of them exceeds."""
    rank = math.floor(share * len(values_N) + 1e-9)
    return values_N.sort(0, descending=True).values[rank]


@torch.no_grad()
def calibrate(
    sae: SAE,
    latents: Tensor,
    retain_batches: Iterable[Any],
    cfg: DetectorConfig | None = None,
    forget_batches: Iterable[Any] | None = None,
) -> Detector:
    """Set q, κ and h on retained text (:class:`lab.edits.ranking.Text` or store batches).

    The measured rate equals the asked one up to 1/n and ties (a score that is 0 nearly everywhere
    has h = 0 and a lower rate). ``forget_batches``: for the logistic evidence, which reads all
    codes. Raises ValueError when no token counts, or that text is missing.
    """
    cfg = cfg or DetectorConfig()
    logistic = cfg.evidence == "logistic"
    require(not logistic or forget_batches is not None, "forget_batches", None, "the forget text")
    chosen = latents.to(sae.W_dec.device)
    codes, contexts, keeps, kept = [], [], [], []
    for batch in retain_batches:
        z_BTF = sae.encode(batch.x_BTD, batch.context)
        contexts.append(batch.context.filled(batch.x_BTD))
        keeps.append(getattr(batch, "keep_BT", contexts[-1].mask_BT))
        # Whole sequences are needed, since the score has memory; sparse, all codes fit.
        codes.append(z_BTF.to_sparse() if logistic else z_BTF[..., chosen])
        kept.append(scipy.sparse.csr_array(z_BTF[keeps[-1]].cpu().numpy()) if logistic else None)
    n = sum(int(keep_BT.sum()) for keep_BT in keeps)
    require(n > 0, "tokens", n, "at least 1; the retained text to calibrate on is empty")
    read_K = chosen if logistic else slice(None)
    z_NK = torch.cat(
        [z.to_dense()[..., read_K][keep] for z, keep in zip(codes, keeps, strict=True)]
    )
    q_K = exceeded_at_most(z_NK, cfg.latent_rate)
    weights = None
    if logistic and forget_batches is not None:
        weights = separating(sae, scipy.sparse.vstack(kept), forget_batches)
    rough = Detector(cfg, q_K, 0.0, math.inf, 0.0, weights)
    mass = [rough.evidence(z.to_dense()) for z in codes]
    u_N = torch.cat([u[keep] for u, keep in zip(mass, keeps, strict=True)]).double()
    rough = replace(rough, drift=float(u_N.mean() + u_N.std(correction=0) / 2))
    parts = zip(mass, contexts, keeps, strict=True)
    s_N = torch.cat([running(u, context, cfg, rough.drift)[keep] for u, context, keep in parts])
    whole = replace(rough, scores_N=s_N.sort(descending=True).values)
    return whole.at(cfg.false_positive_rate)


def separating(
    sae: SAE, retain_NF: scipy.sparse.csr_array, forget_batches: Iterable[Any]
) -> tuple[Tensor, float]:
    """w [F] and c of a balanced logistic regression of forget against retained tokens."""
    parts = [retain_NF]
    for batch in forget_batches:
        z_BTF = sae.encode(batch.x_BTD, batch.context)
        kept = getattr(batch, "keep_BT", batch.context.filled(batch.x_BTD).mask_BT)
        parts.append(scipy.sparse.csr_array(z_BTF[kept].cpu().numpy()))
    codes = scipy.sparse.vstack(parts)
    is_forget = np.arange(codes.shape[0]) >= retain_NF.shape[0]
    require(is_forget.any(), "tokens", 0, "at least 1; the forget text is empty")
    fit = LogisticRegression(
        C=REGULARISATION, class_weight="balanced", max_iter=1000, tol=1e-3
    ).fit(codes, is_forget)
    w_F = torch.as_tensor(fit.coef_[0], dtype=torch.float32, device=sae.W_dec.device)
    return w_F, float(fit.intercept_[0])


class Adaptive(Edit):
    """The clamp of the module's equations; ``detector`` comes from :func:`calibrate`."""

    strategy = "adaptive"

    def __init__(
        self,
        sae: SAE,
        latents: Tensor | Iterable[int],
        multiplier: float,
        scale: float,
        relative: bool = False,
        *,
        detector: Detector,
        **options: Any,
    ) -> None:
        super().__init__(sae, latents, multiplier, scale, relative, **options)
        same = len(detector.q_K) == len(self.latents) or detector.cfg.hold
        require(same, "detector", len(detector.q_K), f"of the {len(self.latents)} chosen latents")
        self.detector = detector

    @property
    def triggers(self) -> Tensor:
        """See :attr:`Edit.triggers`; the logistic evidence reads every latent."""
        if self.detector.weights is None:
            return self.latents
        return torch.arange(self.sae.cfg.d_sae, device=self.latents.device)

    def edited(self, z_BTF: Tensor, x_BTD: Tensor, context: FilledContext) -> Tensor:
        old_BTK = z_BTF[..., self.latents]
        read_BTR = old_BTK if self.detector.weights is None else z_BTF
        active_BT1 = self.detector.above(read_BTR, context)[..., None]
        act_BTK = active_BT1.expand_as(old_BTK)
        if not self.detector.cfg.hold:
            act_BTK = act_BTK & (old_BTK > self.detector.q_K)
        new_BTF = z_BTF.clone()
        new_BTF[..., self.latents] = torch.where(act_BTK, self.target(x_BTD), old_BTK)
        return new_BTF
