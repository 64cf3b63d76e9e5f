r"""Clamping what a parent is composed of, only while the parent speaks; and the leaves it rivals.

    z'_j[t] = −m · unit · max_{i: h2_i[t] > q_i} W_ij / max_j W_ij     where z_j[t] > 0, else z_j[t]
    z'_j[t] = −m · unit                                                where z_j[t] > q_j, else z_j[t]

The first (``hierarchical``) runs over chosen parents i of a two-level SAE and their children j, the
entries of W above ``EDGE``: codes of level 1 alone reach the reconstruction, so that a parent is
clamped through its children. The second (``leaves``) clamps as many leaves by themselves. In both, q
is the smallest value that at most a share ``t`` of the retained tokens exceeds, so that both meet
the protocol's retain threshold in the same way, and latents are ranked by the share of forget
tokens on which they exceed it. Source: this project.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.edits.adaptive import exceeded_at_most
from lab.edits.edit import Edit
from tsae.saes.base import SAE, FilledContext, require
from tsae.saes.hierarchical import HierarchicalSAE

EDGE = 1e-3
"""|W| from which an entry counts as an edge between parent and child."""


def two_levels(sae: Any) -> bool:
    """Whether ``sae`` has parents."""
    return isinstance(sae, HierarchicalSAE) and sae.cfg.levels == 2


class Above(NamedTuple):
    """Latents by falling share of forget tokens above their q, with q; both [K]."""

    latents: Tensor
    q_K: Tensor
    share_K: Tensor


@torch.no_grad()
def rank_above(
    codes: Callable[[Any], Tensor],
    forget: Iterable[Any],
    retain: Iterable[Any],
    retain_threshold: float,
) -> Above:
    """Rank the columns of ``codes(text)`` [B, T, K]; those never above their q on forget text go.

    ``forget``, ``retain``: :class:`lab.edits.ranking.Text` or store batches. Raises
    ``ValueError`` on an empty text or a threshold outside [0, 1).
    """
    require(0 <= retain_threshold < 1, "retain_threshold", retain_threshold, "in [0, 1)")

    def kept(texts: Iterable[Any], name: str) -> Tensor:
        parts = [codes(b)[getattr(b, "keep_BT", b.context.mask_BT)] for b in texts]
        n = sum(map(len, parts))
        require(n > 0, f"{name} tokens", n, "at least 1")
        return torch.cat(parts)

    q_K = exceeded_at_most(kept(retain, "retain"), retain_threshold)
    share_K = (kept(forget, "forget") > q_K).double().mean(0)
    order = share_K.argsort(descending=True, stable=True)
    order = order[share_K[order] > 0]
    return Above(order, q_K[order], share_K[order])


def children(W_PF: Tensor, parents: Tensor, n_leaves: int) -> tuple[Tensor, Tensor]:
    """The children to clamp, at most ``n_leaves``, and each parent's proportions [K, n].

    Parents are taken in their order, each with its children by falling weight, until there are
    enough; a proportion is W_ij over the parent's largest weight, 0 where j is no child of i, where
    W_ij is negative (such a child speaks against its parent), and for parents not taken.
    """
    found: list[int] = []
    taken = 0
    for i in parents.tolist():
        if len(found) == n_leaves:
            break
        taken += 1
        for j in W_PF[i].argsort(descending=True, stable=True).tolist():
            if len(found) == n_leaves or W_PF[i, j] <= EDGE:
                break
            if j not in found:
                found.append(j)
    leaves = torch.tensor(found, dtype=torch.long, device=W_PF.device)
    weight_KN = W_PF[parents][:, leaves]
    weight_KN[taken:] = 0.0
    largest_K1 = W_PF[parents].amax(1, keepdim=True).clamp_min(EDGE)
    return leaves, torch.where(weight_KN > EDGE, weight_KN / largest_K1, 0.0)


def rank_parents(
    sae: HierarchicalSAE, forget: Iterable, retain: Iterable, retain_threshold: float
) -> Above:
    """:func:`rank_above` of the parents that have children."""
    has_P = (sae.composition > EDGE).any(1)
    ids = has_P.nonzero()[:, 0]

    def codes(text: Any) -> Tensor:
        return sae.parents(text.x_BTD, text.context)[..., ids]

    found = rank_above(codes, forget, retain, retain_threshold)
    return found._replace(latents=ids[found.latents])


def rank_leaves(
    sae: SAE, candidates: Tensor, forget: Iterable, retain: Iterable, retain_threshold: float
) -> Above:
    """:func:`rank_above` of ``candidates``, latents of level 1."""

    def codes(text: Any) -> Tensor:
        return sae.encode(text.x_BTD, text.context)[..., candidates]

    found = rank_above(codes, forget, retain, retain_threshold)
    return found._replace(latents=candidates[found.latents])


def clamp_above(
    strategy: str, sae: Any, above: Above, n_leaves: int
) -> tuple[Tensor, Callable[..., Edit]]:
    """The leaves that ``hierarchical`` or ``leaves`` sets, at most ``n_leaves``, and its maker.

    The maker takes multiplier, scale and relative, as every :class:`Edit` does.
    """
    if strategy == "leaves":
        ids, q_K = above.latents[:n_leaves], above.q_K[:n_leaves]
        return ids, partial(LeafClamp, sae, ids, q_K=q_K)
    ids = children(sae.composition, above.latents, n_leaves)[0]
    q_K = above.q_K
    return ids, partial(HierarchicalClamp, sae, above.latents, q_K=q_K, n_leaves=n_leaves)


class HierarchicalClamp(Edit):
    """The first edit of the module's equations; ``latents`` are the children of ``parents``.

    Raises ``ValueError`` for an SAE without two levels.
    """

    strategy = "hierarchical"
    sae: HierarchicalSAE

    def __init__(
        self,
        sae: HierarchicalSAE,
        parents: Tensor | Iterable[int],
        multiplier: float,
        scale: float,
        relative: bool = False,
        *,
        q_K: Tensor,
        n_leaves: int,
        **options: Any,
    ) -> None:
        require(two_levels(sae), "sae", getattr(sae, "name", sae), "hierarchical, with two levels")
        device = sae.W_dec.device
        self.parents = torch.as_tensor(parents, dtype=torch.long, device=device).flatten()
        same = len(q_K) == len(self.parents)
        require(same, "q_K", len(q_K), f"of the {len(self.parents)} chosen parents")
        self.q_K = q_K.to(device)
        leaves, self.share_KN = children(sae.composition, self.parents, n_leaves)
        super().__init__(sae, leaves, multiplier, scale, relative, **options)

    def edited(self, z_BTF: Tensor, x_BTD: Tensor, context: FilledContext) -> Tensor:
        h2_NP = self.sae.parent_codes(z_BTF.flatten(0, 1), context.mask_BT.flatten())[0]
        speaks_NK = h2_NP[:, self.parents] > self.q_K
        share_N = torch.where(speaks_NK[..., None], self.share_KN, 0.0).amax(1)
        share_BTN = share_N.unflatten(0, z_BTF.shape[:2])
        old_BTN = z_BTF[..., self.latents]
        new_BTF = z_BTF.clone()
        acts_BTN = (old_BTN > 0) & (share_BTN > 0)
        moved_BTN = share_BTN * self.target(x_BTD)
        new_BTF[..., self.latents] = torch.where(acts_BTN, moved_BTN, old_BTN)
        return new_BTF


class LeafClamp(Edit):
    """The second edit of the module's equations: each leaf by itself, above its own q."""

    strategy = "leaves"

    def __init__(
        self,
        sae: SAE,
        latents: Tensor | Iterable[int],
        multiplier: float,
        scale: float,
        relative: bool = False,
        *,
        q_K: Tensor,
        **options: Any,
    ) -> None:
        super().__init__(sae, latents, multiplier, scale, relative, **options)
        same = len(q_K) == len(self.latents)
        require(same, "q_K", len(q_K), f"of the {len(self.latents)} chosen latents")
        self.q_K = q_K.to(self.latents.device)

    def edited(self, z_BTF: Tensor, x_BTD: Tensor, context: FilledContext) -> Tensor:
        old_BTK = z_BTF[..., self.latents]
        new_BTF = z_BTF.clone()
        new_BTF[..., self.latents] = torch.where(old_BTK > self.q_K, self.target(x_BTD), old_BTK)
        return new_BTF
