r"""What a gate adds up: how much the present token speaks of the subject, u [B, T].

    codes     u = Σ_{i chosen} z_i · 1[z_i > q_i];   random: the same of random latents
    logistic  u = w·z + c, over all codes;           residual: u = w·x + c, no dictionary at all
    chain     u = weight of the longest run of a chain that has fired in order and ends here

q_i is the (1 − ``latent_rate``) quantile of z_i on retained text; w and c are a logistic regression
that tells tokens of forget text from tokens of retained text. Source: this project.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tsae.saes.base import SAE
from tsae.saes.config import require
from tsae.sequences import DOCUMENT, FilledContext

EVIDENCE = ("codes", "random", "logistic", "residual", "chain")
REGULARISATION = {"logistic": 0.03, "residual": 0.001}
"""scikit-learn's C of the two regressions; residuals are standardised for theirs."""


class Coded(NamedTuple):
    """A text read once: x [B, T, d], its codes [B, T, F] as a sparse tensor, the context, and which
    tokens count."""

    x_BTD: Tensor
    z_BTF: Tensor
    context: FilledContext
    keep_BT: Tensor

    def kept(self, latents: Tensor | slice = slice(None)) -> Tensor:
        """The codes [N, K] of the tokens that count."""
        return self.z_BTF.to_dense()[self.keep_BT][:, latents]


@torch.no_grad()
def coded(sae: SAE, texts: Iterable[Any]) -> list[Coded]:
    """Texts (:class:`lab.edits.ranking.Text`, or batches, whose valid tokens all count) as codes.

    Raises ValueError when no token counts.
    """
    out = []
    for text in texts:
        context = text.context.filled(text.x_BTD)
        keep_BT = getattr(text, "keep_BT", context.mask_BT)
        z_BTF = sae.encode(text.x_BTD, text.context).to_sparse()
        out.append(Coded(text.x_BTD, z_BTF, context, keep_BT))
    n = sum(int(text.keep_BT.sum()) for text in out)
    require(n > 0, "tokens", n, "at least 1; the text is empty")
    return out


def exceeded_at_most(values_N: Tensor, share: float) -> Tensor:
    """Along dim 0, the smallest of the values that at most a share ``share`` of them exceeds."""
    rank = math.floor(share * len(values_N) + 1e-9)
    return values_N.sort(0, descending=True).values[rank]


def quantiles(latents: Tensor, retain: Sequence[Coded], rate: float) -> Tensor:
    """q [K]: what at most a share ``rate`` of the retained tokens exceeds."""
    return exceeded_at_most(torch.cat([text.kept(latents) for text in retain]), rate)


@dataclass(frozen=True, eq=False)
class Mass:
    """Evidence ``codes`` and ``random``."""

    latents: Tensor
    q_K: Tensor

    def __call__(self, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext) -> Tensor:
        z_BTK = z_BTF[..., self.latents]
        return torch.where(z_BTK > self.q_K, z_BTK, 0.0).sum(-1)


@dataclass(frozen=True, eq=False)
class Probe:
    """Evidence ``logistic`` (of the codes) and ``residual`` (of x)."""

    w: Tensor
    c: float
    of_codes: bool

    def __call__(self, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext) -> Tensor:
        return (z_BTF if self.of_codes else x_BTD) @ self.w + self.c


def separating(kind: str, forget: Sequence[Coded], retain: Sequence[Coded]) -> Probe:
    """A balanced logistic regression of forget against retained tokens, ``logistic`` or
    ``residual``."""
    if kind == "logistic":
        parts = [scipy.sparse.csr_array(t.kept().cpu().numpy()) for t in (*retain, *forget)]
        x_N, scale = scipy.sparse.vstack(parts), 1.0
    else:
        x_N = torch.cat([t.x_BTD[t.keep_BT] for t in (*retain, *forget)]).cpu().double().numpy()
        scale = x_N.std(0).clip(1e-6)
        x_N = x_N / scale
    n = sum(int(t.keep_BT.sum()) for t in retain)
    is_forget = np.arange(x_N.shape[0]) >= n
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

    paths: tuple[Path, ...]
    q: dict[int, float]

    def __call__(self, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext) -> Tensor:
        document_BT = (context.boundary_BT >= DOCUMENT).cumsum(1)
        ids = sorted(self.q)
        column = {latent: n for n, latent in enumerate(ids)}
        q_K = z_BTF.new_tensor([self.q[i] for i in ids])
        fires_BTK = (z_BTF[..., ids] > q_K) & context.mask_BT[..., None]
        u_BT = z_BTF.new_zeros(z_BTF.shape[:2])
        none = -math.inf
        for path in self.paths:
            s_BT = torch.where(fires_BTK[..., column[path.latents[0]]], 0.0, none)
            steps = zip(path.latents[1:], path.lags, path.weights, strict=True)
            for latent, lags, weight in steps:
                best_BT = torch.full_like(u_BT, none)
                for lag in (k for k in lags if k < u_BT.shape[1]):
                    same_BT = document_BT[:, lag:] == document_BT[:, :-lag]
                    earlier_BT = torch.where(same_BT, s_BT[:, :-lag], none)
                    best_BT[:, lag:] = torch.maximum(best_BT[:, lag:], earlier_BT)
                s_BT = torch.where(fires_BTK[..., column[latent]], best_BT + weight, none)
                u_BT = torch.maximum(u_BT, s_BT)
        return u_BT
