r"""What a gate adds up: how much the present token speaks of the subject, u [B, T].

    codes     u = Σ_{i chosen} w_i 1[z_i > q_i];     random: the same of random latents
    logistic  u = w·z + c, over all codes;           residual: u = w·x + c, no dictionary at all
    chain     u = weight of the longest run of a chain that has fired in order and ends here

q_i is the (1 − LATENT_RATE) quantile of z_i on retained text, and w_i = log P_f(z_i > q_i) / P_r(z_i
> q_i) how much more often it is exceeded on forget text: a log-likelihood ratio, so that one large
code weighs no more than its latent tells. w and c are a logistic regression that tells tokens of
forget text from tokens of retained text. Source: this project.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lab.edits.ranking import Coded, Read, exceeded_at_most
from tsae.sequences import DOCUMENT

EVIDENCE = ("codes", "random", "logistic", "residual", "chain")
Evidence = Callable[[Read], Tensor]
LATENT_RATE = 0.01
"""Share of retained tokens at which each latent may be above its own threshold q."""
REGULARISATION = {"logistic": 0.03, "residual": 0.001}
"""scikit-learn's C of the two regressions; residuals are standardised for theirs."""


def quantiles(latents: Tensor, retain: Sequence[Coded], rate: float = LATENT_RATE) -> Tensor:
    """q [K]: what at most a share ``rate`` of the retained tokens exceeds."""
    return exceeded_at_most(torch.cat([text.kept(latents) for text in retain]), rate)


@dataclass(frozen=True, eq=False)
class Votes:
    """Evidence ``codes`` and ``random``."""

    latents: Tensor
    q_K: Tensor
    w_K: Tensor

    @classmethod
    def of(cls, latents: Tensor, forget: Sequence[Coded], retain: Sequence[Coded]) -> "Votes":
        """With q and w of both texts; a rate is of one more case of either kind."""
        q_K = quantiles(latents, retain)
        rates = []
        for texts in (forget, retain):
            above_NK = torch.cat([text.kept(latents) for text in texts]) > q_K
            rates.append((above_NK.sum(0) + 1) / (len(above_NK) + 2))
        return cls(latents, q_K, (rates[0] / rates[1]).log())

    def __call__(self, read: Read) -> Tensor:
        return ((read.z_BTF[..., self.latents] > self.q_K) * self.w_K).sum(-1)


@dataclass(frozen=True, eq=False)
class Probe:
    """Evidence ``logistic`` (of the codes) and ``residual`` (of x)."""

    w: Tensor
    c: float
    of_codes: bool

    def __call__(self, read: Read) -> Tensor:
        return (read.z_BTF if self.of_codes else read.x_BTD) @ self.w + self.c


def separating(kind: str, forget: Sequence[Coded], retain: Sequence[Coded]) -> Probe:
    """A balanced logistic regression of forget against retained tokens, ``logistic`` or
    ``residual``."""
    texts, scale = (*retain, *forget), 1.0
    if kind == "logistic":
        x_N = scipy.sparse.vstack([scipy.sparse.csr_array(t.kept().cpu().numpy()) for t in texts])
    else:
        x_N = torch.cat([t.x_BTD[t.keep_BT] for t in texts]).cpu().double().numpy()
        scale = x_N.std(0).clip(1e-6)
        x_N = x_N / scale
    is_forget = np.arange(x_N.shape[0]) >= sum(int(t.keep_BT.sum()) for t in retain)
    C = REGULARISATION[kind]
    fit = LogisticRegression(C=C, class_weight="balanced", max_iter=1000, tol=1e-3)
    fit.fit(x_N, is_forget)
    w = torch.as_tensor(fit.coef_[0] / scale, dtype=torch.float32).to(retain[0].x_BTD.device)
    return Probe(w, float(fit.intercept_[0]), kind == "logistic")


class Path(NamedTuple):
    """Latents in order of time, the lags allowed between each two, and each step's weight."""

    latents: tuple[int, ...]
    lags: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Prefix:
    r"""Evidence ``chain``: over paths i_1 → i_2 → …, with f_p[t] = 1[z_{i_p}[t] > q_{i_p}],

        s_1[t] = 0 where f_1[t];   s_p[t] = max_ℓ s_{p−1}[t − ℓ] + w_p where f_p[t];   −∞ elsewhere

    with t − ℓ in the same document, and u = max over paths and p ≥ 2, 0 where nothing was completed:
    a single link out of its order, or a latent alone, says nothing.
    """

    paths: Sequence[Path]
    q: dict[int, float]

    @classmethod
    def of(cls, paths: Sequence[Path], retain: Sequence[Coded]) -> "Prefix":
        """With q of each latent from retained text."""
        ids = torch.tensor(sorted({i for path in paths for i in path.latents}))
        q_K = quantiles(ids.to(retain[0].x_BTD.device), retain)
        return cls(paths, dict(zip(ids.tolist(), q_K.tolist(), strict=True)))

    def __call__(self, read: Read) -> Tensor:
        document_BT = (read.context.boundary_BT >= DOCUMENT).cumsum(1)
        fires = {i: (read.z_BTF[..., i] > q) & read.context.mask_BT for i, q in self.q.items()}
        u_BT = read.z_BTF.new_zeros(document_BT.shape)
        none = -math.inf
        for path in self.paths:
            s_BT = torch.where(fires[path.latents[0]], 0.0, none)
            for latent, lags, weight in zip(path.latents[1:], path.lags, path.weights, strict=True):
                best_BT = torch.full_like(u_BT, none)
                for lag in (k for k in lags if k < u_BT.shape[1]):
                    same_BT = document_BT[:, lag:] == document_BT[:, :-lag]
                    earlier_BT = torch.where(same_BT, s_BT[:, :-lag], none)
                    best_BT[:, lag:] = torch.maximum(best_BT[:, lag:], earlier_BT)
                s_BT = torch.where(fires[latent], best_BT + weight, none)
                u_BT = torch.maximum(u_BT, s_BT)
        return u_BT
