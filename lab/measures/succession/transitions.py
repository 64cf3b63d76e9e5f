"""Which latent follows which: lagged co-activation counts, their φ table, and successions."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor


class LaggedCounts:
    """How often latent j is active ``lag`` tokens after latent i, for the M latents followed.

    Pairs of tokens lie in one piece. ``together_LMM``[l, i, j] counts "i active at t − lag_l and j
    at t"; ``before_LM`` and ``after_LM`` count each alone over the same pairs, ``pairs_L`` the
    pairs. ``arrivals_MM``[i, j] counts i at t − 1 followed by j at t, j being silent at t − 1.
    """

    def __init__(self, n_latents: int, lags: tuple[int, ...]):
        n, m = len(lags), n_latents
        self.lags = lags
        self.together_LMM = torch.zeros(n, m, m, dtype=torch.float64)
        self.before_LM = torch.zeros(n, m, dtype=torch.float64)
        self.after_LM = torch.zeros(n, m, dtype=torch.float64)
        self.pairs_L = torch.zeros(n, dtype=torch.float64)
        self.arrivals_MM = torch.zeros(m, m, dtype=torch.float64)
        self.sources_M = torch.zeros(m, dtype=torch.float64)
        self.arrived_M = torch.zeros(m, dtype=torch.float64)
        self.links = 0

    def update(self, active_NM: Tensor, piece_N: Tensor) -> None:
        a_NM = active_NM.float()
        for i, lag in enumerate((*self.lags, 1)):
            if lag >= len(a_NM):
                continue
            linked = (piece_N[lag:] == piece_N[:-lag])[:, None]
            before, after = a_NM[:-lag] * linked, a_NM[lag:] * linked
            if i == len(self.lags):
                after = after * (1 - before)
                self.arrivals_MM += (before.T @ after).cpu()
                self.arrived_M += after.sum(0).cpu()
                self.sources_M += before.sum(0).cpu()
                self.links += int(linked.sum())
            else:
                self.together_LMM[i] += (before.T @ after).cpu()
                self.before_LM[i] += before.sum(0).cpu()
                self.after_LM[i] += after.sum(0).cpu()
                self.pairs_L[i] += int(linked.sum())

    def phi(self) -> Tensor:
        """[L, M, M] φ coefficient of "i before" and "j after"; NaN where either never varies.

        φ = (n n11 − n1· n·1) / √(n1· (n − n1·) n·1 (n − n·1)).
        """
        n = self.pairs_L[:, None, None]
        a, b = self.before_LM[:, :, None], self.after_LM[:, None, :]
        spread = a * (n - a) * b * (n - b)
        phi = (n * self.together_LMM - a * b) / spread.clamp(min=1e-300).sqrt()
        return torch.where(spread > 0, phi, torch.nan)

    def expected(self) -> Tensor:
        """[L, M, M] co-activations expected if i and j were independent: n1· n·1 / n."""
        n = self.pairs_L[:, None, None].clamp(min=1)
        return self.before_LM[:, :, None] * self.after_LM[:, None, :] / n


def successions(counts: LaggedCounts, latents: Tensor, top: int = 50) -> pd.DataFrame:
    """The most frequent successions i → j (n-grams of length 2 over active sets).

    A succession is i active at t − 1 and j arriving at t (silent at t − 1), so i ≠ j.
    Columns: source, target (latent ids), count, support = count / token pairs,
    lift = P(j arrives | i before) / P(j arrives). Sorted by count, at most ``top`` rows.
    """
    count = counts.arrivals_MM.numpy()
    order = np.argsort(-count, axis=None, kind="stable")[:top]
    source, target = np.unravel_index(order, count.shape)
    found = count[source, target]
    keep = found > 0
    source, target, found = source[keep], target[keep], found[keep]
    expected = counts.sources_M.numpy()[source] * counts.arrived_M.numpy()[target] / counts.links
    ids = latents.cpu().numpy()
    return pd.DataFrame(
        {
            "source": ids[source],
            "target": ids[target],
            "count": found.astype(np.int64),
            "support": found / counts.links,
            "lift": found / expected,
        }
    )
