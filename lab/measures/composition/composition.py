r"""Composition: what the parents of ``hierarchical`` are made of, what they mean, how long they last.

W is the composition matrix [F2, F1]; an edge is an entry |W_ij| ≥ 1e-3, and the children of a
parent are its edges above 0. Only SAEs with two levels are measured.

- ``composition_small``: share of entries below 1e-3; ``composition_r2`` = 1 − Σ(W h1 − h2)² /
  Σ(h2 − mean)², median over parents.
- ``l0_level1``, ``l0_level2``, ``l0_both`` (their sum: what a reader of both levels reads);
  ``fve_parents``: of the reconstruction from parents alone.
- ``child_given_parent`` = P(h1_j > 0 | h2_i > 0), mean over the edges of the strongest parents;
  ``_null``: with a random leaf, of the child's frequency and no child of the parent, in its place.
- ``parent_purity`` (:mod:`lab.measures.composition.purity`) by scale, and for each parent's best
  label (all); ``_null``: one leaf of the parent's frequency, the mean of four draws.
- ``level_*``: :class:`lab.measures.composition.levels.TimeScales`.

``_excess`` is the measure minus its null. Parents, edges, null leaves and labels are chosen on
validation. h2 is encoded from h1, so that some consistency is built in; how much of it is due to W,
the null says.
Source: this project.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lab.edits.hierarchical import EDGE, two_levels
from lab.edits.ranking import random_control
from lab.measures.composition import levels
from lab.measures.composition.levels import Both, Frequencies, Parents, TimeScales
from lab.measures.composition.purity import Sets, purity_rows
from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds.base import World

N_TOKENS = 4
"""Tokens that name a latent."""
N_NULLS = 4
"""Leaves drawn in each parent's place."""
PARENTS, CHILDREN = 64, 32
"""Of how many parents, the strongest, edges and purity are measured, and of how many edges each."""


class Edges(NamedTuple):
    """Parents, and for each edge its parent's place among them, leaf, weight and null leaf."""

    parents_P: Tensor
    place_E: Tensor
    leaf_E: Tensor
    weight_E: Tensor
    null_E: Tensor


def strongest(sae: Any, frequency: Frequencies, seed: int) -> Edges:
    """Edges above 0 of the :data:`PARENTS` of largest mean h2², at most :data:`CHILDREN` each.

    Only latents that fire; null leaves fire like their children and are no child of the parent.
    """
    W_PF = torch.where(frequency.level1_F > 0, sae.composition, 0.0)
    has_P = (frequency.level2_P > 0) & (W_PF >= EDGE).any(1)
    energy_P = torch.where(has_P, sae.uppers[0].composer.energy2, -1.0)
    parents_P = energy_P.argsort(descending=True, stable=True)[: min(PARENTS, int(has_P.sum()))]
    parts = [(parents_P[:0],) * 3]
    for n, i in enumerate(parents_P.tolist()):
        ids = W_PF[i].argsort(descending=True, stable=True)[:CHILDREN]
        ids = ids[W_PF[i, ids] >= EDGE]
        null = random_control(ids, frequency.level1_F, seed + i).to(ids.device)
        parts.append((torch.full_like(ids, n), ids, null))
    place_E, leaf_E, null_E = (torch.cat(part) for part in zip(*parts, strict=True))
    return Edges(parents_P, place_E, leaf_E, W_PF[parents_P[place_E], leaf_E], null_E)


def fired(edges: Edges, both: Both) -> Tensor:
    """[5, E]: on how many tokens the parent of each edge fires; the child; both; the null leaf; the
    parent and the null leaf."""
    fires_NF = both.leaves.z_NF > 0
    parent_NE = (both.parents.z_NF > 0)[:, edges.parents_P[edges.place_E]]
    child_NE, null_NE = fires_NF[:, edges.leaf_E], fires_NF[:, edges.null_E]
    columns = (parent_NE, child_NE, parent_NE & child_NE, null_NE, parent_NE & null_NE)
    return torch.stack([column.sum(0) for column in columns]).double()


def given_parent(counts_5E: Tensor) -> tuple[Tensor, Tensor]:
    """Mean P(child | parent) and P(null leaf | parent) over edges whose three latents all fire."""
    parent, child, both, null, null_both = counts_5E[:, (counts_5E[[0, 1, 3]] > 0).all(0)]
    return (both / parent).mean(), (null_both / parent).mean()


class Fit:
    """How sparse W is, how many latents fire, and how well parents reconstruct and are composed."""

    def __init__(self, W_PF: Tensor) -> None:
        self.W_PF, self.sums = W_PF, dict[str, Any]()

    def update(self, both: Both) -> None:
        x_ND, h1_NF, h2_NP = both.leaves.x_ND.double(), both.leaves.z_NF, both.parents.z_NF.double()
        new = {
            "n": len(both.leaves),
            "l0_level1": (h1_NF > 0).sum(),
            "l0_level2": (h2_NP > 0).sum(),
            "error": (x_ND - both.parents.x_hat_ND).square().sum(),
            "x": x_ND.sum(0),
            "x2": x_ND.square().sum(),
            "missed": (h1_NF @ self.W_PF.t() - h2_NP).square().sum(0),
            "h2": h2_NP.sum(0),
            "h2_2": h2_NP.square().sum(0),
        }
        self.sums = {name: self.sums.get(name, 0) + value for name, value in new.items()}

    def rows(self) -> list[dict[str, Any]]:
        s, n, edge_PF = self.sums, self.sums["n"], self.W_PF.abs() >= EDGE
        spread_P = s["h2_2"] - s["h2"].square() / n
        fits_P = (1 - s["missed"] / spread_P)[spread_P > 0]
        l0 = {f"l0_level{i}": s[f"l0_level{i}"] / n for i in (1, 2)}
        values = {
            "composition_small": (1 - edge_PF.double().mean(), edge_PF.numel()),
            "composition_r2": (fits_P.quantile(0.5) if len(fits_P) else torch.nan, len(fits_P)),
            **{name: (value, n) for name, value in (l0 | {"l0_both": sum(l0.values())}).items()},
            "fve_parents": (1 - s["error"] / (s["x2"] - s["x"].square().sum() / n), n),
        }
        return [row(name, "all", value, cases) for name, (value, cases) in values.items()]


def top_tokens(latents_K: Tensor, id_N: Tensor, z_NK: Tensor, strings: Callable) -> dict[int, str]:
    """Up to four tokens that say most about each latent, by Σ z / √n over a token's n occurrences.

    The sum alone would favour what is frequent, the mean what is rare.
    """
    named = {}
    for latent, z_N in zip(latents_K.tolist(), z_NK.double().T, strict=True):
        score_V = torch.bincount(id_N, z_N) / torch.bincount(id_N).clamp_min(1).sqrt()
        top = score_V.topk(min(N_TOKENS, len(score_V)))
        ids = top.indices[top.values > 0].tolist()
        named[latent] = " ".join(visible(text) for text in strings(ids))
    return named


def visible(text: str) -> str:
    r"""A token without the space before it; one that is nothing but space as ``\n`` or ``_``."""
    return text.strip() or repr(text)[1:-1].replace(" ", "_")


@register("composition")
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None
) -> dict[str, Measured]:
    """Rows of the module's measures; tables ``composition`` (parent, child, weight, tokens),
    ``parents`` (parent, energy, tokens, and those of :func:`purity_rows`) and ``level_dwell``."""
    made, specs = {}, reading.store.label_specs
    strings = world.to_strings if world is not None else lambda ids: [str(i) for i in ids]
    for name, sae in saes.items():
        if not two_levels(sae):
            continue
        parents, seed = Parents(sae), reading.seed
        frequency = levels.frequencies(levels.read(sae, parents, reading, reading.choices))
        e = strongest(sae, frequency, seed)
        drawn = torch.stack([levels.matched_leaves(frequency, seed + r) for r in range(N_NULLS)])
        scales, fit = TimeScales(reading, sae, drawn[0]), Fit(sae.composition)
        leaves_RP = drawn.to(e.parents_P.device)[:, e.parents_P]
        selected, seen = (Sets(specs, e.parents_P, leaves_RP) for _ in range(2))
        for both in levels.read(sae, parents, reading, reading.choices):
            scales.select(both)
            selected.update(both)
        counts_5E = torch.zeros(5, len(e.leaf_E)).double()
        leaves, shown = e.leaf_E.unique(), []
        for both in levels.read(sae, parents, reading, "test"):
            for part in (scales, fit, seen):
                part.update(both)
            counts_5E = counts_5E.to(e.leaf_E.device) + fired(e, both)
            columns = both.leaves.z_NF[:, leaves], both.parents.z_NF[:, e.parents_P]
            shown.append((both.leaves.id_N, *columns))
        rows, tables = [*fit.rows(), *scales.rows()], {"level_dwell": scales.dwell()}
        reading.forget(parents)
        if len(e.parents_P):
            rows += levels.against_null(
                "child_given_parent", "all", *given_parent(counts_5E), len(e.leaf_E)
            )
            id_N, z_NK, h2_NP = map(torch.cat, zip(*shown, strict=True))
            leaf_names = top_tokens(leaves, id_N, z_NK, strings)
            names = top_tokens(e.parents_P, id_N, h2_NP, strings)
            ids = {"parent": e.parents_P[e.place_E], "child": e.leaf_E, "weight": e.weight_E}
            table = pd.DataFrame({k: v.tolist() for k, v in ids.items()})
            tables["composition"] = table.assign(tokens=table["child"].map(leaf_names))
            nodes = {"parent": e.parents_P, "energy": sae.uppers[0].composer.energy2[e.parents_P]}
            table = pd.DataFrame({k: v.tolist() for k, v in nodes.items()})
            tables["parents"] = table.assign(tokens=table["parent"].map(names))
            if specs:
                pure, labels = purity_rows(selected, seen)
                rows += pure
                tables["parents"] = tables["parents"].join(labels)
        made[name] = Measured(rows, tables=tables)
    return made
