r"""How pure the tokens of a parent are in a label, against a leaf that fires as often.

    purity = 1 − H(class | active) / H(class)

over the tokens to which the label applies: 1 when they are all of one class, 0 when they are as
mixed as the text. Entropies of few tokens come out too small, for every set of as many tokens
alike, which is why purities are compared at like numbers of tokens only.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lab.measures.composition.levels import Both, against_null
from tsae.sequences import SCALES, LabelSpec

MIN_TOKENS = 20
"""Labelled tokens on which a set has to be active for its purity to count."""


def purity(counts_PC: Tensor, base_C: Tensor) -> Tensor:
    """[P] of counts [P, C] and of those of all tokens [C]; NaN for no count."""
    entropies = []
    for counts in (counts_PC, base_C):
        share = counts / counts.sum(-1, keepdim=True)
        entropies.append(-torch.xlogy(share, share).sum(-1))
    return 1 - entropies[0] / entropies[1]


class Sets:
    """Tokens of each label and class: of each of S sets, and of all.

    The sets are the P parents, then R times P leaves (``leaves_RP``) of like frequency.
    """

    def __init__(self, specs: Mapping[str, LabelSpec], parents_P: Tensor, leaves_RP: Tensor):
        self.specs, self.parents_P, self.leaves_RP = specs, parents_P, leaves_RP
        n = 1 + leaves_RP.numel() + len(parents_P)
        self.counts = {k: torch.zeros(len(s.classes), n).double() for k, s in specs.items()}
        self.active_S = torch.zeros(n - 1).double()

    def update(self, both: Both) -> None:
        own_NP = both.parents.z_NF[:, self.parents_P] > 0
        leaf_NX = both.leaves.z_NF[:, self.leaves_RP.flatten()] > 0
        active_NS = torch.cat([own_NP, leaf_NX, torch.ones_like(own_NP[:, :1])], 1).double().cpu()
        self.active_S += active_NS[:, :-1].sum(0)
        for name, count_CS in self.counts.items():
            label_N = both.leaves.labels[name].cpu()
            count_CS.index_add_(0, label_N[label_N >= 0], active_NS[label_N >= 0])

    def purities(self, name: str) -> Tensor:
        """[S] of one label; NaN for sets of too few labelled tokens."""
        *sets_SC, base_C = self.counts[name].T
        counts_SC = torch.stack(sets_SC)
        return torch.where(counts_SC.sum(1) >= MIN_TOKENS, purity(counts_SC, base_C), torch.nan)

    def covered(self, name: str) -> Tensor:
        """[S]: whether the label applies to at least half of a set's tokens."""
        return self.counts[name][:, :-1].sum(0) * 2 >= self.active_S


def purity_rows(selected: Sets, seen: Sets) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """``parent_purity`` against single leaves, and the best label of every parent.

    Group a scale: mean over parents and labels; group all: the best label of each set, chosen on
    ``selected`` among those that apply to half of its tokens. Leaves are averaged over their draws;
    only where each kind of set has enough tokens. Table: label, cls, share (of that class); a row a
    parent.
    """
    specs, names = seen.specs, list(seen.specs)
    before = [
        torch.where(selected.covered(n), selected.purities(n).nan_to_num(-1e9), -1e9) for n in names
    ]
    value_LS = torch.stack([seen.purities(name) for name in names])
    best_S = torch.stack(before).argmax(0)
    n_parents = len(seen.parents_P)
    rows = _rows("all", value_LS.gather(0, best_S[None]), n_parents)
    for scale in SCALES:
        of_scale = [i for i, name in enumerate(names) if specs[name].scale == scale]
        rows += _rows(scale, value_LS[of_scale], n_parents)
    labels = []
    for place in range(n_parents):
        name = names[int(best_S[place])]
        count_C = seen.counts[name][:, place]
        share = float(count_C.max() / count_C.sum())
        labels.append((name, specs[name].classes[int(count_C.argmax())], share))
    return rows, pd.DataFrame(labels, columns=["label", "cls", "share"])


def _rows(group: str, value_LS: Tensor, n_parents: int) -> list[dict[str, Any]]:
    """Means over labels and parents, where both kinds of sets are measured."""
    own_LP = value_LS[:, :n_parents]
    leaf_LP = value_LS[:, n_parents:].unflatten(-1, (-1, n_parents)).nanmean(-2)
    counted_LP = (own_LP + leaf_LP).isfinite()
    n = int(counted_LP.sum())
    means = own_LP[counted_LP].mean(), leaf_LP[counted_LP].mean()
    return against_null("parent_purity", group, *means, n) if n else []
