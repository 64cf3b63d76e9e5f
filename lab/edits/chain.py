"""Chains: which lead to chosen latents, and the push that follows them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lab.edits.edit import CodePush, distinct
from lab.edits.evidence import Path
from lab.edits.ranking import Read, Text
from tsae.saes.base import SAE
from tsae.saes.config import require
from tsae.sequences import DOCUMENT
from tsae.tracking import Active, TemporalCorrelationTracker, strongest, track

TRACKER: dict[str, Any] = {"window": 8, "rank": 32, "alpha": 0.02, "tau": 0.1, "successors": 64}
"""Of the fresh tracker of an SAE without one; a forget text is few batches long, hence ``alpha``."""
LR = 0.01
"""Adam's rate on W, one step a batch."""
HORIZON, N_CHAINS = 16, 50
"""Longest chain in tokens; chains followed, those of the largest flow."""


class Link(NamedTuple):
    """An edge of a chain: ``strength`` = C_lag[source → target]."""

    source: int
    target: int
    lag: int
    strength: float


class ChainClamp(CodePush):
    r"""z'_i[t] = v_i[t] for members i whose upstream j fired within the window, else z_i[t]:

        v_i[t] = −(m / 100) Σ_{k=1..w} γ^k Σ_j C_k[j→i] z_j[t−k]

    over the given links, with t − k and t in one document; i need not fire itself, which is what
    lets the edit come ahead. m / 100 is β. Latents are the links' targets. Raises ValueError on a
    bad value. Source: this project.
    """

    def __init__(self, sae: SAE, links: Iterable[Link], gamma: float = 0.7) -> None:
        self.links, self.gamma = list(links), gamma
        require(len(self.links) > 0, "links", [], "at least one edge")
        require(0 < gamma <= 1, "gamma", gamma, "above 0 and at most 1")
        self.latents = distinct(sorted({link.target for link in self.links}), sae)

    def values(self, sae: SAE, read: Read, share: float) -> Tensor:
        """See :meth:`CodePush.values`."""
        z_BTF = read.z_BTF
        document_BT = (read.context.boundary_BT >= DOCUMENT).cumsum(1)
        member = {latent: n for n, latent in enumerate(self.latents.tolist())}
        expected_BTK = z_BTF.new_zeros(*z_BTF.shape[:2], len(member))
        for lag in sorted({link.lag for link in self.links if link.lag < z_BTF.shape[1]}):
            of_lag = [link for link in self.links if link.lag == lag]
            weight = z_BTF.new_tensor([self.gamma**lag * link.strength for link in of_lag])
            column = torch.tensor([member[link.target] for link in of_lag], device=z_BTF.device)
            past = z_BTF[:, :-lag, [link.source for link in of_lag]].clamp_min(0.0) * weight
            linked_BT = document_BT[:, lag:] == document_BT[:, :-lag]
            expected_BTK[:, lag:].index_add_(2, column, past * linked_BT[..., None])
        acts_BTK = (expected_BTK > 0) & read.context.mask_BT[..., None]
        return torch.where(acts_BTK, -share * expected_BTK, z_BTF[..., self.latents])


def tracker_of(sae: SAE, texts: Iterable[Text], seed: int = 0) -> TemporalCorrelationTracker:
    """The SAE's own tracker, which training filled; else one that has read the kept tokens of
    ``texts`` as codes of ``sae``.

    Tokens that are not kept are in nobody's past or present; W is learned along the way, one step
    a batch. Draws from a generator of its own, so that nothing else depends on it.
    """
    if (own := getattr(sae, "tracker", None)) is not None:
        return own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tracker = TemporalCorrelationTracker(sae.cfg.d_sae, **TRACKER).to(sae.W_dec.device)
        return track(tracker, (kept_codes(sae, text) for text in texts), lr=LR)


@torch.no_grad()
def kept_codes(sae: SAE, text: Text) -> tuple[Active, Tensor]:
    """The strongest codes of a text's kept tokens, and the document [N] of every token."""
    z_NF = sae.encode(text.x_BTD, text.context).flatten(0, 1)
    z_NF = z_NF * text.keep_BT.flatten()[:, None]
    l0 = max(1, int((z_NF > 0).sum(1).max()))
    starts_BT = text.context.filled(text.x_BTD).boundary_BT >= DOCUMENT
    starts_BT[:, 0] = True
    return strongest(z_NF, min(l0, 2 * sae.cfg.k)), starts_BT.flatten().cumsum(0)


def edge_table(tracker: TemporalCorrelationTracker, among: Tensor) -> pd.DataFrame:
    """The tracker's C above 0 as columns source, target, lag, C, between ``among`` alone."""
    frames = []
    for lag in range(1, tracker.window + 1):
        C = tracker.matrix(lag).tocoo()
        frames.append(pd.DataFrame({"source": C.row, "target": C.col, "lag": lag, "C": C.data}))
    table, allowed = pd.concat(frames, ignore_index=True), among.tolist()
    inside = table["source"].isin(allowed) & table["target"].isin(allowed)
    return table[inside & (table["C"] > 0)].reset_index(drop=True)


def follow(
    tracker: TemporalCorrelationTracker, targets: Tensor, among: Tensor
) -> tuple[list[Link], list[Path]]:
    """Links of the chains that lead to ``targets`` over the latents ``among``, and those chains as
    paths; both may be empty.

    ``among``: latents that are rare on retained text, so that no chain starts from what is not the
    knowledge's own. A latent that leads to itself is a link of its own lag. A path's step takes
    every lag that links its two latents, one token either way, and weighs their largest C.
    """
    from lab.measures.succession.paths import find_chains  # measures stand on edits

    table, ends = edge_table(tracker, among), set(targets.tolist())
    chains = find_chains(table, ends, among.tolist(), horizon=HORIZON, limit=N_CHAINS)
    found = dict.fromkeys(chain.latents for chain in chains)
    steps: dict[tuple[int, int], list[Link]] = {
        pair: [] for latents in found for pair in zip(latents, latents[1:], strict=False)
    }
    links = [Link(int(s), int(t), int(k), float(c)) for s, t, k, c in table.itertuples(index=False)]
    links = [k for k in links if k[:2] in steps or (k.source == k.target and k.target in ends)]
    for link in links:
        steps.setdefault(link[:2], []).append(link)
    paths = []
    for latents in found:
        mine = [steps[pair] for pair in zip(latents, latents[1:], strict=False)]
        lags = [{max(1, k.lag + d) for k in step for d in (-1, 0, 1)} for step in mine]
        weights = tuple(max(k.strength for k in step) for step in mine)
        paths.append(Path(latents, tuple(tuple(sorted(of_step)) for of_step in lags), weights))
    return links, paths
