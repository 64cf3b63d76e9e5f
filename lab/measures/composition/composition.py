r"""Composition: what the parents of ``hierarchical`` are made of, what they mean, how long they last.

W is the composition matrix [F2, F1]; an edge is an entry |W_ij| ≥ 1e-3, and the children of a
parent are its edges above 0. Only SAEs with two levels are measured.

- ``composition_small``: share of entries below 1e-3; ``composition_r2`` = 1 − Σ(W h1 − h2)² /
  Σ(h2 − mean)², median over parents.
- ``l0_level1``, ``l0_level2``, ``l0_both`` (their sum: what a reader of both levels reads);
  ``fve_parents``: of the reconstruction from parents alone.
- ``parent_given_child`` = P(h2_i > 0 | h1_j > 0) and ``child_given_parent``, means over the edges of
  the strongest parents; ``_null``: with a random leaf, of the child's frequency and no child of the
  parent, in the child's place.
- ``parent_purity`` (:mod:`lab.measures.composition.purity`) by scale, and for each parent's best
  label (all); ``_null``: one leaf of the parent's frequency, the mean of four draws.
- ``level_*``: :class:`lab.measures.composition.levels.TimeScales`.

``_excess`` is the measure minus its null, ``_low`` and ``_high`` its 95% bootstrap interval over
documents. Parents, edges, null leaves and labels are chosen on validation. h2 is encoded from h1,
so that some consistency is built in; how much of it is due to W, the null says.
Source: this project.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lab.edits import random_control
from lab.edits.hierarchical import EDGE, two_levels
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
SHARES = ("parent_given_child", "child_given_parent")


class Edges(NamedTuple):
    """Parents, and for each edge its parent's place among them, leaf, weight and null leaf."""

    parents_P: Tensor
    place_E: Tensor
    leaf_E: Tensor
    weight_E: Tensor
    null_E: Tensor


def strongest(sae: Any, frequency: Frequencies, parents: int, children: int, seed: int) -> Edges:
    """Edges above 0 of the ``parents`` parents of largest mean h2², at most ``children`` each.

    Only latents that fire; null leaves fire like their children and are no child of the parent.
    """
    W_PF = torch.where(frequency.level1_F > 0, sae.composition, 0.0)
    has_P = (frequency.level2_P > 0) & (W_PF >= EDGE).any(1)
    energy_P = torch.where(has_P, sae.composer.energy2, -1.0)
    parents_P = energy_P.argsort(descending=True, stable=True)[: min(parents, int(has_P.sum()))]
    parts = [(parents_P[:0],) * 3]
    for n, i in enumerate(parents_P.tolist()):
        ids = W_PF[i].argsort(descending=True, stable=True)[:children]
        ids = ids[W_PF[i, ids] >= EDGE]
        null = random_control(ids, frequency.level1_F, seed + i).to(ids.device)
        parts.append((torch.full_like(ids, n), ids, null))
    place_E, leaf_E, null_E = (torch.cat(part) for part in zip(*parts, strict=True))
    return Edges(parents_P, place_E, leaf_E, W_PF[parents_P[place_E], leaf_E], null_E)


class Together:
    """How often parent and child of each edge fire on the same token, by document.

    ``counts`` [document, 5, E]: tokens with the parent; the child; both; the null leaf; the parent
    and the null leaf.
    """

    def __init__(self, edges: Edges):
        self.edges = edges
        self.of_doc: dict[int, Tensor] = {}

    def update(self, both: Both) -> None:
        e, fires_NF = self.edges, both.leaves.z_NF > 0
        parent_NE = (both.parents.z_NF > 0)[:, e.parents_P[e.place_E]]
        child_NE, null_NE = fires_NF[:, e.leaf_E], fires_NF[:, e.null_E]
        columns = (parent_NE, child_NE, parent_NE & child_NE, null_NE, parent_NE & null_NE)
        columns_N5E = torch.stack(columns, 1).double().cpu()
        for doc in both.leaves.doc_N.unique().tolist():
            here = columns_N5E[(both.leaves.doc_N == doc).cpu()].sum(0)
            self.of_doc[doc] = self.of_doc.get(doc, 0) + here

    def counts(self) -> Tensor:
        """[D, 5, E] float64, documents by ascending id."""
        return torch.stack([self.of_doc[doc] for doc in sorted(self.of_doc)])


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


class TopTokens:
    """The tokens that say most about chosen latents, by Σ z / √n over a token's n occurrences.

    The sum alone would favour what is frequent, the mean what is rare.
    """

    def __init__(self, level: int, latents_K: Tensor):
        self.level, self.latents_K = level, latents_K
        self.parts: list[tuple[Tensor, Tensor]] = []

    def update(self, both: Both) -> None:
        t = both[self.level]
        self.parts.append((t.id_N, t.z_NF[:, self.latents_K].half()))

    def names(self, strings: Callable) -> dict[int, str]:
        """Up to four tokens of each latent, strongest first."""
        id_N, z_NK = (torch.cat(part) for part in zip(*self.parts, strict=True))
        named = {}
        for latent, z_N in zip(self.latents_K.tolist(), z_NK.double().T, strict=True):
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
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    max_parents: int = 64,
    max_children: int = 32,
    draws: int = 500,
) -> dict[str, Measured]:
    """Rows of the module's measures; tables ``composition`` (parent, child, weight, the shares,
    tokens), ``parents`` (parent, energy, frequency, children, tokens, and those of
    :func:`purity_rows`) and ``level_dwell``.

    ``max_parents``: of how many parents, the strongest (largest mean h2²), edges and purity are
    measured; ``draws``: of the bootstrap.
    """
    made = {}
    strings = world.to_strings if world is not None else lambda ids: [str(i) for i in ids]
    for name, sae in saes.items():
        if not two_levels(sae):
            continue
        parents, seed, specs = Parents(sae), reading.seed, reading.store.label_specs
        frequency = levels.frequencies(levels.read(sae, parents, reading, reading.choices))
        e = strongest(sae, frequency, max_parents, max_children, seed)
        drawn = torch.stack([levels.matched_leaves(frequency, seed + r) for r in range(N_NULLS)])
        scales, fit, together = (
            TimeScales(reading, sae, drawn[0]),
            Fit(sae.composition),
            Together(e),
        )
        names = TopTokens(0, e.leaf_E.unique()), TopTokens(1, e.parents_P)
        leaves_RP = drawn.to(e.parents_P.device)[:, e.parents_P]
        selected, seen = (Sets(specs, e.parents_P, leaves_RP) for _ in range(2))
        for both in levels.read(sae, parents, reading, reading.choices):
            scales.select(both)
            selected.update(both)
        for both in levels.read(sae, parents, reading, "test"):
            for part in (scales, fit, together, *names, seen):
                part.update(both)
        reading.forget(parents)
        rows, tables = [*fit.rows(), *scales.rows()], {"level_dwell": scales.dwell()}
        if len(e.parents_P):
            counts_D5E, (leaf_names, parent_names) = (
                together.counts(),
                (t.names(strings) for t in names),
            )
            weights_BD = levels.document_draws(len(counts_D5E), draws, seed)
            share = weighted_shares(counts_D5E, weights_BD)
            for kind in SHARES:
                given = (share[kind], share[f"{kind}_null"], len(e.leaf_E))
                rows += levels.against_null(kind, "all", *given)
            ids = {"parent": e.parents_P[e.place_E], "child": e.leaf_E, "weight": e.weight_E}
            columns = {k: v.tolist() for k, v in (ids | shares(counts_D5E.sum(0))).items()}
            table = pd.DataFrame(columns)
            tables["composition"] = table.assign(tokens=table["child"].map(leaf_names))
            kept = e.parents_P
            nodes = {"parent": kept, "energy": sae.composer.energy2[kept]}
            nodes |= {"frequency": frequency.level2_P[kept]}
            nodes |= {"children": torch.bincount(e.place_E, minlength=len(kept))}
            table = pd.DataFrame({k: v.tolist() for k, v in nodes.items()})
            tables["parents"] = table.assign(tokens=table["parent"].map(parent_names))
            if specs:
                pure, labels = purity_rows(selected, seen, weights_BD)
                rows += pure
                tables["parents"] = tables["parents"].join(labels)
        made[name] = Measured(rows, tables=tables)
    return made
