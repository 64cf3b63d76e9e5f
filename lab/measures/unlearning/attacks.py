"""Attacks on an unlearned model: the same facts asked for in ways that the edit was not made on.

    dilution     a run of benign text stands before the whole question, in its plain form
    split        a run of benign text parts the question from the sentence that asks, where it has two
    paraphrase   only the forms in which no text states the fact, where the world has such forms

The benign text is a run of retained held-out tokens from a sentence's start to a sentence's end.
What the clean model does not answer under the attack is not counted.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from lab.edits import Edit
from lab.measures.tokens import row
from lab.worlds.knowledge import Question
from tsae.errors import UserError
from tsae.sequences import SENTENCE

if TYPE_CHECKING:
    from lab.measures.unlearning.bench import Bench

ATTACKS = ("dilution", "split", "paraphrase")
PADDING = 24
"""Least tokens of benign text."""
RATES = (0.003, 0.01, 0.03, 0.1)
"""False-positive rates of the calibration curve."""


def benign(bench: "Bench", n: int = 32) -> list[tuple[int, ...]]:
    """Up to ``n`` runs of whole benign sentences, each at least :data:`PADDING` tokens long."""
    runs = []
    for h in bench.held_out:
        starts_BT = (h.context.boundary_BT > 0) & h.retain_BT
        for tokens_T, starts_T, doc_T, retain_T in zip(
            h.tokens_BT, starts_BT, h.doc_BT, h.retain_BT, strict=True
        ):
            at = starts_T.nonzero()[:, 0].tolist()
            for first in at:
                stop = next((s for s in at if s >= first + PADDING), None)
                if stop is None:
                    break
                same = (doc_T[first:stop] == doc_T[first]).all() and retain_T[first:stop].all()
                if same and stop - first < 2 * PADDING:
                    runs.append(tuple(tokens_T[first:stop].tolist()))
                    break
            if len(runs) == n:
                return runs
    return runs


def disguised(
    questions: Iterable[Question],
    attack: str,
    runs: list[tuple[int, ...]],
    levels_V: torch.Tensor,
    seed: int = 0,
) -> list[Question]:
    """The questions under an attack; those to which it does not apply are left out.

    ``levels_V``: the level that starts after each token; ``split`` goes to the last place in a
    prompt where a sentence starts.
    """
    questions = list(questions)
    if attack == "paraphrase":
        return [q for q in questions if q.form != "plain"]
    draw = np.random.default_rng(seed)
    of_fact: dict[tuple, tuple[int, ...]] = {}
    out = []
    for q in questions:
        if attack == "dilution" and q.form != "plain":
            continue
        key = (q.subject, q.fact)
        if key not in of_fact:
            of_fact[key] = runs[int(draw.integers(len(runs)))]
        run = of_fact[key]
        place = 1 if attack == "dilution" else turn(q.prompt, levels_V)
        if place is not None:
            out.append(q._replace(prompt=q.prompt[:place] + run + q.prompt[place:]))
    return out


def turn(prompt: tuple[int, ...], levels_V: torch.Tensor) -> int | None:
    """Where the last sentence of a prompt begins; None if it has one sentence alone."""
    places = [i + 1 for i in range(1, len(prompt) - 1) if int(levels_V[prompt[i]]) > 0]
    return places[-1] if places else None


def attacked(
    bench: "Bench", edits: Mapping[str, Edit], attacks: Iterable[str]
) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """Rows ``unlearn_attack_{forget,near,far}_accuracy`` with group ``setting|attack=…``, and
    ``unlearn_attack_known`` with group ``neighbourhood|attack=…``; document rows like them."""
    rows, documents = [], []
    plain, fired = bench.questions, bench.fired
    asked, runs = bench.under_attack(), benign(bench)
    levels_V = bench.levels_V.cpu()
    if not any(turn(q.prompt, levels_V) for q in asked):  # the text has no rule for a sentence
        ends = [bench.world.encode(mark)[-1] for mark in ".?!"]
        levels_V = levels_V.index_fill(0, torch.tensor(ends), SENTENCE)
    for attack in attacks:
        if attack != "paraphrase" and not runs:
            continue
        bench.questions = disguised(asked, attack, runs, levels_V, bench.config.seed)
        try:
            known = bench.ask_clean(torch.tensor(bench.watched))
        except (UserError, ValueError):  # the model answers nothing, or nothing is left to ask
            rows.append(row("unlearn_attack_known", f"all|attack={attack}", 0.0, 0))
            continue
        rows += [
            {**r, "metric": "unlearn_attack_known", "group": f"{r['group']}|attack={attack}"}
            for r in known
        ]
        for setting, edit in edits.items():
            found, frames = bench.ask(edit)
            group = f"{setting}|attack={attack}"
            rows += [{**r, "metric": attack_metric(r["metric"]), "group": group} for r in found]
            documents += [
                f.assign(metric=f["metric"].map(attack_metric), group=group) for f in frames
            ]
    bench.questions, bench.fired = plain, fired
    return rows, documents


def attack_metric(metric: str) -> str:
    """``unlearn_forget_accuracy`` → ``unlearn_attack_forget_accuracy``."""
    return metric.replace("unlearn_", "unlearn_attack_", 1)


@torch.no_grad()
def false_positives(bench: "Bench", edits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows ``unlearn_held_out_false_positive``, group ``strategy|fpr=…``: the share of held-out
    retained tokens above a threshold set for that rate on the text of the calibration."""
    rows = []
    for strategy, edit in edits.items():
        scores = []
        for text in bench.held_out_texts():
            z_BTF = edit.sae.encode(text.x_BTD, text.context)
            read = z_BTF if edit.detector.weights is not None else z_BTF[..., edit.latents]
            score_BT = edit.detector.score(read, text.context.filled(text.x_BTD))
            scores.append(score_BT[text.keep_BT])
        if not scores:
            continue
        s_N = torch.cat(scores)
        for rate in RATES:
            above = float((s_N > edit.detector.at(rate).threshold).double().mean())
            group = f"{strategy}|fpr={rate:g}"
            rows.append(row("unlearn_held_out_false_positive", group, above, len(s_N)))
    return rows
