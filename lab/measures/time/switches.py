r"""Document switches seen without being told: do slow latents change when the subject does?

The test text is encoded with no boundary but a sequence's own, so that nothing tells where
documents meet inside it. Slow latents S: of those active at ``least`` to ``most`` of the tokens, the
``k`` of longest mean dwell on the split for choices. With c[t] the codes of S (reading own), or their
EMA (reading ema, its decay chosen by AUROC on that split),

    score[t] = 1 − cos(c[t], c[t − w])            (1 where one of them is empty, 0 where both are)

- ``switch_auroc``: of the w tokens from a switch on against all tokens without one in (t − w, t]
- ``switch_delay``: tokens from a switch until the score first exceeds the threshold that at most 1%
  of the quiet tokens of the split for choices exceed; w where it never does within w tokens

Document rows of the delay: num = delay, den = 1, doc = the document that begins. Compare a slow
dictionary's own reading with TopK's ema reading. Source: this project.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.nulls import DECAYS, averaged
from lab.measures.reading import EMA, OWN, Encoder, Measured, Reading, row
from lab.measures.time.lifecycle import LifecycleTracker, kaplan_meier, mean_dwell
from lab.measures.truth.ranking import AUROC, influences, single
from lab.worlds import World
from tsae.sequences import DOCUMENT
from tsae.store.reading import Batch


@register("switches", nulls=True)
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    k: int = 32,
    w: int = 16,
    least: float = 0.005,
    most: float = 0.5,
    false_alarms: float = 0.01,
) -> dict[str, Measured]:
    """The module's measures; dictionaries without latents of such rates, and texts without a
    switch inside a sequence, are left out."""
    found = {}
    for name, sae in saes.items():
        latents = slow_latents(sae, reading, k, least, most)
        if not len(latents):
            continue
        chosen = {d: Scores.of(sae, reading, reading.choices, latents, d, w) for d in (0, *DECAYS)}
        if not chosen[0].after_N.any():
            continue
        auroc = {d: single(s.score_N, s.after_N)[AUROC] for d, s in chosen.items()}
        rows, documents = [], []
        for of, decay in ((OWN, 0.0), (EMA, max(DECAYS, key=lambda d: auroc[d]))):
            quiet_N = chosen[decay].score_N[~chosen[decay].after_N]
            threshold = np.quantile(quiet_N, 1 - false_alarms, method="higher")
            test = Scores.of(sae, reading, "test", latents, decay, w)
            delays = test.delays(threshold, w)
            value, each_3N = influences(test.score_N, test.after_N, np.inf)
            rows.append(row("switch_auroc", "all", value[AUROC], test.after_N.sum(), of))
            rows.append(row("switch_delay", "all", delays["num"].mean(), len(delays), of))
            share = pd.DataFrame({"doc": test.doc_N, "num": each_3N[AUROC], "den": 1 / test.n})
            share["num"] += value[AUROC] * share["den"]
            share = share.groupby("doc", as_index=False).sum().assign(metric="switch_auroc")
            documents += [f.assign(group="all", reading=of) for f in (share, delays)]
        found[name] = Measured(rows, pd.concat(documents, ignore_index=True))
    return found


class Scores(NamedTuple):
    """Score, document and tokens since the last switch of N tokens with a token w before them."""

    score_N: np.ndarray
    doc_N: np.ndarray
    since_N: np.ndarray
    after_N: np.ndarray
    """Whether a switch lies in (t − w, t]."""

    @property
    def n(self) -> int:
        """Tokens scored."""
        return len(self.score_N)

    @classmethod
    def of(
        cls, sae: Encoder, reading: Reading, split: str, latents: Tensor, decay: float, w: int
    ) -> "Scores":
        """The scores of one split."""
        parts = []
        for batch, c_BTS in codes(sae, reading, split, latents, decay):
            dot = (c_BTS[:, w:] * c_BTS[:, :-w]).sum(-1)
            norm_BT = c_BTS.norm(dim=-1)
            product, both = norm_BT[:, w:] * norm_BT[:, :-w], norm_BT[:, w:] + norm_BT[:, :-w]
            score = torch.where(both > 0, 1 - dot / product.clamp(min=1e-30), 0.0)
            starts = batch.context.boundary_BT >= DOCUMENT
            starts[:, :2] = False  # a sequence's own start is no switch
            time_T = torch.arange(starts.shape[1], device=starts.device)
            last = torch.where(starts, time_T, -(10**6)).cummax(1).values
            since = (time_T - last)[:, w:]
            mask_BT = batch.context.mask_BT.bool()
            keep = mask_BT[:, w:] & mask_BT[:, :-w]
            of = (score.double(), batch.doc_BT[:, w:], since)
            parts.append([part[keep].cpu().numpy() for part in of])
        score_N, doc_N, since_N = map(np.concatenate, zip(*parts, strict=True))
        return cls(score_N, doc_N, since_N, since_N < w)

    def delays(self, threshold: float, w: int) -> pd.DataFrame:
        """A row a switch of which all is seen: doc, num = its delay, den = 1."""
        at = self.after_N & np.isin(self.doc_N, self.doc_N[self.since_N == 0])
        hit = np.where(self.score_N[at] > threshold, self.since_N[at], w)
        table = pd.DataFrame({"doc": self.doc_N[at], "num": hit.astype(float)})
        return table.groupby("doc", as_index=False).min().assign(den=1.0, metric="switch_delay")


def codes(
    sae: Encoder, reading: Reading, split: str, latents: Tensor | slice, decay: float = 0.0
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches with the codes of ``latents``, encoded (and averaged) without given boundaries."""
    for batch in reading.batches(split):
        untold = batch.context._replace(boundary_BT=torch.zeros_like(batch.context.boundary_BT))
        untold.boundary_BT[:, 0] = DOCUMENT
        z_BTS = sae.encode(batch.x_BTD, untold)[..., latents]
        if decay:
            parts = {**vars(batch), "x_BTD": z_BTS, "context": untold}
            z_BTS = averaged(Batch(**parts), decay)
        yield batch, z_BTS


def slow_latents(sae: Encoder, reading: Reading, k: int, least: float, most: float) -> Tensor:
    """The ``k`` latents of longest mean dwell among those of such rates, on the split for choices."""
    life = LifecycleTracker(sae.cfg.d_sae, reading.store.seq_len, device=reading.device)
    active_F = torch.zeros(sae.cfg.d_sae, device=reading.device)
    for batch, z_BTF in codes(sae, reading, reading.choices, slice(None)):
        mask_BT = batch.context.mask_BT.bool()
        sequence_BT = torch.arange(len(mask_BT), device=mask_BT.device)[:, None].expand_as(mask_BT)
        on_NF = z_BTF[mask_BT] > 0
        life.update(on_NF, sequence_BT[mask_BT])
        active_F += on_NF.sum(0)
    rate_F = active_F / max(life.tokens, 1)
    dwell_F = mean_dwell(kaplan_meier(life.ended_FL, life.censored_FL))
    fit_F = (rate_F >= least) & (rate_F <= most)
    order = torch.where(fit_F, dwell_F, -1.0).argsort(descending=True, stable=True)
    return order[: min(k, int(fit_F.sum()))]
