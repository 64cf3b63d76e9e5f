r"""Pushing down what a parent is composed of, only while the parent speaks.

    z'_j[t] = −(m / 100) √d · max_{i: h2_i[t] > q_i} W_ij / max_j W_ij     where z_j[t] > 0, else z_j[t]

over chosen parents i of a two-level SAE and their children j, the entries of W above ``EDGE``: codes
of level 1 alone reach the reconstruction, so that a parent is clamped through its children. q is the
smallest value that at most a share ``t`` of retained tokens exceeds, and parents are ranked by the
share of forget tokens on which they exceed it; so are the leaves that rival them (:func:`above`
with codes of level 1, set by :class:`lab.edits.clamp.Clamp` with that q). Source: this project.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from lab.edits.edit import CodePush, distinct
from lab.edits.ranking import Coded, Read, exceeded_at_most
from tsae.saes.base import SAE
from tsae.saes.config import require
from tsae.saes.hierarchical import HierarchicalSAE

EDGE = 1e-3
"""|W| from which an entry counts as an edge between parent and child."""


def two_levels(sae: Any) -> TypeGuard[HierarchicalSAE]:
    """Whether ``sae`` has parents."""
    return isinstance(sae, HierarchicalSAE) and sae.cfg.levels > 1


class Above(NamedTuple):
    """Latents by falling share of forget tokens above their q, with q; both [K]."""

    latents: Tensor
    q_K: Tensor


@torch.no_grad()
def above(
    codes: Callable[[Coded], Tensor],
    ids: Tensor,
    forget: Sequence[Coded],
    retain: Sequence[Coded],
    retain_threshold: float,
    seed: int | None = None,
) -> Above:
    """Rank ``ids``, of which ``codes(text)`` [N, K] gives a column each over the tokens that count;
    those never above their q on forget text go. With a ``seed``: in random order, all of them."""
    q_K = exceeded_at_most(torch.cat([codes(text) for text in retain]), retain_threshold)
    if seed is None:
        share_K = (torch.cat([codes(text) for text in forget]) > q_K).double().mean(0)
        order = share_K.argsort(descending=True, stable=True)
        order = order[share_K[order] > 0]
    else:
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
        order = order.to(ids.device)
    return Above(ids[order], q_K[order])


def above_parents(
    sae: HierarchicalSAE,
    forget: Sequence[Coded],
    retain: Sequence[Coded],
    threshold: float,
    seed: int | None = None,
) -> Above:
    """:func:`above` of the parents that have children."""
    ids = (sae.composition > EDGE).any(1).nonzero()[:, 0]

    def codes(text: Coded) -> Tensor:
        return sae.parents(text.x_BTD, text.context)[text.keep_BT][:, ids]

    return above(codes, ids, forget, retain, threshold, seed)


def children(W_PF: Tensor, parents: Tensor, n_leaves: int) -> tuple[Tensor, Tensor]:
    """The children to clamp, at most ``n_leaves``, and each parent's proportions [K, n].

    Parents are taken in their order, each with its children by falling weight, until there are
    enough; a proportion is W_ij over the parent's largest weight, 0 where j is no child of i, where
    W_ij is negative (such a child speaks against its parent), and for parents not taken.
    """
    found: dict[int, None] = {}
    taken = 0
    for i in parents.tolist():
        if len(found) == n_leaves:
            break
        taken += 1
        for j in W_PF[i].argsort(descending=True, stable=True).tolist():
            if len(found) == n_leaves or W_PF[i, j] <= EDGE:
                break
            found[j] = None
    leaves = torch.tensor(list(found), dtype=torch.long, device=W_PF.device)
    weight_KN = W_PF[parents][:, leaves]
    weight_KN[taken:] = 0.0
    largest_K1 = W_PF[parents].amax(1, keepdim=True).clamp_min(EDGE)
    return leaves, torch.where(weight_KN > EDGE, weight_KN / largest_K1, 0.0)


class Parents(CodePush):
    """The push of the module's equation; ``latents`` are the children of the parents in ``ranked``.

    Raises ``ValueError`` for an SAE without two levels.
    """

    def __init__(self, sae: SAE, ranked: Above, n_leaves: int) -> None:
        require(two_levels(sae), "sae", getattr(sae, "name", sae), "hierarchical, with two levels")
        assert isinstance(sae, HierarchicalSAE)
        self.parents, self.q_K = ranked
        leaves, self.share_KN = children(sae.composition, self.parents, n_leaves)
        self.latents = distinct(leaves, sae)

    def values(self, sae: Any, read: Read, share: float) -> Tensor:
        """See :meth:`CodePush.values`."""
        speaks_BTK = sae.parents(read.x_BTD, read.context)[..., self.parents] > self.q_K
        share_BTN = torch.where(speaks_BTK[..., None], self.share_KN, 0.0).amax(-2)
        old_BTN = read.z_BTF[..., self.latents]
        acts_BTN = (old_BTN > 0) & (share_BTN > 0)
        return torch.where(acts_BTN, -share * math.sqrt(sae.cfg.d_in) * share_BTN, old_BTN)
