r"""Document switches seen without being told: do slow latents change when the subject does?

The test text is encoded with no boundary but a sequence's own, so that nothing tells where
documents meet inside it. Slow latents S: of those active at :data:`LEAST` to :data:`MOST` of the tokens,
the K = 32 of longest mean dwell on the split for choices. With c[t] the codes of S (reading own), or their
EMA (reading ema, its decay chosen by AUROC on that split),

    score[t] = 1 − cos(c[t], c[t − w])            (1 where one of them is empty, 0 where both are)

- ``switch_auroc``: of the w tokens from a switch on against all tokens without one in (t − w, t]
- ``switch_delay``: tokens from a switch until the score first exceeds the threshold that at most 1%
  of the quiet tokens of the split for choices exceed; w where it never does within w tokens

Document rows of the delay: num = delay, den = 1, doc = the document that begins. Compare a slow
dictionary's own reading with TopK's ema reading. Source: this project.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.nulls import DECAYS, averaged
from lab.measures.reading import EMA, OWN, Encoder, Measured, Reading, row
from lab.measures.time.lifecycle import stays
from lab.measures.truth.ranking import AUROC, influences, single
from lab.worlds import World
from tsae.sequences import DOCUMENT, SequenceContext
from tsae.store.reading import Batch

K, W = 32, 16
LEAST, MOST = 0.005, 0.5
FALSE_ALARMS = 0.01


@register("switches", nulls=True)
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None
) -> dict[str, Measured]:
    """The module's measures; dictionaries without latents of such rates, and texts without a
    switch inside a sequence, are left out."""
    found = {}
    for name, sae in saes.items():
        latents = slow_latents(sae, reading)
        if not len(latents):
            continue
        read = list(codes(sae, reading, reading.choices, latents))
        chosen = {decay: Scores.of(read, decay) for decay in (0.0, *DECAYS)}
        if not chosen[0].after_N.any():
            continue
        read, rows, documents = list(codes(sae, reading, "test", latents)), [], []
        auroc = {d: single(s.score_N, s.after_N)[AUROC] for d, s in chosen.items()}
        for of, decay in ((OWN, 0.0), (EMA, max(DECAYS, key=lambda d: auroc[d]))):
            quiet_N = chosen[decay].score_N[~chosen[decay].after_N]
            threshold = np.quantile(quiet_N, 1 - FALSE_ALARMS, method="higher")
            test = Scores.of(read, decay)
            delays = test.delays(threshold)
            value, each_3N = influences(test.score_N, test.after_N, np.inf)
            rows.append(row("switch_auroc", "all", value[AUROC], test.after_N.sum(), of))
            rows.append(row("switch_delay", "all", delays["num"].mean(), len(delays), of))
            den = 1 / len(test.doc_N)
            share = pd.DataFrame({"doc": test.doc_N, "num": each_3N[AUROC], "den": den})
            share["num"] += value[AUROC] * den
            share = share.groupby("doc", as_index=False).sum().assign(metric="switch_auroc")
            documents += [f.assign(group="all", reading=of) for f in (share, delays)]
        found[name] = Measured(rows, pd.concat(documents, ignore_index=True))
    return found


class Scores(NamedTuple):
    """Score, document and tokens since the last switch of N tokens with a token w before them."""

    score_N: np.ndarray
    doc_N: np.ndarray
    since_N: np.ndarray

    @property
    def after_N(self) -> np.ndarray:
        """Whether a switch lies in (t − w, t]."""
        return self.since_N < W

    @classmethod
    def of(cls, read: Iterable[tuple[Batch, Tensor]], decay: float) -> "Scores":
        """The scores of one split from its :func:`codes`, through an EMA where there is a decay."""
        parts = []
        for batch, c_BTS in read:
            if decay:
                part = {**vars(batch), "x_BTD": c_BTS, "context": untold(batch)}
                c_BTS = averaged(Batch(**part), decay)
            dot = (c_BTS[:, W:] * c_BTS[:, :-W]).sum(-1)
            norm_BT = c_BTS.norm(dim=-1)
            product, both = norm_BT[:, W:] * norm_BT[:, :-W], norm_BT[:, W:] + norm_BT[:, :-W]
            score = torch.where(both > 0, 1 - dot / product.clamp(min=1e-30), 0.0)
            starts = batch.context.boundary_BT >= DOCUMENT
            starts[:, :2] = False  # a sequence's own start is no switch
            time_T = torch.arange(starts.shape[1], device=starts.device)
            last = torch.where(starts, time_T, -(10**6)).cummax(1).values
            mask_BT = batch.context.mask_BT.bool()
            keep = mask_BT[:, W:] & mask_BT[:, :-W]
            of = (score.double(), batch.doc_BT[:, W:], (time_T - last)[:, W:])
            parts.append([part[keep].cpu().numpy() for part in of])
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def delays(self, threshold: float) -> pd.DataFrame:
        """A row a switch of which all is seen: doc, num = its delay, den = 1."""
        at = self.after_N & np.isin(self.doc_N, self.doc_N[self.since_N == 0])
        hit = np.where(self.score_N[at] > threshold, self.since_N[at], W)
        table = pd.DataFrame({"doc": self.doc_N[at], "num": hit.astype(float)})
        return table.groupby("doc", as_index=False).min().assign(den=1.0, metric="switch_delay")


def untold(batch: Batch) -> SequenceContext:
    """The batch's context without given boundaries but a sequence's own."""
    boundary_BT = torch.zeros_like(batch.context.boundary_BT)
    boundary_BT[:, 0] = DOCUMENT
    return batch.context._replace(boundary_BT=boundary_BT)


def codes(
    sae: Encoder, reading: Reading, split: str, latents: Tensor | slice = slice(None)
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches with the codes of ``latents``, encoded without given boundaries."""
    for batch in reading.batches(split):
        yield batch, sae.encode(batch.x_BTD, untold(batch))[..., latents]


def slow_latents(sae: Encoder, reading: Reading) -> Tensor:
    """The latents of longest mean dwell among those of such rates, on the split for choices."""

    def active() -> Iterator[tuple[Tensor, Tensor]]:
        for batch, z_BTF in codes(sae, reading, reading.choices):
            mask_BT = batch.context.mask_BT.bool()
            sequence_B1 = torch.arange(len(mask_BT), device=mask_BT.device)[:, None]
            yield z_BTF[mask_BT] > 0, sequence_B1.expand_as(mask_BT)[mask_BT]

    dwell_F, rate_F = stays(active(), sae.cfg.d_sae, reading.store.seq_len)
    fit_F = (rate_F >= LEAST) & (rate_F <= MOST)
    order = torch.where(fit_F, dwell_F, -1.0).argsort(descending=True, stable=True)
    return order[: min(K, int(fit_F.sum()))]
