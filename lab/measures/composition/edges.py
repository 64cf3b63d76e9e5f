"""The edges of a composition matrix W [F2, F1], and whether parent and child go together in text."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lab.edits import random_control
from lab.edits.hierarchical import EDGE
from lab.measures.composition.levels import Frequencies, Reading, document_sums
from lab.measures.tokens import row

N_NULLS = 4
"""Random leaves drawn in each child's place."""
SHARES = ("parent_given_child", "child_given_parent")


def matrix_rows(W_PF: Tensor) -> list[dict[str, Any]]:
    """How sparse W is: entries |W_ij| ≥ 1e-3 are edges."""
    size_PF = W_PF.abs().double()
    edge_PF = size_PF >= EDGE
    children_P = edge_PF.sum(1).double()
    n_parents, n_leaves = W_PF.shape
    rank_F = torch.arange(1, n_leaves + 1, dtype=torch.float64, device=W_PF.device)
    total_P = size_PF.sum(1)
    gini_P = size_PF.sort(1).values @ (2 * rank_F - n_leaves - 1) / (n_leaves * total_P)
    negative = (W_PF <= -EDGE).sum() / edge_PF.sum().clamp_min(1)
    return [
        row("composition_small", "all", 1 - edge_PF.double().mean(), W_PF.numel()),
        row("children_mean", "all", children_P.mean(), n_parents),
        row("children_median", "all", children_P.quantile(0.5), n_parents),
        row("children_max", "all", children_P.max(), n_parents),
        row("composition_gini", "all", gini_P.nanmean(), int((total_P > 0).sum())),
        row("composition_negative", "all", negative, int(edge_PF.sum())),
    ]


class Edges(NamedTuple):
    """Parents, and for each edge its parent's place among them, leaf, weight and null leaves."""

    parents_P: Tensor
    place_E: Tensor
    leaf_E: Tensor
    weight_E: Tensor
    null_RE: Tensor

    def scores(self, z_NF: Tensor, scale_F: Tensor) -> Tensor:
        """[N, R, P]: what null leaves give with the children's weights, per unit ``scale_F``."""
        scores = []
        for null_E in self.null_RE:
            weight_E = self.weight_E * scale_F[self.leaf_E] / scale_F[null_E].clamp_min(1e-8)
            score_NP = z_NF.new_zeros(len(z_NF), len(self.parents_P))
            scores.append(score_NP.index_add_(1, self.place_E, z_NF[:, null_E] * weight_E))
        return torch.stack(scores, 1)


def strongest(sae: Any, frequency: Frequencies, parents: int, children: int, seed: int) -> Edges:
    """Edges above 0 of the ``parents`` parents of largest mean h2², at most ``children`` each.

    Only latents that fire; null leaves fire like their children and are no child of the parent.
    """
    W_PF = torch.where(frequency.level1_F > 0, sae.composition, 0.0)
    has_P = (frequency.level2_P > 0) & (W_PF >= EDGE).any(1)
    energy_P = torch.where(has_P, sae.composer.energy2, -1.0)
    parents_P = energy_P.argsort(descending=True, stable=True)[: min(parents, int(has_P.sum()))]
    place, leaf, null = [], [], []
    for n, i in enumerate(parents_P.tolist()):
        ids = W_PF[i].argsort(descending=True, stable=True)[:children]
        ids = ids[W_PF[i, ids] >= EDGE]
        place.append(torch.full_like(ids, n))
        leaf.append(ids)
        seeds = [seed + i + r * len(W_PF) for r in range(N_NULLS)]
        drawn = [random_control(ids, frequency.level1_F, s).to(ids.device) for s in seeds]
        null.append(torch.stack(drawn))
    empty = parents_P[:0]
    place_E, leaf_E = (torch.cat(part or [empty]) for part in (place, leaf))
    null_RE = torch.cat(null or [empty.expand(N_NULLS, 0)], 1)
    return Edges(parents_P, place_E, leaf_E, W_PF[parents_P[place_E], leaf_E], null_RE)


class Together:
    """How often parent and child of each edge fire on the same token, by document.

    ``counts`` [document, 5, E]: tokens with the parent; the child; both; the null leaf; the parent
    and the null leaf.
    """

    def __init__(self, edges: Edges):
        self.edges = edges
        self.parts: list[tuple[Tensor, Tensor]] = []

    def update(self, r: Reading) -> None:
        e = self.edges
        fires_NF = r.tokens.z_NF > 0
        parent_NE = (r.h2_NP > 0)[:, e.parents_P[e.place_E]]
        child_NE, null_NE = fires_NF[:, e.leaf_E], fires_NF[:, e.null_RE[0]]
        columns = (parent_NE, child_NE, parent_NE & child_NE, null_NE, parent_NE & null_NE)
        self.parts.append(document_sums(torch.stack(columns, 1), r.tokens.doc_N))

    def counts(self) -> Tensor:
        """[D, 5, E] float64, a document that two batches share counted once."""
        documents = torch.cat([doc for doc, _ in self.parts])
        return document_sums(torch.cat([count for _, count in self.parts]), documents)[1]


def shares(counts: Tensor) -> dict[str, Tensor]:
    """P(parent | child), P(child | parent) and both with the null leaf, from counts [..., 5, E].

    NaN where what is given never happens.
    """
    parent, child, both, null, null_both = counts.unbind(-2)
    return {
        "parent_given_child": both / child,
        "parent_given_child_null": null_both / null,
        "child_given_parent": both / parent,
        "child_given_parent_null": null_both / parent,
    }


def weighted_shares(counts_D5E: Tensor, weights_BD: Tensor) -> dict[str, Tensor]:
    """Each share's mean over edges [B], in each weighting of the documents.

    Only edges whose child and null leaf fire at all, so that both means are over the same ones.
    """
    once = shares(counts_D5E.sum(0))
    seen_E = torch.stack([share.isfinite() for share in once.values()]).all(0)
    counts_B5E = torch.einsum("bd,dce->bce", weights_BD, counts_D5E[..., seen_E])
    return {name: share.nanmean(-1) for name, share in shares(counts_B5E).items()}


def edge_table(edges: Edges, counts_D5E: Tensor, tokens: Callable[[int], str]) -> pd.DataFrame:
    """One row an edge; ``tokens`` names a leaf by its strongest tokens."""
    named = {leaf: tokens(leaf) for leaf in edges.leaf_E.unique().tolist()}
    table = {
        "parent": edges.parents_P[edges.place_E].tolist(),
        "child": edges.leaf_E.tolist(),
        "weight": edges.weight_E.tolist(),
        **{name: share.tolist() for name, share in shares(counts_D5E.sum(0)).items()},
    }
    return pd.DataFrame(table).assign(tokens=[named[leaf] for leaf in table["child"]])
