r"""Composition: what the parents of ``hierarchical`` are made of, what they mean, how long they last.

W is the composition matrix [F2, F1]; an edge is an entry |W_ij| ≥ 1e-3, and the children of a
parent are its edges above 0. Only SAEs with two levels are measured.

- ``composition_small``: share of entries below 1e-3; ``children_{mean,median,max}``: edges per
  parent; ``composition_gini`` of |W_i|, mean over parents; ``composition_negative``: share of edges
  below 0; ``composition_r2`` = 1 − Σ(W h1 − h2)² / Σ(h2 − mean)², median over parents.
- ``l0_level1``, ``l0_level2``, ``l0_both`` (their sum: what a reader of both levels reads);
  ``fve_parents``: of the reconstruction from parents alone.
- ``parent_given_child`` = P(h2_i > 0 | h1_j > 0) and ``child_given_parent``, means over the edges of
  the strongest parents; ``_null``: with a random leaf, of the child's frequency and no child of the
  parent, in the child's place.
- ``parent_purity`` (:mod:`lab.measures.composition.purity`) by scale, and for each parent's best label (all);
  ``_null``: a random group of as many leaves, of the children's frequencies and with their weights
  (on codes of unit root mean square), active on as many tokens as the parent; ``_over_leaf_null``:
  one leaf of the parent's frequency; both the mean of four draws.
- ``level_*``: :class:`lab.measures.composition.levels.TimeScales`.

``_excess`` is the measure minus its null, ``_low`` and ``_high`` its 95% bootstrap interval over
documents. Parents, edges, null leaves and labels are chosen on the selection documents. h2 is
encoded from h1, so that some consistency is built in; how much of it is due to W, the null says.
Source: this project.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lab.edits.hierarchical import two_levels
from lab.measures.composition import edges, levels
from lab.measures.composition.levels import Fit, Reading, TimeScales
from lab.measures.composition.purity import Gatherer, purity_rows
from lab.measures.tokens import Measured

N_TOKENS = 4
"""Tokens that name a latent."""


def measure(
    saes: Mapping[str, Any],
    store: Any,
    world: Any,
    *,
    limit_tokens: int,
    selection_tokens: int,
    batch_size: int,
    seed: int,
    device: str,
    progress: bool,
    max_parents: int = 64,
    max_children: int = 32,
    draws: int = 500,
) -> dict[str, Measured]:
    """Rows of the module's measures; tables ``composition``, ``parents``, ``level_dwell``.

    ``max_parents``: of how many parents, the strongest (largest mean h2²), edges and purity are
    measured; ``draws``: of the bootstrap.
    """
    found = {}
    strings = world.to_strings if world is not None else lambda ids: [str(i) for i in ids]
    for name, sae in tqdm(saes.items(), desc="composition", disable=not progress):
        if not two_levels(sae):
            continue
        text = partial(levels.read, sae, store, batch_size=batch_size, device=device)
        train = partial(text, "train", selection_tokens)
        frequency = levels.frequencies(train())
        chosen = edges.strongest(sae, frequency, max_parents, max_children, seed)
        drawn = [levels.matched_leaves(frequency, seed + r) for r in range(edges.N_NULLS)]
        leaves_RP = torch.stack(drawn)
        scales, fit = TimeScales(store, sae, drawn[0], seed), Fit()
        together, names = edges.Together(chosen), TopTokens(chosen)
        selection, test = (
            Gatherer(chosen, leaves_RP, sae.composer.energy1.sqrt()) for _ in range(2)
        )
        feed(train(), scales.select, selection.update)
        fitted = partial(fit.update, W_PF=sae.composition)
        parts = (scales.update, fitted, together.update, names.update, test.update)
        feed(text("test", limit_tokens), *parts)
        rows = [*edges.matrix_rows(sae.composition), *fit.rows(), *scales.rows()]
        tables = {"level_dwell": scales.dwell()}
        if len(chosen.parents_P):
            counts_D5E = together.counts()
            weights_BD = levels.document_draws(len(counts_D5E), draws, seed)
            share = edges.weighted_shares(counts_D5E, weights_BD)
            for kind in edges.SHARES:
                given = (share[kind], share[f"{kind}_null"], len(chosen.leaf_E))
                rows += levels.against_null(kind, "all", *given)
            tables["composition"] = edges.edge_table(
                chosen, counts_D5E, partial(names.of_leaf, strings)
            )
            parents = parent_table(chosen, frequency, sae, names, strings)
            if store.label_specs:
                pure, labels = purity_rows(
                    selection.sets(), test.sets(), store.label_specs, weights_BD
                )
                rows += pure
                parents = parents.join(labels)
            tables["parents"] = parents
        found[name] = Measured(rows, tables=tables)
    return found


def feed(readings: Iterable[Reading], *parts: Callable[[Reading], None]) -> None:
    """Give every reading to every part."""
    for r in readings:
        for part in parts:
            part(r)


class TopTokens:
    """The tokens that say most about parents and their children.

    Tokens are ranked by Σ z / √n over the n occurrences of a token: the sum alone would favour what
    is frequent, the mean what is rare.
    """

    def __init__(self, chosen: edges.Edges):
        self.parents_P, self.leaves_U = chosen.parents_P, chosen.leaf_E.unique()
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, r: Reading) -> None:
        leaves_NU = r.tokens.z_NF[:, self.leaves_U].half()
        self.parts.append((r.id_N, r.h2_NP[:, self.parents_P].half(), leaves_NU))

    def _named(self, strings: Callable, level: int, place: int) -> str:
        id_N = torch.cat([part[0] for part in self.parts])
        z_N = torch.cat([part[level][:, place] for part in self.parts]).double()
        score_V = torch.bincount(id_N, z_N) / torch.bincount(id_N).clamp_min(1).sqrt()
        top = score_V.topk(min(N_TOKENS, len(score_V)))
        ids = top.indices[top.values > 0].tolist()
        return " ".join(visible(text) for text in strings(ids))

    def of_leaf(self, strings: Callable, leaf: int) -> str:
        return self._named(strings, 2, int((self.leaves_U == leaf).nonzero()))

    def of_parent(self, strings: Callable, place: int) -> str:
        return self._named(strings, 1, place)


def visible(text: str) -> str:
    r"""A token without the space before it; one that is nothing but space as ``\n`` or ``_``."""
    return text.strip() or repr(text)[1:-1].replace(" ", "_")


def parent_table(
    chosen: edges.Edges, frequency: levels.Frequencies, sae: Any, names: TopTokens, strings: Any
) -> pd.DataFrame:
    """Columns parent, energy (mean h2²), frequency, children, tokens; strongest first."""
    parents_P = chosen.parents_P
    return pd.DataFrame(
        {
            "parent": parents_P.tolist(),
            "energy": sae.composer.energy2[parents_P].tolist(),
            "frequency": frequency.level2_P[parents_P].tolist(),
            "children": torch.bincount(chosen.place_E, minlength=len(parents_P)).tolist(),
            "tokens": [names.of_parent(strings, n) for n in range(len(parents_P))],
        }
    )
