r"""What a probe on the residual loses when the latents of a concept are taken out: SCR and TPP.

Ablating the set L of latents takes ``Σ_{i∈L} z_i W_i`` from x, the error term kept; means over a
unit are linear, so x̄ − Σ z̄_i W_i is the mean of the edited unit (documents and sections alike).
L: the n latents of largest *effect* on a probe w, (mean z̄_i of its positives − of its negatives)
· (W_i · w); TPP counts positive mean differences alone, SCR takes the effect's absolute value;
latents of effect 0 are left out.

- **SCR** (spurious-correlation removal): two labels, two classes each, desired A and spurious B. A
  probe trained where A and B go together is asked for A where they do not:
  ``scr`` = Σ (acc after ablating B's latents − acc) / Σ (acc of a probe of A trained without the
  correlation − acc), sums over pairs of labels; ``scr_gap`` = mean of the denominator. Of a
  pair's two directions the one with the lower accuracy counts. ``nan`` where no gap is left.
- **TPP** (targeted probe perturbation): one label, m classes, a probe each;
  ``tpp`` = mean over classes c of (probe c's loss of accuracy − mean loss of the other probes)
  when c's latents are ablated.

Source: SAEBench ``scr_and_tpp`` (arXiv 2503.09532; SHIFT, arXiv 2403.19647). Here the units come
from the store's labels, the probes are the logistic regressions of :mod:`lab.measures.concepts.probing`, and
SCR is a ratio of sums: small samples blow up the mean of ratios which SAEBench reports.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
import torch

from lab.measures.concepts import units
from lab.measures.concepts.probing import Probe, fit, tasks
from lab.measures.concepts.units import Units
from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds.base import World

NS = (2, 5, 10, 20, 50, 100)


class Case(NamedTuple):
    """A label of one probe task: residual means and code means of its units, and the answers."""

    x_UD: np.ndarray
    z_UF: np.ndarray
    y_U: np.ndarray

    def accuracy(self, probe: Probe, ablated: np.ndarray | None = None, W=None) -> float:
        """Of ``probe``, once the latents ``ablated`` are taken out."""
        x = self.x_UD
        if ablated is not None and len(ablated):
            x = x - self.z_UF[:, ablated] @ W[ablated]
        return float((probe.predict(x) == self.y_U).mean())


@torch.no_grad()
def directions(sae: Encoder) -> np.ndarray:
    """[F, d] what one unit of each latent adds to x̂ (the decoder's rows)."""
    device = next((p.device for p in getattr(sae, "parameters", list)()), "cpu")
    one = torch.eye(sae.cfg.d_sae, device=device)[None]
    return (sae.decode(one) - sae.decode(torch.zeros_like(one)))[0].float().cpu().numpy()


def strongest(
    z_UF: np.ndarray, y_U: np.ndarray, w_D: np.ndarray, W_FD: np.ndarray, n: int, signed: bool
) -> np.ndarray:
    """The n latents of largest effect on the probe ``w``; ``signed``: as TPP counts it."""
    gap_F = z_UF[y_U == 1].mean(0) - z_UF[y_U == 0].mean(0)
    along_F = W_FD @ w_D
    effect_F = gap_F.clip(min=0) * along_F if signed else np.abs(gap_F * along_F)
    order = np.argsort(-effect_F, kind="stable")[:n]
    return order[effect_F[order] != 0]


def tpp(
    train: Mapping[str, Case], test: Mapping[str, Case], W_FD: np.ndarray, ns: Sequence[int]
) -> dict[int, float]:
    """Score per n; the cases are the label's classes, at least two."""
    probes = {c: fit(case.x_UD, case.y_U) for c, case in train.items()}
    clean = {c: test[c].accuracy(probe) for c, probe in probes.items()}
    scores = {}
    for n in ns:
        gains = []
        for c, case in train.items():
            w_D = probes[c].weights(W_FD.shape[1])
            ablated = strongest(case.z_UF, case.y_U, w_D, W_FD, n, signed=True)
            lost = {o: clean[o] - test[o].accuracy(p, ablated, W_FD) for o, p in probes.items()}
            gains.append(lost[c] - np.mean([loss for o, loss in lost.items() if o != c]))
        scores[n] = float(np.mean(gains))
    return scores


def scr(
    biased: Case, desired: tuple[Case, Case], spurious: Case, W_FD: np.ndarray, ns: Sequence[int]
) -> tuple[float, float, dict[int, float]]:
    """Accuracy of the biased probe, of the oracle, and of the biased one per n ablated.

    ``biased``: training units where both labels go together; ``desired``: training and test
    units in which they do not, with the desired label's answers; ``spurious``: training units of
    the same kind with the other label's answers.
    """
    probe, oracle = (fit(case.x_UD, case.y_U) for case in (biased, desired[0]))
    w_D = fit(spurious.x_UD, spurious.y_U).weights(W_FD.shape[1])
    after = {}
    for n in ns:
        ablated = strongest(spurious.z_UF, spurious.y_U, w_D, W_FD, n, signed=False)
        after[n] = desired[1].accuracy(probe, ablated, W_FD)
    return desired[1].accuracy(probe), desired[1].accuracy(oracle), after


def cells(
    a_U: np.ndarray, b_U: np.ndarray, classes: Sequence[int], limit: int
) -> dict[tuple[int, int], np.ndarray]:
    """Units by (A, B) ∈ {0, 1}² for the classes (a0, a1, b0, b1), equally many (≤ ``limit``)."""
    both = product((0, 1), repeat=2)
    found = {(i, j): np.flatnonzero((a_U == classes[i]) & (b_U == classes[2 + j])) for i, j in both}
    n = min(limit, *map(len, found.values()))
    # Spread over the text, so that the units of one document are not all there is.
    return {c: u[np.linspace(0, len(u) - 1, n).astype(int)] for c, u in found.items()}


def pairs(sections: Units, n_pairs: int, n_classes: int = 6) -> list[tuple[str, str, tuple]]:
    """The label pairs, each with its best-filled 2 × 2 classes, most units in the worst cell first.

    Of each label the ``n_classes`` most frequent classes are considered.
    """
    ranked = []
    for a, b in combinations(sections.labels, 2):
        label_U, other_U = sections.labels[a], sections.labels[b]
        seen = (label_U >= 0) & (other_U >= 0)
        table = np.zeros((label_U.max() + 1, other_U.max() + 1), int)
        np.add.at(table, (label_U[seen], other_U[seen]), 1)
        tops = [np.argsort(-table.sum(axis), kind="stable")[:n_classes] for axis in (1, 0)]
        choices = product(*(combinations(top.tolist(), 2) for top in tops))
        least = [
            (int(table[np.ix_(rows, columns)].min()), rows + columns) for rows, columns in choices
        ]
        if least and max(least)[0]:
            ranked.append((max(least)[0], a, b, max(least)[1]))
    ranked.sort(key=lambda found: -found[0])
    return [found[1:] for found in ranked[:n_pairs]]


@register("perturbation", needs=("labels",))
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None = None,
    *,
    ns: Sequence[int] = NS,
    max_classes: int = 5,
    per_class: int = 150,
    min_count: int = 15,
    n_pairs: int = 3,
) -> dict[str, Measured]:
    """Rows ``tpp`` (groups ``n=10`` and ``document|n=10``; n labels), ``scr`` (``n=10``; n label
    pairs, sections as units) and ``scr_gap`` (``all``). Chosen by labels and seed alone."""
    given = {"per_class": per_class, "min_count": min_count, "max_classes": max_classes}
    made = {}
    for name, sae in saes.items():
        scales = ("document", "section")
        train, test = (units.read(sae, reading, split, scales) for split in ("train", "test"))
        W_FD = directions(sae)
        labels: dict[tuple[str, str], tuple[dict[str, Case], dict[str, Case]]] = {}
        for task in tasks(train, test, reading.store.label_specs, seed=reading.seed, **given):
            label, _, c = task.name.partition("=")
            cases = labels.setdefault((task.scale, label), ({}, {}))
            drawn = (task.train_U, task.train_y), (task.test_U, task.test_y)
            for side, of_side, (at, y) in zip((train, test), cases, drawn, strict=True):
                here = side[task.scale]
                of_side[c] = Case(here.x_UD[at], here.z_UF[at], y)
        scores: dict[str, list[dict[int, float]]] = {}
        for (scale, _), cases in labels.items():
            if len(cases[0]) > 2:  # two classes share one probe, mirrored
                found = tpp(*cases, W_FD, ns)
                for group in ("", f"{scale}|"):
                    scores.setdefault(group, []).append(found)
        rows = [
            row("tpp", f"{group}n={n}", np.mean([score[n] for score in of_group]), len(of_group))
            for group, of_group in scores.items()
            for n in ns
        ]
        sections = [with_documents(side) for side in (train, test)]
        made[name] = Measured(rows + scr_rows(sections, W_FD, ns, n_pairs, per_class, min_count))
    return made


def with_documents(read: Mapping[str, Units]) -> Units:
    """The sections, with the label of their document as well (by document id)."""
    section, document = read["section"], read["document"]
    docs, first = np.unique(document.doc_U, return_index=True)
    at_U = first[np.searchsorted(docs, section.doc_U)]
    whole = {name: label_U[at_U] for name, label_U in document.labels.items()}
    return section._replace(labels={**whole, **section.labels})


def scr_rows(
    sides: Sequence[Units],
    W_FD: np.ndarray,
    ns: Sequence[int],
    n_pairs: int,
    limit: int,
    least: int,
) -> list[dict[str, Any]]:
    """Rows of the best-filled pairs of labels; ``sides``: training and test."""
    found = []
    for a, b, classes in pairs(sides[0], n_pairs):
        filled = [cells(u.labels[a], u.labels[b], classes, limit) for u in sides]
        if min(len(u) for side in filled for u in side.values()) < least:
            continue

        def case(side: int, answer: int | None, filled: list = filled) -> Case:
            """Every cell, answered by label ``answer``; None: where both labels go together."""
            kept = [c for c in filled[side] if answer is not None or c[0] == c[1]]
            at = np.concatenate([filled[side][c] for c in kept])
            y = np.repeat([c[answer or 0] for c in kept], [len(filled[side][c]) for c in kept])
            return Case(sides[side].x_UD[at], sides[side].z_UF[at], y)

        both = [
            scr(case(0, None), (case(0, d), case(1, d)), case(0, s), W_FD, ns)
            for d, s in ((0, 1), (1, 0))
        ]
        found.append(min(both, key=lambda result: result[0]))
    if not found:
        return []
    gap = sum(oracle - base for base, oracle, _ in found)
    rows = [row("scr_gap", "all", gap / len(found), len(found))]
    for n in ns:
        gain = sum(after[n] - base for base, _, after in found)
        rows.append(row("scr", f"n={n}", gain / gap if gap > 1e-3 else np.nan, len(found)))
    return rows
