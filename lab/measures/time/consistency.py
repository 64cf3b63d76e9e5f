r"""Does what follows what repeat, from one half of the documents to the other?

- ``temporal_consistency``: the table φ_ij(ℓ) of "latent i active at t − ℓ" with "latent j active
  at t" (i ≠ j; ℓ = 1, 2, 4) is made on either half of the test documents (by id // 2); value =
  Spearman correlation of the two tables over entries whose expected count under independence is at
  least ``min_expected`` in both halves. n = entries.
- ``transition_lift``, group ``top10``: mean lift of the ten most frequent successions.

The M = ``n_latents`` latents are those that fire most often, but not always, in the first batch.
Suffix ``_null``: of tokens shuffled in their piece. Table ``transitions``: the 50 most frequent
successions with count, support and lift.
"""

from collections.abc import Mapping

import torch
from scipy.stats import spearmanr

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, Tokens, row
from lab.measures.succession.transitions import LaggedCounts, successions
from lab.worlds import World

LAGS = (1, 2, 4)


@register("consistency", nulls=True)
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    n_latents: int = 128,
    min_expected: float = 5.0,
    null: bool = True,
) -> dict[str, Measured]:
    """The module's measures over the test tokens."""
    found = {}
    for name, sae in saes.items():
        parts: dict[str, Pairs] = {}
        generator = torch.Generator().manual_seed(reading.seed)
        for t in reading.tokens(sae, "test"):
            if not parts and len(t):
                rate_F = (t.z_NF > 0).float().mean(0)
                order = rate_F.masked_fill(rate_F == 1, 0).argsort(descending=True, stable=True)
                parts = {kind: Pairs(order[:n_latents]) for kind in ("", "_null")[: 1 + null]}
            for kind, part in parts.items():
                part.update(t.shuffled(generator) if kind else t)
        rows = []
        for kind, part in parts.items():
            rows.append(row(f"temporal_consistency{kind}", "all", *part.repeats(min_expected)))
            top = successions(part.whole, part.latents_M, 10)
            lift = top["lift"].mean() if len(top) else float("nan")
            rows.append(row(f"transition_lift{kind}", "top10", lift, len(top)))
        own = parts[""]
        tables = {"transitions": successions(own.whole, own.latents_M)}
        found[name] = Measured(rows, tables=tables)
    return found


class Pairs:
    """Lagged counts of some latents on either half of the documents, and successions on all."""

    def __init__(self, latents_M: torch.Tensor):
        self.latents_M = latents_M
        self.halves = [LaggedCounts(len(latents_M), LAGS) for _ in range(2)]
        self.whole = LaggedCounts(len(latents_M), ())

    def update(self, t: Tokens) -> None:
        """Take in more tokens."""
        active_NM = t.z_NF[:, self.latents_M] > 0
        self.whole.update(active_NM, t.piece_N)
        for half, counts in enumerate(self.halves):
            of_half = t.doc_N // 2 % 2 == half
            counts.update(active_NM[of_half], t.piece_N[of_half])

    def repeats(self, min_expected: float) -> tuple[float, int]:
        """Spearman correlation of the halves' tables, and over how many entries."""
        a, b = self.halves
        enough = torch.minimum(a.expected(), b.expected()) >= min_expected
        enough &= ~torch.eye(enough.shape[1], dtype=torch.bool)
        phi_a, phi_b = a.phi(), b.phi()
        enough &= phi_a.isfinite() & phi_b.isfinite()
        n = int(enough.sum())
        return spearmanr(phi_a[enough], phi_b[enough]).statistic if n > 2 else float("nan"), n
