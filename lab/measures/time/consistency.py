"""Does a latent's place in time repeat: across documents, and with less context."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, Tokens, row
from lab.measures.succession.transitions import LaggedCounts, successions
from lab.worlds import World
from tsae import models

LAGS = (1, 2, 4)
CONTEXTS = (4, 8, 16, 32, 64)


class Consistency:
    r"""Temporal consistency score and transition patterns of the most frequent latents.

    - ``temporal_consistency``: the table φ_ij(ℓ) of "latent i active at t − ℓ" with "latent j
      active at t" (i ≠ j; ℓ = 1, 2, 4) is made on either half of the test documents (by id // 2); value =
      Spearman correlation of the two tables over entries whose expected count under independence
      is at least ``min_expected`` in both halves. n = entries.
    - ``transition_lift``: group ``top10``, mean lift of the ten most frequent successions; and
      ``transition_support``, their mean support. :meth:`table` has the successions themselves.

    The M = ``n_latents`` latents are those that fire most often, but not always, in the first
    batch. Nulls, suffix ``_null`` (tokens shuffled in their piece) and ``_matched`` (each latent
    shifted circularly by its own offset).
    """

    def __init__(
        self, *, n_latents: int = 128, min_expected: float = 5.0, null: bool = True, seed: int = 0
    ):
        self.n_latents, self.min_expected = n_latents, min_expected
        self.generator = torch.Generator().manual_seed(seed)
        self.kinds = ("", "_null", "_matched") if null else ("",)
        self.latents_M: Tensor | None = None

    def update(self, t: Tokens) -> None:
        if len(t) < 2:
            return
        if self.latents_M is None:
            rate_F = (t.z_NF > 0).float().mean(0)
            order = rate_F.masked_fill(rate_F == 1, 0).argsort(descending=True, stable=True)
            self.latents_M = order[: self.n_latents]
            m = len(self.latents_M)
            self.counts = {k: [LaggedCounts(m, LAGS) for _ in range(2)] for k in self.kinds}
            self.whole = {k: LaggedCounts(m, ()) for k in self.kinds}
        for kind in self.kinds:
            u = t
            if kind:
                u = t.shuffled(self.generator) if kind == "_null" else t.matched(self.generator)
            active_NM = u.z_NF[:, self.latents_M] > 0
            self.whole[kind].update(active_NM, u.piece_N)
            for half in range(2):
                of_half = u.doc_N // 2 % 2 == half
                self.counts[kind][half].update(active_NM[of_half], u.piece_N[of_half])

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for kind in self.kinds:
            a, b = self.counts[kind]
            enough = torch.minimum(a.expected(), b.expected()) >= self.min_expected
            enough &= ~torch.eye(enough.shape[1], dtype=torch.bool)
            phi_a, phi_b = a.phi(), b.phi()
            enough &= phi_a.isfinite() & phi_b.isfinite()
            n = int(enough.sum())
            value = spearmanr(phi_a[enough], phi_b[enough]).statistic if n > 2 else float("nan")
            rows.append(row(f"temporal_consistency{kind}", "all", value, n))
            top = self.table(kind, 10)
            lift = top["lift"].mean() if len(top) else float("nan")
            support = top["support"].mean() if len(top) else float("nan")
            rows.append(row(f"transition_lift{kind}", "top10", lift, len(top)))
            rows.append(row(f"transition_support{kind}", "top10", support, len(top)))
        return rows

    def table(self, kind: str = "", top: int = 50) -> pd.DataFrame:
        """The most frequent successions: source, target, count, support, lift."""
        assert self.latents_M is not None
        return successions(self.whole[kind], self.latents_M, top)


@register("consistency", nulls=True)
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None, *, null: bool = True
) -> dict[str, Measured]:
    """:class:`Consistency` over the test tokens; table ``transitions``."""
    found = {}
    for name, sae in saes.items():
        part = Consistency(null=null, seed=reading.seed)
        for t in reading.tokens(sae, "test"):
            part.update(t)
        found[name] = Measured(part.rows(), tables={"transitions": part.table()})
    return found


@register("context", together=True, nulls=True, needs=("model",))
@torch.no_grad()
def context_stability(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World,
    *,
    contexts: tuple[int, ...] = CONTEXTS,
) -> dict[str, Measured]:
    """Codes of the same token when the text before it is cut, against the whole sequence.

    For the last token of each sequence (where it is valid), model and SAE read BOS and the last c
    tokens only; the reference reads the sequence in full (128 tokens, the longest). The residual
    is made anew by the model, so a static SAE changes too, as far as its input does.

    ``context_jaccard`` = |A_c ∩ A| / |A_c ∪ A| of the active sets, ``context_cosine`` =
    cos(z_c, z); group ``context=c``; means over tokens. Contexts as long as the sequence are out.
    Codes that are empty in both count as equal. Each residual is computed once for all SAEs.
    """
    model, store, n_sequences = world.model(reading.device), reading.store, reading.sizes.sequences
    used = [c for c in contexts if c + 1 < store.seq_len]
    sums = {name: torch.zeros(len(used), 2, dtype=torch.float64) for name in saes}
    n = done = 0
    for batch in reading.batches("test", 10**12):
        tokens, context = batch.tokens_BT.long(), batch.context
        rows = context.mask_BT[:, -1].bool().nonzero().squeeze(1)[: n_sequences - done]
        done += len(rows)
        n += len(rows)
        if not len(rows):
            continue
        full = models.residual(model, tokens[rows], store.layer).float() * store.scale
        whole = context._replace(
            mask_BT=context.mask_BT[rows], boundary_BT=context.boundary_BT[rows]
        )
        reference = {name: sae.encode(full, whole)[:, -1] for name, sae in saes.items()}
        for i, c in enumerate(used):
            cut = torch.cat([tokens[rows, :1], tokens[rows, -c:]], 1)
            x_BTD = models.residual(model, cut, store.layer).float() * store.scale
            mask_BT = torch.cat([whole.mask_BT[:, :1], whole.mask_BT[:, -c:]], 1)
            level_BT = torch.cat([whole.boundary_BT[:, :1], whole.boundary_BT[:, -c:]], 1)
            level_BT[:, :2] = 3
            short = context._replace(mask_BT=mask_BT, boundary_BT=level_BT)
            for name, sae in saes.items():
                a, b = sae.encode(x_BTD, short)[:, -1], reference[name]
                sums[name][i] += torch.stack([jaccard(a, b).sum(), cosine(a, b).sum()]).cpu()
        if done >= n_sequences:
            break
    return {
        name: Measured(
            [
                row(metric, f"context={c}", sums[name][i, j] / n if n else float("nan"), n)
                for j, metric in enumerate(("context_jaccard", "context_cosine"))
                for i, c in enumerate(used)
            ]
        )
        for name in saes
    }


def jaccard(a_BF: Tensor, b_BF: Tensor) -> Tensor:
    """[B] |A ∩ B| / |A ∪ B| of the active sets; 1 when both are empty."""
    both, either = (a_BF > 0) & (b_BF > 0), (a_BF > 0) | (b_BF > 0)
    union = either.sum(-1).double()
    return torch.where(union > 0, both.sum(-1) / union.clamp(min=1), 1.0)


def cosine(a_BF: Tensor, b_BF: Tensor) -> Tensor:
    """[B] cosine; 1 when both are zero, 0 when one is."""
    a, b = a_BF.double(), b_BF.double()
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    empty = (a.norm(dim=-1) == 0) & (b.norm(dim=-1) == 0)
    return torch.where(empty, 1.0, (a * b).sum(-1) / norm.clamp(min=1e-30))
