r"""How pure the tokens of a parent are in a label, against other sets of as many tokens.

    purity = 1 − H(class | active) / H(class)

over the tokens to which the label applies: 1 when they are all of one class, 0 when they are as
mixed as the text. Entropies of few tokens come out too small, for every set of as many tokens
alike, which is why purities are compared at equal numbers of tokens only.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lab.measures.composition.edges import N_NULLS, Edges
from lab.measures.composition.levels import Reading, against_null
from lab.measures.truth.recovery import SCALES

MIN_TOKENS = 20
"""Labelled tokens on which a set has to be active for its purity to count."""


def entropy(counts: Tensor) -> Tensor:
    """Of the shares along the last dimension, in nats; NaN where nothing is counted."""
    share = counts / counts.sum(-1, keepdim=True)
    return -torch.xlogy(share, share).sum(-1)


def purity(counts_PC: Tensor, base_C: Tensor) -> Tensor:
    """[..., P] of counts [..., P, C] and of those of all tokens [..., C]."""
    return 1 - entropy(counts_PC) / entropy(base_C)[..., None]


def as_often(score_NX: Tensor, count_P: Tensor) -> Tensor:
    """[N, ..., P] bool: in each column its ``count_P`` tokens of largest score above 0 (or fewer)."""
    order_NX = score_NX.argsort(dim=0, descending=True, stable=True)
    place_NX = torch.empty_like(order_NX)
    rank_N = torch.arange(len(score_NX), device=score_NX.device)
    rank_NX = rank_N.view(-1, *[1] * (score_NX.ndim - 1)).expand_as(order_NX)
    place_NX.scatter_(0, order_NX, rank_NX)
    return (place_NX < count_P) & (score_NX > 0)


class Sets(NamedTuple):
    """Sets of tokens, [N, (1 + 2 R) P] bool, with labels and documents.

    The P parents' own; then R times those of a random group of leaves with the children's weights,
    as many tokens each; then R times those of one leaf of like frequency.
    """

    active_NS: Tensor
    doc_N: Tensor
    labels: dict[str, Tensor]


class Gatherer:
    """Collects :class:`Sets` over readings."""

    def __init__(self, edges: Edges, leaves_RP: Tensor, scale_F: Tensor):
        self.edges, self.scale_F = edges, scale_F
        self.leaves_RP = leaves_RP.to(scale_F.device)[:, edges.parents_P]
        self.parts: list[tuple] = []

    def update(self, r: Reading) -> None:
        own_NP = r.h2_NP[:, self.edges.parents_P] > 0
        score_NRP = self.edges.scores(r.tokens.z_NF, self.scale_F)
        leaf_NRP = r.tokens.z_NF[:, self.leaves_RP] > 0
        self.parts.append((own_NP, score_NRP, leaf_NRP, r.tokens.doc_N, r.tokens.labels))

    def sets(self) -> Sets:
        own_NP, score_NRP, leaf_NRP, doc_N = (
            torch.cat([p[i] for p in self.parts]) for i in range(4)
        )
        groups_NRP = as_often(score_NRP, own_NP.sum(0))
        active_NS = torch.cat([own_NP, groups_NRP.flatten(1), leaf_NRP.flatten(1)], 1)
        names = self.parts[0][4]
        labels = {name: torch.cat([part[4][name] for part in self.parts]) for name in names}
        return Sets(active_NS, torch.unique(doc_N, return_inverse=True)[1], labels)


class Counts(NamedTuple):
    """Tokens of one label by document and class: of each set [D, S, C], and of all [D, C]."""

    sets_DSC: Tensor
    base_DC: Tensor

    @classmethod
    def of(cls, sets: Sets, label: str, n_classes: int) -> "Counts":
        """Tokens to which the label does not apply (−1) are left out."""
        n_documents, n_sets = int(sets.doc_N.max()) + 1, sets.active_NS.shape[1]
        keep_N = sets.labels[label] >= 0
        cell_N = (sets.doc_N * n_classes + sets.labels[label])[keep_N].cpu()
        counted = torch.zeros(n_documents * n_classes, n_sets + 1, dtype=torch.float64)
        counted[:, -1] = torch.bincount(cell_N, minlength=len(counted))
        counted[:, :-1].index_add_(0, cell_N, sets.active_NS[keep_N].double().cpu())
        counted = counted.view(n_documents, n_classes, n_sets + 1)
        return cls(counted[..., :-1].transpose(1, 2), counted[..., -1])

    def covered(self, sets: Sets) -> Tensor:
        """[S]: whether the label applies to at least half of a set's tokens."""
        return self.sets_DSC.sum((0, 2)) * 2 >= sets.active_NS.sum(0).cpu()

    def purities(self, weights_BD: Tensor) -> Tensor:
        """[B, S] in each weighting of the documents; NaN for sets of too few labelled tokens."""
        n_sets, n_classes = self.sets_DSC.shape[1:]
        flat = weights_BD @ self.sets_DSC.flatten(1)
        value_BS = purity(flat.view(-1, n_sets, n_classes), weights_BD @ self.base_DC)
        enough_S = self.sets_DSC.sum((0, 2)) >= MIN_TOKENS
        return torch.where(enough_S, value_BS, torch.nan)


def purity_rows(
    selected: Sets, seen: Sets, specs: Mapping[str, Any], weights_BD: Tensor
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Rows against random groups and against single leaves, and the best label of every parent.

    Group a scale: mean over parents and labels; group all: the best label of each set, chosen on
    ``selected`` among those that apply to half of its tokens. Random sets are averaged over their
    draws; only where each kind of set has enough tokens.
    """
    once = torch.ones(1, int(selected.doc_N.max()) + 1, dtype=torch.float64)
    counts, before = {}, []
    for name, spec in specs.items():
        counts[name] = Counts.of(seen, name, len(spec.classes))
        earlier = Counts.of(selected, name, len(spec.classes))
        known_S = earlier.purities(once)[0].nan_to_num(-torch.inf)
        before.append(torch.where(earlier.covered(selected), known_S, -torch.inf))
    value_LBS = torch.stack([counts[name].purities(weights_BD) for name in specs])
    best_S = torch.stack(before).argmax(0)
    best_BS = value_LBS.gather(0, best_S.expand(1, value_LBS.shape[1], -1))[0]
    scale_L = [spec.scale for spec in specs.values()]
    n_parents = len(best_S) // (1 + 2 * N_NULLS)
    rows = _rows("all", best_BS[None], n_parents)
    for scale in SCALES:
        of_scale = torch.tensor([s == scale for s in scale_L])
        if of_scale.any():
            rows += _rows(scale, value_LBS[of_scale], n_parents)
    return rows, _labels(counts, specs, best_S, best_BS[0], n_parents)


def _kinds(value_XS: Tensor, n_parents: int) -> list[Tensor]:
    """[..., P] of the parents, the random groups and the single leaves, the mean over draws."""
    own, *drawn = value_XS.split([n_parents, N_NULLS * n_parents, N_NULLS * n_parents], -1)
    return [own, *(part.unflatten(-1, (N_NULLS, -1)).nanmean(-2) for part in drawn)]


def _rows(group: str, value_LBS: Tensor, n_parents: int) -> list[dict[str, Any]]:
    """Means over labels and parents, where all kinds of sets are measured."""
    own, groups, leaves = _kinds(value_LBS, n_parents)
    counted_LP = torch.stack([own, groups, leaves])[:, :, 0].isfinite().all(0)
    n = int(counted_LP.sum())
    if n == 0:
        return []
    own_B, groups_B, leaves_B = (
        value.transpose(0, 1)[:, counted_LP].nanmean(1) for value in (own, groups, leaves)
    )
    rows = against_null("parent_purity", group, own_B, groups_B, n)
    return rows + against_null("parent_purity_over_leaf", group, own_B, leaves_B, n)[1:]


def _labels(
    counts: Mapping[str, Counts],
    specs: Mapping[str, Any],
    best_S: Tensor,
    value_S: Tensor,
    n_parents: int,
) -> pd.DataFrame:
    """Columns label, scale, cls, share (of that class), purity, purity_null; a row a parent."""
    names = list(specs)
    own_P, groups_P, _ = _kinds(value_S, n_parents)
    found = []
    for place in range(n_parents):
        name = names[int(best_S[place])]
        count_C = counts[name].sets_DSC[:, place].sum(0)
        found.append(
            {
                "label": name,
                "scale": specs[name].scale,
                "cls": specs[name].classes[int(count_C.argmax())],
                "share": float(count_C.max() / count_C.sum()),
                "purity": float(own_P[place]),
                "purity_null": float(groups_P[place]),
            }
        )
    return pd.DataFrame(found)
