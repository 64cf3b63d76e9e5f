"""Chain clamping: members of a chain are pushed down once what leads to them has fired."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lab.edits.clamp import CodePush
from lab.edits.edit import distinct
from tsae.saes.base import SAE
from tsae.saes.config import require
from tsae.sequences import DOCUMENT, FilledContext


class Link(NamedTuple):
    """An edge of a chain: ``strength`` = C_lag[source → target]."""

    source: int
    target: int
    lag: int
    strength: float


def links(chains: Iterable, table: pd.DataFrame) -> list[Link]:
    """All lags of ``table`` (columns source, target, lag, C) between neighbours in a chain
    (:class:`lab.measures.succession.paths.Chain`)."""
    pairs = {
        pair for chain in chains for pair in zip(chain.latents, chain.latents[1:], strict=False)
    }
    columns = (table[name] for name in ("source", "target", "lag", "C"))
    rows = (Link(int(s), int(t), int(k), float(c)) for s, t, k, c in zip(*columns, strict=True))
    return [row for row in rows if row[:2] in pairs]


class ChainClamp(CodePush):
    r"""z'_i[t] = v_i[t] for members i whose upstream j fired within the window, else z_i[t]:

        v_i[t] = −(m / 100) β · (unit / (√d / 100)) · Σ_{k=1..w} γ^k Σ_j C_k[j→i] z_j[t−k]

    over the given links, with t − k and t in one document; i need not fire itself, which is what
    lets the edit come ahead. m = 100 is β exactly. Latents are the links' targets. Raises
    ValueError on a bad value. Source: this project.
    """

    def __init__(
        self,
        sae: SAE,
        links: Iterable[Link],
        *,
        beta: float = 1.0,
        gamma: float = 0.7,
        window: int | None = None,
    ) -> None:
        self.links = [link for link in links if window is None or link.lag <= window]
        require(len(self.links) > 0, "links", [], "at least one edge within the window")
        require(0 < beta < math.inf, "beta", beta, "above 0 and finite")
        require(0 < gamma <= 1, "gamma", gamma, "above 0 and at most 1")
        for link in self.links:
            require(link.lag >= 1, "lag", link.lag, "at least 1")
            require(0 <= link.strength < math.inf, "strength", link.strength, "at least 0, finite")
            require(0 <= link.source < sae.cfg.d_sae, "source", link.source, "a latent of the SAE")
        self.beta, self.gamma = beta, gamma
        self.latents = distinct(sorted({link.target for link in self.links}), sae)

    def expected(self, z_BTF: Tensor, context: FilledContext) -> Tensor:
        """``Σ_k γ^k Σ_j C_k[j→i] z_j[t−k]`` [B, T, K] of the members."""
        document_BT = (context.boundary_BT >= DOCUMENT).cumsum(1)
        member = {latent: n for n, latent in enumerate(self.latents.tolist())}
        out_BTK = z_BTF.new_zeros(*z_BTF.shape[:2], len(member))
        for lag in sorted({link.lag for link in self.links}):
            if lag >= z_BTF.shape[1]:
                continue
            of_lag = [link for link in self.links if link.lag == lag]
            weight = z_BTF.new_tensor([self.gamma**lag * link.strength for link in of_lag])
            column = torch.tensor([member[link.target] for link in of_lag], device=z_BTF.device)
            past = z_BTF[:, :-lag, [link.source for link in of_lag]].clamp_min(0.0) * weight
            linked_BT = document_BT[:, lag:] == document_BT[:, :-lag]
            out_BTK[:, lag:].index_add_(2, column, past * linked_BT[..., None])
        return out_BTK

    def edited(
        self, sae: SAE, x_BTD: Tensor, z_BTF: Tensor, context: FilledContext, m: float, unit: float
    ) -> Tensor:
        expected_BTK = self.expected(z_BTF, context)
        value_BTK = -self.beta * m * unit / math.sqrt(sae.cfg.d_in) * expected_BTK
        new_BTF = z_BTF.clone()
        acts_BTK = (expected_BTK > 0) & context.mask_BT[..., None]
        new_BTF[..., self.latents] = torch.where(acts_BTK, value_BTK, z_BTF[..., self.latents])
        return new_BTF
