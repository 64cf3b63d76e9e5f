"""Which chains a clamp and a gate follow: what a tracker says of the text that is to be forgotten."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.edits.chain import Link, links
from lab.edits.evidence import Coded, Path, Prefix, quantiles
from tsae.saes.base import SAE
from tsae.saes.config import require
from tsae.sequences import DOCUMENT
from tsae.tracking import Active, TemporalCorrelationTracker, strongest, track


@dataclass(frozen=True)
class ChainConfig:
    """How chains are tracked in the forget text, and how hard their members are pushed."""

    own: bool = True
    """Whether an SAE that has a tracker (``causal``) is asked for its own; others get a fresh one,
    which reads the forget text by the settings that follow."""
    window: int = 8
    """Longest lag in tokens."""
    alpha: float = 0.02
    """Share of all counts that is forgotten a batch; a forget text is few batches long."""
    tau: float = 0.1
    """Log-lifts C at or below it, in nats, count as 0."""
    rank: int = 32
    """Rank of W."""
    lr: float = 0.01
    """Adam's rate on W, one step a batch."""
    successors: int = 64
    """Successors kept of each latent at each lag."""
    horizon: int = 16
    """Longest chain in tokens."""
    n_chains: int = 50
    """Chains followed, those of the largest flow."""
    beta: float = 1.0
    """Push per unit of what C expects, at m = 100."""
    gamma: float = 0.7
    """Share of the push that is left one token later."""

    def __post_init__(self) -> None:
        for field in ("window", "rank", "successors", "horizon", "n_chains"):
            value = getattr(self, field)
            require(isinstance(value, int) and value >= 1, field, value, "a whole number >= 1")
        require(0 < self.alpha <= 1, "alpha", self.alpha, "above 0 and at most 1")
        require(self.tau >= 0, "tau", self.tau, "at least 0")
        require(self.lr >= 0, "lr", self.lr, "at least 0")
        require(self.beta > 0, "beta", self.beta, "above 0")
        require(0 < self.gamma <= 1, "gamma", self.gamma, "above 0 and at most 1")


def tracker_of(
    sae: SAE, texts: Iterable[Any], cfg: ChainConfig, seed: int = 0
) -> TemporalCorrelationTracker:
    """The SAE's own tracker, which training filled; else :func:`tracked`."""
    own = getattr(sae, "tracker", None) if cfg.own else None
    return own if own is not None else tracked(sae, texts, cfg, seed)


def tracked(
    sae: SAE, texts: Iterable[Any], cfg: ChainConfig, seed: int = 0
) -> TemporalCorrelationTracker:
    """A tracker that has read the kept tokens of ``texts`` (see
    :class:`lab.edits.ranking.Text`) as codes of ``sae``, whatever its variant.

    Tokens that are not kept are in nobody's past or present; W is learned along the way, one step
    a batch. Draws from a generator of its own, so that nothing else depends on it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tracker = TemporalCorrelationTracker(
            sae.cfg.d_sae, cfg.window, cfg.rank, cfg.alpha, cfg.tau, cfg.successors
        ).to(sae.W_dec.device)
        return track(tracker, (kept_codes(sae, text) for text in texts), lr=cfg.lr)


@torch.no_grad()
def kept_codes(sae: SAE, text: Any) -> tuple[Active, Tensor]:
    """The strongest codes of a text's kept tokens, and the document [N] of every token."""
    z_NF = sae.encode(text.x_BTD, text.context).flatten(0, 1)
    z_NF = z_NF * text.keep_BT.flatten()[:, None]
    l0 = max(1, int((z_NF > 0).sum(1).max()))
    starts_BT = text.context.filled(text.x_BTD)[1] >= DOCUMENT
    starts_BT[:, 0] = True
    return strongest(z_NF, min(l0, 2 * sae.cfg.k)), starts_BT.flatten().cumsum(0)


def edge_table(tracker: TemporalCorrelationTracker, among: Tensor | None = None) -> pd.DataFrame:
    """The tracker's C above 0 as columns source, target, lag, C, between ``among`` alone."""
    allowed = np.ones(tracker.n_latents, bool)
    if among is not None:
        allowed[:] = False
        allowed[among.cpu().numpy()] = True
    frames = []
    for lag in range(1, tracker.window + 1):
        C = tracker.matrix(lag).tocoo()
        keep = allowed[C.row] & allowed[C.col] & (C.data > 0)
        columns = {"source": C.row[keep], "target": C.col[keep], "lag": lag, "C": C.data[keep]}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def follow(
    tracker: TemporalCorrelationTracker, targets: Tensor, among: Tensor, cfg: ChainConfig
) -> tuple[list[Link], list[Path]]:
    """Links of the chains that lead to ``targets`` over the latents ``among``, and those chains as
    paths; both may be empty.

    ``among``: latents that are rare on retained text, so that no chain starts from what is not the
    knowledge's own. A latent that leads to itself is a link of its own lag. A path's step takes
    every lag that links its two latents, one token either way, and weighs their largest C.
    """
    from lab.measures.succession.paths import find_chains  # measures stand on edits

    table = edge_table(tracker, among)
    chains = find_chains(
        table, targets.tolist(), among.tolist(), horizon=cfg.horizon, limit=cfg.n_chains
    )
    found = links(chains, table)
    paths = []
    for latents in dict.fromkeys(chain.latents for chain in chains):
        steps = [
            [k for k in found if k[:2] == pair] for pair in zip(latents, latents[1:], strict=False)
        ]
        lags = [sorted({max(1, k.lag + d) for k in step for d in (-1, 0, 1)}) for step in steps]
        weights = [max(k.strength for k in step) for step in steps]
        paths.append(Path(latents, tuple(map(tuple, lags)), tuple(weights)))
    own = table[table["target"].isin(targets.tolist()) & (table["source"] == table["target"])]
    return list(dict.fromkeys([*found, *links_of(own)])), paths


def links_of(table: pd.DataFrame) -> list[Link]:
    """One link for each row of ``table``."""
    columns = (table[name] for name in ("source", "target", "lag", "C"))
    return [Link(int(s), int(t), int(k), float(c)) for s, t, k, c in zip(*columns, strict=True)]


def ordered(paths: Sequence[Path], retain: Sequence[Coded], latent_rate: float) -> Prefix:
    """The evidence of the paths; q of each latent from retained text."""
    require(len(paths) > 0, "paths", [], "at least one chain")
    ids = torch.tensor(sorted({i for path in paths for i in path.latents}))
    q_K = quantiles(ids.to(retain[0].x_BTD.device), retain, latent_rate)
    return Prefix(tuple(paths), dict(zip(ids.tolist(), q_K.tolist(), strict=True)))
