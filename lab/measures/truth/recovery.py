r"""Truth: is a known variable readable from one latent's value, and against which lines?

The true variables are the (label, class) pairs, one against the rest, over all valid tokens; where
a label does not apply its variables are off. Per variable and metric (``ap``, ``auroc``, ``f1``;
:mod:`lab.measures.truth.ranking`) a latent, and for F1 a threshold, is chosen on the split for
choices and scored on test, for three readings of every dictionary:

- ``own``: the codes z;
- ``ema``: each latent through a causal EMA, m[t] = Σ_s δ^(t−s) z[s] / Σ_s δ^(t−s), its decay δ
  chosen with the latent: reading costs no reconstruction;
- ``average``: the codes of the residual after the same EMA, δ chosen likewise.

Lines beside them (reading own): ``_constant``, a latent that is always the same (AP = p, F1 =
2p / (1 + p), AUROC = 1/2); ``_chance``, the mean over ``n_shifts`` shifts of the classes against
the codes (:func:`lab.measures.truth.codes.shifts`), chosen and scored alike; ``_probe`` and
``_probe_ema``, the ceilings (:mod:`lab.measures.truth.ceilings`).

- ``mcc``: latents and variables paired one to one by Hungarian matching of |Pearson r| on the
  split for choices; mean of r on test with the sign of the choice, 0 for a variable left without.
- ``lifetime_error`` = |log2(dwell of the latent / dwell of the variable)|, restricted mean dwell
  times, of the latent and threshold chosen for F1.

Groups: a scale and ``scale:label`` (means over their variables, n = how many), and
``scale:label=class`` (n = its test tokens). Variables with fewer than ``min_count`` tokens, or true
everywhere, in either split are left out for every dictionary alike. Invariant to permuting latents
and to scaling each by a positive number.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from lab.measures.families import register
from lab.measures.nulls import DECAYS, ShuffledNull, averaged
from lab.measures.reading import AVERAGE, EMA, OWN, Encoder, Measured, Reading, Tokens, row
from lab.measures.time.lifecycle import LifecycleTracker
from lab.measures.truth.ceilings import ceilings
from lab.measures.truth.codes import Codes, shifts, variables
from lab.measures.truth.ranking import F1, METRICS, influences
from lab.worlds import World


class Choice(NamedTuple):
    """Per metric and variable the latent [3, C], the place of its decay [3, C], the threshold [C]
    of F1, and the best score on the split for choices at every decay [D, 3, C]."""

    latent_MC: np.ndarray
    decay_MC: np.ndarray
    threshold_C: np.ndarray
    tried_DMC: np.ndarray


def choose(scores: Iterable[np.ndarray]) -> Choice:
    """The best latent and decay from the scores [F, 4, C] of every decay."""
    tried, latents, thresholds = [], [], []
    for scores_F4C in scores:
        best_MC = scores_F4C[:, :3].argmax(0)
        tried.append(np.take_along_axis(scores_F4C[:, :3], best_MC[None], 0)[0])
        latents.append(best_MC)
        thresholds.append(np.take_along_axis(scores_F4C[:, 3], best_MC[None, F1], 0)[0])
    tried_DMC = np.stack(tried)
    decay_MC = tried_DMC.argmax(0)
    latent_MC = np.take_along_axis(np.stack(latents), decay_MC[None], 0)[0]
    threshold_C = np.take_along_axis(np.stack(thresholds), decay_MC[None, F1], 0)[0]
    return Choice(latent_MC, decay_MC, threshold_C, tried_DMC)


class Scored(NamedTuple):
    """Scores [3, C] on test and, per document, the influence on each [3, C, documents]."""

    value_MC: np.ndarray
    influence_MCD: np.ndarray


def score(
    choice: Choice, test: Iterable[Codes], decays: Sequence[float], keep_C: np.ndarray
) -> Scored:
    """The chosen latents on test: the codes of every decay, each through an EMA of ``decays``."""
    shape = choice.latent_MC.shape
    value_MC, influence = np.full(shape, np.nan), None
    for d, (codes, decay) in enumerate(zip(test, decays, strict=True)):
        used_MC = (choice.decay_MC == d) & keep_C
        doc_N = np.unique(codes.doc_N, return_inverse=True)[1]
        if influence is None:
            influence = np.zeros((*shape, doc_N.max() + 1))
        for c in np.flatnonzero(used_MC.any(0)):
            y_N = codes.truth(int(c))
            for latent in np.unique(choice.latent_MC[used_MC[:, c], c]):
                given = codes.column(latent, decay), y_N, choice.threshold_C[c]
                value, influence_3N = influences(*given)
                for m in np.flatnonzero(used_MC[:, c] & (choice.latent_MC[:, c] == latent)):
                    value_MC[m, c] = value[m]
                    influence[m, c] = np.bincount(doc_N, influence_3N[m])
    return Scored(value_MC, np.zeros((*shape, 0)) if influence is None else influence)


class Recovery:
    """What is said of one dictionary, from its codes on the split for choices and on test."""

    def __init__(self, choices: Codes, test: Codes, min_count: int = 20):
        self.variables, self.choices, self.test = variables(test.specs), choices, test
        enough = [(part.n_C >= min_count) & (part.n_C < part.n) for part in (choices, test)]
        self.keep_C = enough[0] & enough[1]
        self.rows: list[dict[str, Any]] = []
        self.documents: list[pd.DataFrame] = []
        self.tried: list[pd.DataFrame] = []

    def own(self) -> Choice:
        """Choose, score and report the codes themselves."""
        choice = choose([self.choices.scores()])
        self.add(OWN, choice, score(choice, [self.test], [0.0], self.keep_C), [0.0])
        return choice

    def add(self, reading: str, choice: Choice, scored: Scored, decays: Sequence[float]) -> None:
        """Rows, document rows and the choices of one reading."""
        for m, metric in enumerate(METRICS):
            self.rows += self.grouped(metric, scored.value_MC[m], reading)
            self.documents.append(self.by_document(metric, scored, m).assign(reading=reading))
            for d, decay in enumerate(decays):
                of = {"metric": metric, "reading": reading, "decay": decay}
                table = pd.DataFrame({"group": [v.group for v in self.variables], **of})
                table["score"] = choice.tried_DMC[d, m]
                chosen = table["chosen"] = choice.decay_MC[m] == d
                table["latent"] = np.where(chosen, choice.latent_MC[m], -1)
                at = choice.threshold_C if metric == "f1" else np.nan
                table["threshold"] = np.where(chosen, at, np.nan)
                self.tried.append(table[self.keep_C])

    def lines(self, reading: Reading, n_shifts: int) -> None:
        """The constant, chance and the ceilings."""
        p_C = self.test.n_C / self.test.n
        constant_MC = np.stack([p_C, np.full_like(p_C, 0.5), 2 * p_C / (1 + p_C)])
        lines = {"constant": constant_MC, "chance": self.chance(n_shifts, reading.seed)}
        ceiling = ceilings(reading)
        lines |= {"probe": ceiling.probe_MC, "probe_ema": ceiling.probe_ema_MC}
        for name, value_MC in lines.items():
            for metric, value_C in zip(METRICS, value_MC, strict=True):
                self.rows += self.grouped(f"{metric}_{name}", value_C)

    def chance(self, n_shifts: int, seed: int) -> np.ndarray:
        """[3, C]: mean score on shifted classes of the latents chosen on shifted classes."""
        found = []
        for first, second in shifts((self.choices, self.test), n_shifts, seed):
            choice = choose([self.choices.scores(first)])
            test_F4C = self.test.scores(second)
            value_MC = np.take_along_axis(test_F4C[:, :3], choice.latent_MC[None], 0)[0]
            value_MC[F1] = self.test.f1_at(choice.latent_MC[F1], choice.threshold_C, second)
            found.append(value_MC)
        return np.mean(found, 0)

    def matched(self) -> None:
        """``mcc`` of the variables that are kept."""
        kept = np.flatnonzero(self.keep_C)
        r_FC = self.choices.correlations()[:, kept]
        latent, place = linear_sum_assignment(-np.abs(r_FC))
        r_C = np.zeros(len(self.variables))
        on_test = self.test.correlations()[latent, kept[place]]
        r_C[kept[place]] = on_test * np.sign(r_FC[latent, place])
        self.rows += [r for r in self.grouped("mcc", r_C) if "=" not in r["group"]]
        self.rows.append(row("mcc", "all", r_C[kept].mean() if len(kept) else np.nan, len(kept)))

    def lifetimes(self, choice: Choice, max_length: int) -> None:
        """``lifetime_error`` of the latents chosen for F1."""
        count = len(self.variables)
        pairs = zip(choice.latent_MC[F1], choice.threshold_C, strict=True)
        on_NC = np.stack([self.test.column(i) >= max(at, 1e-30) for i, at in pairs], 1)
        truth_NC = np.stack([self.test.truth(c) for c in range(count)], 1)
        lives = []
        for active_NC in (on_NC, truth_NC):
            life = LifecycleTracker(count, max_length)
            life.update(torch.from_numpy(active_NC), torch.from_numpy(self.test.first_N).cumsum(0))
            lives.append(life)
        error_C = np.full(count, np.nan)
        for c in np.flatnonzero(self.keep_C):
            dwell = [life.mean_dwell(torch.tensor([c])) for life in lives]
            if all(life.runs_seen(torch.tensor([c])) for life in lives):
                error_C[c] = abs(np.log2(dwell[0] / dwell[1]))
        self.rows += [r for r in self.grouped("lifetime_error", error_C) if ":" not in r["group"]]

    def groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each scale and ``scale:label`` with its kept variables."""
        for part in (lambda v: v.scale, lambda v: f"{v.scale}:{v.label}"):
            names = [part(v) for v in self.variables]
            for name in dict.fromkeys(names):
                yield name, np.flatnonzero([n == name for n in names] & self.keep_C)

    def grouped(self, metric: str, value_C: np.ndarray, reading: str = OWN) -> list[dict[str, Any]]:
        """Rows of each scale, label and variable."""
        means = [(name, at) for name, at in self.groups() if len(at)]
        rows = [row(metric, name, np.nanmean(value_C[at]), len(at), reading) for name, at in means]
        return rows + [
            row(metric, self.variables[c].group, value_C[c], self.test.n_C[c], reading)
            for c in np.flatnonzero(self.keep_C)
        ]

    def by_document(self, metric: str, scored: Scored, m: int) -> pd.DataFrame:
        """num = value · share of tokens + influence, den = share of tokens, by scale and label."""
        doc_D, count_D = np.unique(self.test.doc_N, return_counts=True)
        share_D, frames = count_D / self.test.n, []
        for name, at in self.groups():
            if len(at):
                num_D = scored.value_MC[m, at].mean() * share_D + scored.influence_MCD[m, at].mean(
                    0
                )
                table = {"doc": doc_D, "metric": metric, "group": name, "num": num_D}
                frames.append(pd.DataFrame({**table, "den": share_D}))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


@register("recovery", nulls=True, needs=("labels",))
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    decays: Sequence[float] = DECAYS,
    min_count: int = 20,
    n_shifts: int = 20,
    averaged_tokens: int = 30_000,
    lines: bool = True,
) -> dict[str, Measured]:
    """The module's measures; tables ``choices`` (what was tried, and chosen) and ``latents``.

    ``averaged_tokens``: how many tokens of the split for choices an EMA is chosen on; ``lines``:
    whether the other readings and the lines are measured, or the codes and MCC alone. Nulls are
    read by their codes alone.
    """
    specs, found = reading.store.label_specs, {}
    for name, sae in saes.items():
        choices = Codes(specs, reading.tokens(sae, reading.choices))
        test = Codes(specs, reading.tokens(sae, "test"))
        said = Recovery(choices, test, min_count)
        choice = said.own()
        said.matched()
        said.lifetimes(choice, reading.store.seq_len)
        if lines and not isinstance(sae, ShuffledNull):
            said.lines(reading, n_shifts)
            part = choices.first(averaged_tokens)
            slow = choose(part.averaged_scores(decay) for decay in decays)
            said.add(EMA, slow, score(slow, [test] * len(decays), decays, said.keep_C), decays)

            tried = averages(sae, reading, reading.choices, decays, averaged_tokens)
            slow = choose(codes.scores() for codes in tried)
            whole = averages(sae, reading, "test", decays, None)
            scored = score(slow, whole, [0.0] * len(decays), said.keep_C)
            said.add(AVERAGE, slow, scored, decays)
        table = pd.concat(said.tried, ignore_index=True).assign(split=reading.choices)
        own = table[(table["metric"] == "ap") & (table["reading"] == OWN)]
        tables = {"choices": table, "latents": own[["group", "latent"]]}
        found[name] = Measured(said.rows, pd.concat(said.documents, ignore_index=True), tables)
    return found


def averages(
    sae: Encoder, reading: Reading, split: str, decays: Sequence[float], limit: int | None
) -> Iterator[Codes]:
    """The codes of the averaged residual at every decay."""
    for decay in decays:
        codes = Codes(reading.store.label_specs)
        for batch in reading.batches(split, limit):
            z_BTF = sae.encode(averaged(batch, decay), batch.context)
            codes.add(Tokens.of(batch, z_BTF, batch.x_BTD))
        yield codes
