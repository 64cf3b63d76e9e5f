r"""Clamping only while the text speaks of what is to be forgotten.

    u[t] = Σ_{i chosen} z_i[t] · 1[z_i[t] > q_i]              forget-latent mass
    s[t] = ρ s[t−1] + (1 − ρ) u[t]                            ``ema``
    s[t] = max(0, s[t−1] + u[t] − κ),   κ = E u + σ(u) / 2    ``cusum`` (Page 1954)
    z'_i[t] = −m · unit   where s[t] > h and z_i[t] > q_i,   else z_i[t]

q_i is the (1 − ``latent_rate``) quantile of z_i on retained text, and h the smallest score there
that at most a share ``false_positive_rate`` of its tokens exceeds; E u and σ(u) are over it too. s
starts at 0 in every document, stands still at masked tokens, and looks at the past alone. Source:
this project.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsae.interventions.edit import Edit
from tsae.saes.base import DOCUMENT, SAE, SequenceContext, require

SCORES = ("ema", "cusum")


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

    def __post_init__(self) -> None:
        require(self.score in SCORES, "score", self.score, f"one of {', '.join(SCORES)}")
        require(0 <= self.decay < 1, "decay", self.decay, "in [0, 1)")
        for field in ("false_positive_rate", "latent_rate"):
            require(0 <= getattr(self, field) < 1, field, getattr(self, field), "in [0, 1)")


@dataclass(frozen=True, eq=False)
class Detector:
    """What a calibration found: q [K], κ and h, with the share of retained tokens above h."""

    cfg: DetectorConfig
    q_K: Tensor
    drift: float
    threshold: float
    measured_rate: float

    def score(self, z_BTK: Tensor, context: SequenceContext) -> Tensor:
        """s [B, T] of the chosen latents' codes."""
        mass_BT = torch.where(z_BTK > self.q_K, z_BTK, 0.0).sum(-1)
        return running(mass_BT, context, self.cfg, self.drift)

    def above(self, z_BTK: Tensor, context: SequenceContext) -> Tensor:
        """[B, T] bool: valid tokens at which the score is above the threshold."""
        return (self.score(z_BTK, context) > self.threshold) & context.mask_BT


def running(mass_BT: Tensor, context: SequenceContext, cfg: DetectorConfig, drift: float) -> Tensor:
    """s [B, T] of a mass [B, T] ≥ 0; see the module's equations."""
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
    sae: SAE, latents: Tensor, retain_batches: Iterable[Any], cfg: DetectorConfig | None = None
) -> Detector:
    """Set q, κ and h on retained text (:class:`~tsae.interventions.ranking.Text` or store batches).

    The measured rate equals the asked one up to 1/n and ties (a score that is 0 nearly everywhere
    has h = 0 and a lower rate). Raises ValueError when no token counts.
    """
    cfg = cfg or DetectorConfig()
    latents = latents.to(sae.W_dec.device)
    codes, contexts, keeps = [], [], []
    for batch in retain_batches:
        codes.append(sae.encode(batch.x_BTD, batch.context)[..., latents])
        contexts.append(batch.context.filled(batch.x_BTD))
        keeps.append(getattr(batch, "keep_BT", contexts[-1].mask_BT))
    n = sum(int(keep_BT.sum()) for keep_BT in keeps)
    require(n > 0, "tokens", n, "at least 1; the retained text to calibrate on is empty")
    z_NK = torch.cat([z[keep] for z, keep in zip(codes, keeps, strict=True)])
    q_K = exceeded_at_most(z_NK, cfg.latent_rate)
    mass_N = torch.where(z_NK > q_K, z_NK, 0.0).sum(-1).double()
    drift = float(mass_N.mean() + mass_N.std(correction=0) / 2)
    rough = Detector(cfg, q_K, drift, math.inf, 0.0)
    pairs = zip(codes, contexts, keeps, strict=True)
    s_N = torch.cat([rough.score(z, context)[keep] for z, context, keep in pairs])
    threshold = float(exceeded_at_most(s_N, cfg.false_positive_rate))
    return Detector(cfg, q_K, drift, threshold, float((s_N > threshold).double().mean()))


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
        same = len(detector.q_K) == len(self.latents)
        require(same, "detector", len(detector.q_K), f"of the {len(self.latents)} chosen latents")
        self.detector = detector

    def edited(self, z_BTF: Tensor, x_BTD: Tensor, context: SequenceContext) -> Tensor:
        old_BTK = z_BTF[..., self.latents]
        active_BT1 = self.detector.above(old_BTK, context)[..., None]
        act_BTK = active_BT1 & (old_BTK > self.detector.q_K)
        new_BTF = z_BTF.clone()
        new_BTF[..., self.latents] = torch.where(act_BTK, self.target(x_BTD), old_BTK)
        return new_BTF
