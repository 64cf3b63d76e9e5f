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
2p / (1 + p), AUROC = 1/2); ``_chance``, the mean over :data:`N_SHIFTS` shifts of the classes against
the codes (:func:`lab.measures.truth.codes.shifts`), chosen and scored alike; ``_probe`` and
``_probe_ema``, the ceilings (:mod:`lab.measures.truth.ceilings`).

- ``mcc``: latents and variables paired one to one by Hungarian matching of |Pearson r| on the
  split for choices; mean of r on test with the sign of the choice, 0 for a variable left without.
- ``lifetime_error`` = |log2(dwell of the latent / dwell of the variable)|, restricted mean dwell
  times, of the latent and threshold chosen for F1.

Groups: a scale and ``scale:label`` (means over their variables, n = how many), and
``scale:label=class`` (n = its test tokens). Variables with fewer than :data:`MIN_COUNT` tokens, or true
everywhere, in either split are left out for every dictionary alike. Invariant to permuting latents
and to scaling each by a positive number.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from lab.measures.families import register
from lab.measures.nulls import DECAYS, ShuffledNull, averaged
from lab.measures.reading import AVERAGE, EMA, OWN, Encoder, Measured, Reading, Tokens, row
from lab.measures.time.lifecycle import LifecycleTracker, kaplan_meier, mean_dwell
from lab.measures.truth.ceilings import ceilings
from lab.measures.truth.codes import Codes, shifts, variables
from lab.measures.truth.ranking import F1, METRICS, influences
from lab.worlds import World

MIN_COUNT = 20
"""Tokens of a class in either split below which it is left out."""
N_SHIFTS = 20
"""Shifts of the classes whose mean is the chance level."""


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


class Recovery:
    """What is said of one dictionary, from its codes on the split for choices and on test."""

    def __init__(self, choices: Codes, test: Codes, min_count: int = MIN_COUNT):
        self.variables, self.choices, self.test = variables(test.specs), choices, test
        enough = [(part.n_C >= min_count) & (part.n_C < part.n) for part in (choices, test)]
        self.keep_C = enough[0] & enough[1]
        self.rows: list[dict[str, Any]] = []
        self.documents: list[pd.DataFrame] = []
        self.tried: list[pd.DataFrame] = []

    def own(self) -> Choice:
        """Choose, score and report the codes themselves."""
        choice = choose([self.choices.scores()])
        self.add(OWN, choice, [0.0], lambda decay: (self.test, 0.0))
        return choice

    def add(
        self,
        reading: str,
        choice: Choice,
        decays: Sequence[float],
        test: Callable[[float], tuple[Codes, float]],
    ) -> None:
        """Rows, document rows and the choices of one reading. ``test``: the codes on test of a
        decay, and the EMA through which their chosen latents are read."""
        doc_D, doc_N, count_D = np.unique(self.test.doc_N, return_inverse=True, return_counts=True)
        value_MC = np.full(choice.latent_MC.shape, np.nan)
        influence_MCD = np.zeros((*value_MC.shape, len(doc_D)))
        for d in np.unique(choice.decay_MC[:, self.keep_C]):
            used_MC = (choice.decay_MC == d) & self.keep_C
            codes, decay = test(decays[d])
            for c in np.flatnonzero(used_MC.any(0)):
                y_N = codes.truth(int(c))
                for latent in np.unique(choice.latent_MC[used_MC[:, c], c]):
                    given = codes.column(latent, decay), y_N, choice.threshold_C[c]
                    value, influence_3N = influences(*given)
                    for m in np.flatnonzero(used_MC[:, c] & (choice.latent_MC[:, c] == latent)):
                        value_MC[m, c] = value[m]
                        influence_MCD[m, c] = np.bincount(doc_N, influence_3N[m])
        share_D = count_D / self.test.n
        for kind, metric in enumerate(METRICS):
            of = {"metric": metric, "reading": reading}
            self.rows += self.grouped(metric, value_MC[kind], reading)
            for name, at in self.groups():
                num_D = value_MC[kind, at].mean() * share_D + influence_MCD[kind, at].mean(0)
                table = {"doc": doc_D, "group": name, "num": num_D, "den": share_D}
                self.documents.append(pd.DataFrame(table).assign(**of))
            for place, decay in enumerate(decays):
                frame = pd.DataFrame({"group": [v.group for v in self.variables]})
                frame = frame.assign(**of, decay=decay, score=choice.tried_DMC[place, kind])
                chosen = frame["chosen"] = choice.decay_MC[kind] == place
                frame["latent"] = np.where(chosen, choice.latent_MC[kind], -1)
                threshold = choice.threshold_C if metric == "f1" else np.nan
                frame["threshold"] = np.where(chosen, threshold, np.nan)
                self.tried.append(frame[self.keep_C])

    def lines(self, reading: Reading) -> None:
        """The constant, chance (the mean over shifts, chosen and scored alike) and the ceilings."""
        p_C = self.test.n_C / self.test.n
        chance = []
        for first, second in shifts((self.choices, self.test), N_SHIFTS, reading.seed):
            choice = choose([self.choices.scores(first)])
            given = choice.latent_MC, choice.threshold_C, second
            chance.append(self.test.shifted_scores(*given))
        lines = {"constant": np.stack([p_C, np.full_like(p_C, 0.5), 2 * p_C / (1 + p_C)])}
        for name, value_MC in (lines | {"chance": np.mean(chance, 0)} | ceilings(reading)).items():
            for metric, value_C in zip(METRICS, value_MC, strict=True):
                self.rows += self.grouped(f"{metric}_{name}", value_C)

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
        piece_N, dwells = torch.from_numpy(self.test.first_N).cumsum(0), []
        for active_NC in (on_NC, truth_NC):
            life = LifecycleTracker(count, max_length)
            life.update(torch.from_numpy(active_NC), piece_N)
            seen_C = (life.ended_FL + life.censored_FL).sum(1) > 0
            dwell_C = mean_dwell(kaplan_meier(life.ended_FL, life.censored_FL))
            dwells.append(torch.where(seen_C, dwell_C, torch.nan).numpy())
        error_C = np.abs(np.log2(dwells[0] / dwells[1]))
        rows = self.grouped("lifetime_error", error_C)
        self.rows += [r for r in rows if ":" not in r["group"]]

    def groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each scale and ``scale:label`` that has kept variables, with those."""
        for part in (lambda v: v.scale, lambda v: f"{v.scale}:{v.label}"):
            names = [part(v) for v in self.variables]
            for name in dict.fromkeys(names):
                at = np.flatnonzero([n == name for n in names] & self.keep_C)
                if len(at):
                    yield name, at

    def grouped(self, metric: str, value_C: np.ndarray, reading: str = OWN) -> list[dict[str, Any]]:
        """Rows of each scale, label and variable."""
        return [
            row(metric, name, np.nanmean(value_C[at]), len(at), reading)
            for name, at in self.groups()
        ] + [
            row(metric, self.variables[c].group, value_C[c], self.test.n_C[c], reading)
            for c in np.flatnonzero(self.keep_C)
        ]


@register("recovery", nulls=True, needs=("labels",))
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None
) -> dict[str, Measured]:
    """The module's measures; tables ``choices`` (what was tried, and chosen) and ``latents``.

    Nulls are read by their codes alone.
    """
    specs, found = reading.store.label_specs, {}
    for name, sae in saes.items():
        choices = Codes(specs, reading.tokens(sae, reading.choices))
        test = Codes(specs, reading.tokens(sae, "test"))
        said = Recovery(choices, test)
        choice = said.own()
        said.matched()
        said.lifetimes(choice, reading.store.seq_len)
        if not isinstance(sae, ShuffledNull):
            said.lines(reading)
            slow = choose(choices.averaged_scores(decay) for decay in DECAYS)
            said.add(EMA, slow, DECAYS, partial(lambda codes, decay: (codes, decay), test))
            read = partial(averages, sae, reading)
            slow = choose(read(reading.choices, decay).scores() for decay in DECAYS)
            on_test = partial(read, "test")
            said.add(
                AVERAGE, slow, DECAYS, partial(lambda read, decay: (read(decay), 0.0), on_test)
            )
        table = pd.concat(said.tried, ignore_index=True).assign(split=reading.choices)
        own = table[(table["metric"] == "ap") & (table["reading"] == OWN)]
        tables = {"choices": table, "latents": own[["group", "latent"]]}
        documents = pd.concat(said.documents or [pd.DataFrame()], ignore_index=True)
        found[name] = Measured(said.rows, documents, tables)
    return found


def averages(sae: Encoder, reading: Reading, split: str, decay: float) -> Codes:
    """The codes of the averaged residual."""
    codes = Codes(reading.store.label_specs)
    for batch in reading.batches(split):
        z_BTF = sae.encode(averaged(batch, decay), batch.context)
        codes.add(Tokens.of(batch, z_BTF, batch.x_BTD))
    return codes
