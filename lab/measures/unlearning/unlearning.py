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

from lab.edits.ranking import coded
from lab.measures.reading import row
from lab.measures.unlearning import questions, weights
from lab.measures.unlearning.bench import Bench, Rows
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
    many tokens of what text latents were ranked; ``unlearn_false_positive_rate``
    (``gate|t=…|n=…|fpr=…``): the share of held-out retained tokens at which a gate is open.

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
    for case in tqdm(cases, desc="unlearning", disable=not progress):
        for m in case.strengths(bench):
            group = case.group(bench, m)
            at[group] = case, m
            found, frames = bench.run(case.edit(bench, m))
            rows += [{**r, "group": group} for r in found]
            documents += [frame.assign(group=group) for frame in frames]
            if lost(found, config):
                break
    for name in config.weights:
        chosen = cross.chosen(config.retain_thresholds[0], config.n_latents[-1])
        more, frames = weights.swept(bench, name, chosen)
        rows, documents = rows + more, documents + frames
    asked = pd.concat(documents, ignore_index=True)
    judged = chosen_documents(asked)
    rows += [*score_rows(asked), *chosen_rows(judged), *false_alarms(bench, cases)]
    if config.attacks:
        more, frames = attacked(bench, at, asked)
        rows, judged = rows + more, pd.concat([judged, *frames])
    return rows, pd.concat([asked, judged], ignore_index=True)


def lost(rows: Rows, config: UnlearnConfig) -> bool:
    """Whether a sweep ends, too much being lost."""
    return next(r["value"] for r in rows if r["metric"] == "unlearn_retained") < config.stop_below


def false_alarms(bench: Bench, cases: list[Case]) -> Rows:
    """Rows ``unlearn_false_positive_rate``."""
    settings = ((case.strategy.split("/")[0] + "|" + case.setting, case.gate) for case in cases)
    gates = {name.split("|gamma")[0]: gate for name, gate in settings if gate is not None}
    texts = list(bench.texts(False, "test", bench.config.ce_tokens)) if gates else []
    read = coded(bench.sae, texts) if texts else []
    rows: Rows = []
    for name, gate in gates.items() if read else ():
        open_N = torch.cat([gate.open(text.read())[text.keep_BT] for text in read])
        rows.append(row("unlearn_false_positive_rate", name, open_N.double().mean(), len(open_N)))
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
    asked = questions.draw(bench.drawn, config.attack_facts or len(bench.drawn), None, config.seed)
    runs = questions.benign(bench.held_out)
    rows: Rows = []
    frames: list[pd.DataFrame] = []
    paddings = {"dilution": config.paddings}
    for attack, padding in ((a, p) for a in config.attacks for p in paddings.get(a, (None,))):
        if attack in ("dilution", "split") and not runs:
            continue
        name = f"attack={attack}" + ("" if padding is None else f"|padding={padding}")
        levels_V = bench.sentences_V if attack == "split" else bench.levels_V
        size = questions.RUN if padding is None else padding
        some = questions.disguised(asked, attack, runs, levels_V, size, config.seed)
        if not {q.neighbourhood for q in some} >= set(NEIGHBOURHOODS):
            continue  # a world without such forms, or without prompts of two sentences
        exam = bench.examine(some, questions.NOISE if attack == "perturbation" else 0.0)
        known = {"metric": "unlearn_attack_known"}
        rows += [{**r, **known, "group": f"{r['group']}|{name}"} for r in exam.known]
        for (strategy, group), mine in picks.groupby(["strategy", "group"], sort=False):
            facts = {key for key, h in half.items() if h in set(mine["half"])}
            case, m = at[group]
            edit = case.edit(bench, m)
            seen = [q for q in bench.drawn if (q.neighbourhood, q.fact) not in facts]
            steps = questions.RELEARN if attack == "relearning" else 0
            with weights.relearned(bench, edit, seen, steps):
                documents = exam.ask(edit, facts, changed=steps > 0)[1]
            for frame in documents:
                metric = frame["metric"].str.replace("unlearn_", "unlearn_attack_")
                frames.append(frame.assign(metric=metric, group=f"{strategy}|{name}"))
    if frames:
        sums = pd.concat(frames).groupby(["metric", "group"], sort=False)
        for (metric, group), part in sums:
            rows.append(row(metric, group, part["num"].sum() / part["den"].sum(), len(part)))
    return rows, frames
