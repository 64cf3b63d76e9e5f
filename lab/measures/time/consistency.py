r"""Does what follows what repeat, from one half of the documents to the other?

- ``temporal_consistency``: the table φ_ij(ℓ) of "latent i active at t − ℓ" with "latent j active
  at t" (i ≠ j; ℓ = 1, 2, 4) is made on either half of the test documents (by id // 2); value =
  Spearman correlation of the two tables over entries whose expected count under independence is at
  least :data:`MIN_EXPECTED` in both halves. n = entries.
- ``transition_lift``, group ``top10``: mean lift of the ten most frequent successions: i active at
  t − 1 and j arriving at t (silent at t − 1).

The :data:`N_LATENTS` latents are those that fire most often, but not always, in the first batch.
Table ``transitions``: the 50 most frequent successions with count and lift.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds import World

LAGS = (1, 2, 4)
N_LATENTS = 128
MIN_EXPECTED = 5.0


@register("consistency", nulls=True)
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None
) -> dict[str, Measured]:
    """The module's measures over the test tokens."""
    found = {}
    for name, sae in saes.items():
        halves: list[LaggedCounts] = []
        for t in reading.tokens(sae, "test"):
            if not halves:
                rate_F = (t.z_NF > 0).float().mean(0)
                order = rate_F.masked_fill(rate_F == 1, 0).argsort(descending=True, stable=True)
                latents_M = order[:N_LATENTS]
                halves = [LaggedCounts(len(latents_M), LAGS) for _ in range(2)]
                arriving = LaggedCounts(len(latents_M), (1,), arriving=True)
            active_NM = t.z_NF[:, latents_M] > 0
            arriving.update(active_NM, t.piece_N)
            for half, counts in enumerate(halves):
                of_half = t.doc_N // 2 % 2 == half
                counts.update(active_NM[of_half], t.piece_N[of_half])
        table = successions(arriving, latents_M)
        lift = table["lift"].head(10).mean()
        rows = [row("temporal_consistency", "all", *repeats(*halves))]
        rows.append(row("transition_lift", "top10", lift, min(len(table), 10)))
        found[name] = Measured(rows, tables={"transitions": table})
    return found


class LaggedCounts:
    """How often latent j is active ``lag`` tokens after latent i, for the M latents followed.

    Pairs of tokens lie in one piece. ``together_LMM``[l, i, j] counts "i active at t − lag_l and j
    at t"; ``before_LM`` and ``after_LM`` count each alone over the same pairs, ``pairs_L`` the
    pairs. ``arriving``: j counts only where it was silent at t − lag.
    """

    def __init__(self, n_latents: int, lags: tuple[int, ...], arriving: bool = False):
        n, m, kind = len(lags), n_latents, torch.float64
        self.lags, self.arriving = lags, arriving
        self.together_LMM = torch.zeros(n, m, m, dtype=kind)
        self.pairs_L = torch.zeros(n, dtype=kind)
        self.before_LM, self.after_LM = torch.zeros(2, n, m, dtype=kind)

    def update(self, active_NM: Tensor, piece_N: Tensor) -> None:
        a_NM = active_NM.float()
        for i, lag in enumerate(self.lags):
            if lag >= len(a_NM):
                continue
            linked = (piece_N[lag:] == piece_N[:-lag])[:, None]
            before, after = a_NM[:-lag] * linked, a_NM[lag:] * linked
            after = after * (1 - before) if self.arriving else after
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


def repeats(a: LaggedCounts, b: LaggedCounts) -> tuple[float, int]:
    """Spearman correlation of the halves' tables, and over how many entries."""
    phi_a, phi_b = a.phi(), b.phi()
    enough = torch.minimum(a.expected(), b.expected()) >= MIN_EXPECTED
    enough &= ~torch.eye(enough.shape[1], dtype=torch.bool) & phi_a.isfinite() & phi_b.isfinite()
    n = int(enough.sum())
    return spearmanr(phi_a[enough], phi_b[enough]).statistic if n > 2 else float("nan"), n


def successions(arriving: LaggedCounts, latents_M: Tensor, top: int = 50) -> pd.DataFrame:
    """The most frequent successions i → j (n-grams of length 2 over active sets), by count.

    Columns: source, target (latent ids), count, lift = P(j arrives | i before) / P(j arrives).
    """
    count = arriving.together_LMM[0].numpy()
    source, target = np.unravel_index(
        np.argsort(-count, axis=None, kind="stable")[:top], count.shape
    )
    keep = count[source, target] > 0
    source, target = source[keep], target[keep]
    found, ids = count[source, target], latents_M.cpu().numpy()
    lift = found / arriving.expected()[0].numpy()[source, target]
    columns = {"source": ids[source], "target": ids[target], "count": found.astype(np.int64)}
    return pd.DataFrame({**columns, "lift": lift})
