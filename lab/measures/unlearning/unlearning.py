r"""Unlearning: what a model no longer answers under an edit, when it acts, and what that costs.

A *gate* says when, an *edit* what (:mod:`lab.edits`); they are crossed, with random edits behind
every gate, and each pair is swept over its strength until too much is lost. For every setting:

    accuracy on forget, near and far questions, among those that the clean model answers rightly
    under every option order;  the rise of CE on held-out text;  the share of tokens edited

``always/clamp`` with ``matched=False`` is SAEBench ``unlearning`` (Karvonen et al. 2025, arXiv
2503.09532; after Farrell et al. 2024, arXiv 2410.19278). What counts as retained, and how a setting
is picked on other facts than it is judged on: :mod:`lab.measures.unlearning.choice`.
"""

from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from lab.edits import coded
from lab.measures.reading import row
from lab.measures.unlearning import attacks, weights
from lab.measures.unlearning.asked import draw
from lab.measures.unlearning.bench import Bench
from lab.measures.unlearning.choice import (
    LEAST,
    answers,
    chosen_documents,
    chosen_rows,
    picked,
    score_rows,
)
from lab.measures.unlearning.config import UnlearnConfig
from lab.measures.unlearning.cross import Case, Cross
from lab.worlds.knowledge import NEIGHBOURHOODS

RATES = (0.003, 0.01, 0.03, 0.1)
"""False-positive rates of the calibration curve."""
Rows = list[dict[str, Any]]


@torch.no_grad()
def unlearn(
    sae: Any,
    store: Any,
    world: Any,
    config: UnlearnConfig | None = None,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[Rows, pd.DataFrame]:
    """Rows and document rows of one SAE over the cross; nothing left by an earlier run is read.

    Rows with group ``gate/edit|t=…|n=…|fpr=…|m=…``: ``unlearn_{forget,near,far}_accuracy``,
    ``unlearn_retained`` (the lesser of near and far), ``unlearn_{…}_prompts`` (share of prompts in
    which a token is edited); ``unlearn_ce_delta`` (nats, held-out text), ``unlearn_retain_ce_delta``
    (without forget documents), ``unlearn_touched`` (share of held-out tokens edited),
    ``unlearn_retain_touched``, ``unlearn_latents``. With group = strategy, ``gate/edit``: those of
    :mod:`lab.measures.unlearning.choice`; with ``strategy|attack=…``: :func:`attacked`.
    ``unlearn_known`` (group = neighbourhood); ``unlearn_rank_tokens`` (``forget:labels``, …): on how
    many tokens of what text latents were ranked; ``unlearn_false_positive_rate``, on the text of
    the calibration (``gate|…``), and ``unlearn_held_out_false_positive``, on retained test text
    (``gate|fpr=…``).

    Document rows: accuracies with doc = fact id, num = right forms, den = forms; CE with doc =
    document id, num = Σ rise, den = tokens.

    Raises :class:`UserError` when the world has no forget, near or far questions, the model knows
    none of them, or the store is of another world.
    """
    config = config or UnlearnConfig()
    bench = Bench(sae.to(device).eval(), store, world, config, device)
    cross = Cross(bench)
    cases = list(cross.cases())
    rows: Rows = [*cross.rows, *bench.exam.known]
    documents: list[pd.DataFrame] = []
    at: dict[str, tuple[Case, float]] = {}
    done: dict[Any, tuple[Rows, list]] = {}
    for case in tqdm(cases, desc="unlearning", disable=not progress):
        rate = case.gate and case.gate.cfg.false_positive_rate
        for m in case.strengths(bench):
            key = (case.strategy, id(case.push), rate, gate_id(case), m)
            if key not in done:  # two thresholds may choose the same latents
                done[key] = bench.run(case.edit(bench, m))
            group = case.group(bench, m)
            at[group] = case, m
            rows += [{**r, "group": group} for r in done[key][0]]
            documents += [frame.assign(group=group) for frame in done[key][1]]
            if next(r["value"] for r in rows[::-1] if r["metric"] == "unlearn_retained") < (
                config.stop_below
            ):
                break
    for name in config.weights:
        chosen = cross.chosen(config.retain_thresholds[0], config.n_latents[-1])
        more, frames = weights.swept(bench, name, chosen)
        rows, documents = rows + more, documents + frames
    found = pd.concat(documents, ignore_index=True)
    judged = chosen_documents(found)
    rows += [*score_rows(found), *chosen_rows(judged), *held_out(bench, cases)]
    if config.attacks:
        more, frames = attacked(bench, at, found)
        rows, judged = rows + more, pd.concat([judged, *frames])
    return rows, pd.concat([found, judged], ignore_index=True)


def gate_id(case: Case) -> Any:
    """What tells apart the gates of one name: their evidence."""
    return case.gate and id(case.gate.evidence)


def held_out(bench: Bench, cases: list[Case]) -> Rows:
    """Rows ``unlearn_held_out_false_positive``: the share of held-out retained tokens above a
    threshold set for a rate on the text of the calibration."""
    gates = {case.strategy.split("/")[0]: case.gate for case in cases if case.gate is not None}
    texts = list(bench.texts(False, "test", bench.config.ce_tokens))
    rows: Rows = []
    for name, gate in gates.items() if texts else ():
        read = coded(bench.sae, texts)
        scores = [gate.score(t.x_BTD, t.z_BTF.to_dense(), t.context)[t.keep_BT] for t in read]
        s_N = torch.cat(scores)
        for rate in RATES:
            above = float((s_N > gate.at(rate).threshold).double().mean())
            rows.append(
                row("unlearn_held_out_false_positive", f"{name}|fpr={rate:g}", above, len(s_N))
            )
    return rows


def attacked(
    bench: Bench, at: dict[str, tuple[Case, float]], found: pd.DataFrame
) -> tuple[Rows, list[pd.DataFrame]]:
    """Every strategy under every attack, at the settings that were picked at .95, each on the half
    of the facts that it was not picked on: rows and document rows
    ``unlearn_attack_{forget,near,far}_accuracy`` with group ``strategy|attack=…`` (and
    ``|padding=…``), and rows ``unlearn_attack_known`` with ``neighbourhood|attack=…``."""
    config, told = bench.config, answers(found)
    half = told.drop_duplicates(["name", "doc"]).set_index(["name", "doc"])["half"]
    picks = picked(told, LEAST["_95"]).dropna(subset="group")
    picks = picks[picks["group"].isin(at)]
    asked = draw(bench.drawn, config.attack_facts or len(bench.drawn), None, config.seed)
    runs = attacks.benign(bench.held_out)
    rows: Rows = []
    frames: list[pd.DataFrame] = []
    for attack in config.attacks:
        if attack in ("dilution", "split") and not runs:
            continue
        for padding in config.paddings if attack == "dilution" else (attacks.RUN,):
            name = f"attack={attack}" + (f"|padding={padding}" if attack == "dilution" else "")
            levels_V = bench.sentences_V if attack == "split" else bench.levels_V
            some = attacks.disguised(asked, attack, runs, levels_V, padding, config.seed)
            if not {q.neighbourhood for q in some} >= set(NEIGHBOURHOODS):
                continue  # a world without such forms, or without prompts of two sentences
            exam = bench.examine(some, attacks.NOISE if attack == "perturbation" else 0.0)
            rows += [
                {**r, "metric": "unlearn_attack_known", "group": f"{r['group']}|{name}"}
                for r in exam.known
            ]
            for (strategy, group), mine in picks.groupby(["strategy", "group"], sort=False):
                facts = {key for key, h in half.items() if h in set(mine["half"])}
                case, m = at[group]
                if attack != "relearning":
                    documents = exam.ask(case.edit(bench, m), facts)[1]
                else:
                    seen = [q for q in bench.drawn if (q.neighbourhood, q.fact) not in facts]
                    edit = case.edit(bench, m)
                    with weights.relearned(bench, edit, seen, attacks.RELEARN):
                        documents = exam.ask(edit, facts, changed=True)[1]
                group = f"{strategy}|{name}"
                frames += [
                    f.assign(
                        metric=f["metric"].str.replace("unlearn_", "unlearn_attack_"), group=group
                    )
                    for f in documents
                ]
    if frames:
        sums = pd.concat(frames).groupby(["metric", "group"], sort=False)
        for (metric, group), part in sums:
            rows.append(row(metric, group, part["num"].sum() / part["den"].sum(), len(part)))
    return rows, frames
