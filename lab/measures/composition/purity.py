r"""How pure the tokens of a parent are in a label, against a leaf that fires as often.

    purity = 1 − H(class | active) / H(class)

over the tokens to which the label applies: 1 when they are all of one class, 0 when they are as
mixed as the text. Entropies of few tokens come out too small, for every set of as many tokens
alike, which is why purities are compared at like numbers of tokens only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lab.measures.composition.levels import Both, against_null
from tsae.sequences import SCALES, LabelSpec

MIN_TOKENS = 20
"""Labelled tokens on which a set has to be active for its purity to count."""


def purity(counts_PC: Tensor, base_C: Tensor) -> Tensor:
    """[..., P] of counts [..., P, C] and of those of all tokens [..., C]; NaN for no count."""
    entropies = []
    for counts in (counts_PC, base_C[..., None, :]):
        share = counts / counts.sum(-1, keepdim=True)
        entropies.append(-torch.xlogy(share, share).sum(-1))
    return 1 - entropies[0] / entropies[1]


class Sets:
    """Tokens of each document, label and class: of each of S sets, and of all.

    The sets are the P parents, then R times P leaves (``leaves_RP``) of like frequency.
    """

    def __init__(self, specs: Mapping[str, LabelSpec], parents_P: Tensor, leaves_RP: Tensor):
        self.specs, self.parents_P, self.leaves_RP = specs, parents_P, leaves_RP
        self.counts: dict[str, dict[int, Tensor]] = {name: {} for name in specs}
        self.active_S: Tensor | int = 0

    def update(self, both: Both) -> None:
        own_NP = both.parents.z_NF[:, self.parents_P] > 0
        leaf_NX = both.leaves.z_NF[:, self.leaves_RP.flatten()] > 0
        active_NS = torch.cat([own_NP, leaf_NX], 1).double().cpu()
        self.active_S = self.active_S + active_NS.sum(0)
        active_NS = torch.cat([active_NS, torch.ones(len(active_NS), 1)], 1)
        for doc in both.leaves.doc_N.unique().tolist():
            at = (both.leaves.doc_N == doc).cpu()
            for name, of_label in self.counts.items():
                label_n = both.leaves.labels[name].cpu()[at]
                n_classes = len(self.specs[name].classes)
                held = of_label.get(doc, torch.zeros(n_classes, active_NS.shape[1]).double())
                keep = label_n >= 0
                of_label[doc] = held.index_add_(0, label_n[keep], active_NS[at][keep])

    def table(self, name: str) -> Tensor:
        """[D, S + 1, C] of one label, the last set being all tokens."""
        return torch.stack([self.counts[name][doc] for doc in sorted(self.counts[name])]).mT

    def purities(self, name: str, weights_BD: Tensor) -> Tensor:
        """[B, S] in each weighting of the documents; NaN for sets of too few labelled tokens."""
        table = self.table(name)
        counts_BSC = torch.einsum("bd,dsc->bsc", weights_BD, table)
        value_BS = purity(counts_BSC[:, :-1], counts_BSC[:, -1])
        return torch.where(table[:, :-1].sum((0, 2)) >= MIN_TOKENS, value_BS, torch.nan)

    def covered(self, name: str) -> Tensor:
        """[S]: whether the label applies to at least half of a set's tokens."""
        return self.table(name)[:, :-1].sum((0, 2)) * 2 >= self.active_S


def purity_rows(
    selected: Sets, seen: Sets, weights_BD: Tensor
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """``parent_purity`` against single leaves, and the best label of every parent.

    Group a scale: mean over parents and labels; group all: the best label of each set, chosen on
    ``selected`` among those that apply to half of its tokens. Leaves are averaged over their draws;
    only where each kind of set has enough tokens. Table: label, scale, cls, share (of that class),
    purity, purity_null; a row a parent.
    """
    specs, names = seen.specs, list(seen.specs)
    once = torch.ones(1, len(selected.counts[names[0]])).double()
    before = [
        torch.where(selected.covered(n), selected.purities(n, once)[0].nan_to_num(-1e9), -1e9)
        for n in names
    ]
    value_LBS = torch.stack([seen.purities(name, weights_BD) for name in names])
    best_S = torch.stack(before).argmax(0)
    best_BS = value_LBS.gather(0, best_S.expand(1, value_LBS.shape[1], -1))[0]
    n_parents = len(seen.parents_P)
    rows = _rows("all", best_BS[None], n_parents)
    for scale in SCALES:
        of_scale = [i for i, name in enumerate(names) if specs[name].scale == scale]
        rows += _rows(scale, value_LBS[of_scale], n_parents) if of_scale else []
    labels = []
    for place, null in enumerate(best_BS[0, n_parents:].view(-1, n_parents).nanmean(0).tolist()):
        name = names[int(best_S[place])]
        count_C = seen.table(name)[:, place].sum(0)
        cls, share = specs[name].classes[int(count_C.argmax())], count_C.max() / count_C.sum()
        value = float(best_BS[0, place])
        labels.append((name, specs[name].scale, cls, float(share), value, null))
    columns: Sequence[str] = ("label", "scale", "cls", "share", "purity", "purity_null")
    return rows, pd.DataFrame(labels, columns=list(columns))


def _rows(group: str, value_LBS: Tensor, n_parents: int) -> list[dict[str, Any]]:
    """Means over labels and parents, where both kinds of sets are measured."""
    own_LBP = value_LBS[..., :n_parents]
    leaf_LBP = value_LBS[..., n_parents:].unflatten(-1, (-1, n_parents)).nanmean(-2)
    counted_LP = (own_LBP + leaf_LBP)[:, 0].isfinite()
    n = int(counted_LP.sum())
    means = [v.transpose(0, 1)[:, counted_LP].nanmean(1) for v in (own_LBP, leaf_LBP)]
    return against_null("parent_purity", group, means[0], means[1], n) if n else []
