r"""Unlearning: what a model no longer answers, and what it costs, when forget latents are edited.

SAEBench ``unlearning`` (Karvonen et al. 2025, arXiv 2503.09532; after Farrell et al. 2024, arXiv
2410.19278): latents that fire on the forget text and on at most a share t of the retain text are
ranked by their frequency on the forget text, and the n first are set to a negative value of
multiplier m wherever they fire (units of m: :class:`lab.edits.Edit`). For every (t, n, m):

    accuracy on forget, near and far questions, among those that the clean model answers rightly
    under every option order;  the rise of CE on held-out text;  the share of tokens edited
    score = 1 − min forget accuracy over settings with retain accuracy ≥ 0.99;  0 if there is none

where the retain accuracy is the mean of near and far (SAEBench: of its retain sets). The score
picks its setting on the questions that it reports, for each strategy alike; ``random`` shows what
that is worth.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lab import edits as interventions
from lab.edits import Adaptive, ChainClamp, Clamp, Edit, Link
from lab.measures.tokens import row
from lab.measures.unlearning.attacks import attacked, false_positives
from lab.measures.unlearning.bench import Bench
from lab.measures.unlearning.choice import best_settings, chosen_documents, chosen_rows
from lab.measures.unlearning.config import LEVELS, N_CANDIDATES, UnlearnConfig
from lab.worlds.knowledge import NEIGHBOURHOODS
from tsae.saes.base import require

RETAIN_AT_LEAST = 0.99


@torch.no_grad()
def unlearn(
    sae: Any,
    store: Any,
    world: Any,
    config: UnlearnConfig | None = None,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Rows and document rows of one SAE over the grid; nothing left by an earlier run is read.

    Rows, with group ``strategy|t=…|n=…|m=…`` (and ``|relative``, ``|group=…``):
    ``unlearn_{forget,near,far}_accuracy``; ``unlearn_ce_delta`` (nats, held-out text) and
    ``unlearn_retain_ce_delta`` (without forget documents); ``unlearn_touched`` (share of held-out
    tokens edited) and ``unlearn_retain_touched``; ``unlearn_latents`` (how many were found). With
    group = strategy: ``unlearn_score``, ``unlearn_qualifying`` (settings with enough retain
    accuracy). With group = neighbourhood: ``unlearn_known`` (share of questions the clean model
    knows). ``unlearn_rank_tokens`` (group ``forget:labels``, …): on how many tokens of what text
    latents were ranked (:meth:`Bench.texts`). With group
    ``adaptive|t=…|n=…``: ``unlearn_false_positive_rate``, on the text of the calibration.

    Document rows: accuracies with doc = fact id, num = right forms, den = forms; CE with doc =
    document id, num = Σ rise, den = tokens.

    Raises :class:`UserError` when the world has no forget, near or far questions, the model knows
    none of the forget ones, or the store is of another world.
    """
    config = config or UnlearnConfig()
    bench = Bench(sae.to(device).eval(), store, world, config, device)
    plans, rows = plan(bench, config)
    rows += bench.ask_clean(torch.cat([p.edit(bench, 1.0).triggers for p in plans]).unique())
    documents = []
    results: dict[Any, tuple[list, list]] = {}
    edits: dict[str, Edit] = {}
    grid = [
        (p, m) for p in plans for m in (config.chain_multipliers if p.links else config.multipliers)
    ]
    for p, m in tqdm(grid, desc="unlearning", disable=not progress):
        rate = p.detector and p.detector.cfg.false_positive_rate
        key = (p.strategy, tuple(p.latents.tolist()), p.links, p.gamma, rate, m)
        if key not in results:  # two thresholds may choose the same latents
            results[key] = bench.run(p.edit(bench, m))
        group = f"{p.strategy}|{p.setting}|m={m:g}" + "|relative" * config.relative
        group += f"|group={config.group}" if config.group else ""
        edits[group] = p.edit(bench, m)
        rows += [{**r, "group": group} for r in results[key][0]]
        documents += [frame.assign(group=group) for frame in results[key][1]]
    found = pd.concat(documents, ignore_index=True)
    chosen = chosen_documents(found)
    rows += score_rows(rows) + chosen_rows(chosen)
    if config.attacks:
        detected = {p.strategy: p for p in plans if p.detector is not None}
        rows += false_positives(bench, {k: p.edit(bench, 1.0) for k, p in detected.items()})
        best = {group: edits[group] for group in best_settings(found)}
        more, asked = attacked(bench, best, config.attacks)
        rows, chosen = rows + more, pd.concat([chosen, *asked])
    return rows, pd.concat([found, chosen], ignore_index=True)


class Plan(NamedTuple):
    """One (strategy, t, n): the latents to edit, and the calibrated detector if it needs one."""

    strategy: str
    setting: str
    latents: Tensor
    detector: interventions.Detector | None = None
    links: tuple[Link, ...] = ()
    gamma: float | None = None
    make: Callable[..., Edit] | None = None

    def edit(self, bench: Bench, multiplier: float) -> Edit:
        """The edit of this plan at one multiplier."""
        options: dict[str, Any] = {**bench.options, "relative": bench.config.relative}
        if self.make is not None:
            return self.make(multiplier=multiplier, **options)
        if self.links:
            chain = bench.config.chain
            options |= {"beta": chain.beta, "gamma": self.gamma or chain.gamma}
            return ChainClamp(bench.sae, self.links, multiplier, **options)
        if self.detector is not None:
            options["detector"] = self.detector
        kind = Clamp if self.detector is None else Adaptive
        return kind(bench.sae, self.latents, multiplier, **options)


def plan(bench: Bench, config: UnlearnConfig) -> tuple[list[Plan], list[dict[str, Any]]]:
    """The latents of every (strategy, t, n), and rows that say what text they were ranked on."""
    sae = bench.sae
    within = None
    if config.group is not None:
        groups = sae.groups
        require(config.group in groups, "group", config.group, f"one of {', '.join(groups)}")
        within = groups[config.group]
    forget = interventions.frequency(sae, bench.texts("forget"))
    retain = interventions.frequency(sae, bench.texts("retain"))
    overall = interventions.frequency(sae, bench.texts("all"))
    rows = [
        row("unlearn_rank_tokens", f"{name}:{bench.source}", measured.n, measured.n)
        for name, measured in (("forget", forget), ("retain", retain))
    ]
    made = Maker(bench, config)
    plans = []
    for t in config.retain_thresholds:
        ranked = interventions.select(forget.share_F, retain.share_F, t, within)
        for n in config.n_latents:
            chosen, setting = ranked[:n], f"t={t:g}|n={n}"
            for strategy in config.strategies:
                if strategy in LEVELS:
                    if interventions.two_levels(sae):
                        leaves, make = made.levels(strategy, t, n, forget.share_F - retain.share_F)
                        plans.append(Plan(strategy, setting, leaves, make=make))
                    continue
                detector = made.detector(strategy, chosen)
                links: tuple[Link, ...] = ()
                rates = config.false_positive_rates if strategy.startswith("probe") else (None,)
                latents, group = chosen, f"{strategy}|{setting}"
                if strategy.endswith("random"):
                    latents = interventions.random_control(chosen, overall.share_F, config.seed)
                if strategy == "chain":
                    links = made.links(chosen, ranked)
                    rows.append(row("unlearn_links", group, len(links), len(ranked)))
                    if not links:  # nothing leads to the chosen latents
                        continue
                    for gamma in config.chain_gammas:
                        at = f"{setting}|gamma={gamma:g}"
                        plans.append(Plan(strategy, at, latents, None, links, gamma))
                    if config.chain_gammas:
                        continue
                for rate in rates:
                    here, at = detector, setting
                    if rate is not None and detector is not None:
                        here, at = detector.at(rate), f"{setting}|fpr={rate:g}"
                    if here is not None:
                        measured, group = here.measured_rate, f"{strategy}|{at}"
                        rows.append(row("unlearn_false_positive_rate", group, measured, retain.n))
                    plans.append(Plan(strategy, at, latents, here, links))
    require(len(plans) > 0, "strategies", config.strategies, f"one that fits a {sae.name!r} SAE")
    return plans, rows


class Maker:
    """Detectors and links, each made once."""

    def __init__(self, bench: Bench, config: UnlearnConfig):
        self.bench, self.config = bench, config
        self.probe: interventions.Detector | None = None
        self.tracker: Any = None
        self.above: dict[tuple[str, float], Any] = {}

    def detector(self, strategy: str, chosen: Tensor) -> interventions.Detector | None:
        """The calibrated detector of a strategy that has one; the probe's is of no latent."""
        bench, config = self.bench, self.config
        if strategy in ("adaptive", "hold"):
            cfg = replace(config.detector, hold=strategy == "hold")
            return interventions.calibrate(bench.sae, chosen, bench.texts("retain"), cfg)
        if strategy.startswith("probe") and self.probe is None:
            texts = bench.texts("retain"), config.probe, bench.texts("forget")
            self.probe = interventions.calibrate(bench.sae, chosen[:0], *texts)
        return self.probe if strategy.startswith("probe") else None

    def levels(
        self, strategy: str, t: float, n: int, excess_F: Tensor
    ) -> tuple[Tensor, Callable[..., Edit]]:
        """The leaves that a strategy of :data:`LEVELS` sets, and how its edit is made."""
        sae = self.bench.sae
        if (strategy, t) not in self.above:
            texts = self.bench.texts("forget"), self.bench.texts("retain")
            if strategy == "hierarchical":
                found = interventions.rank_parents(sae, *texts, t)
            else:
                candidates = excess_F.topk(min(N_CANDIDATES, len(excess_F))).indices
                found = interventions.rank_leaves(sae, candidates, *texts, t)
            self.above[strategy, t] = found
        return interventions.clamp_above(strategy, sae, self.above[strategy, t], n)

    def links(self, chosen: Tensor, ranked: Tensor) -> tuple[Link, ...]:
        """Links of chains, over the latents that are rare on retained text, to the chosen ones."""
        bench, chain = self.bench, self.config.chain
        if self.tracker is None:
            self.tracker = interventions.tracked(bench.sae, bench.texts("forget"), chain)
        return tuple(interventions.follow(self.tracker, chosen, ranked, chain))


def score_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """``unlearn_score`` and ``unlearn_qualifying`` of each strategy, from the accuracy rows."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for r in rows:
        for name in NEIGHBOURHOODS:
            if r["metric"] == f"unlearn_{name}_accuracy":
                strategy = r["group"].split("|")[0]
                table.setdefault(strategy, {}).setdefault(r["group"], {})[name] = r
    out = []
    for strategy, settings in table.items():
        qualifying = []
        for setting in settings.values():
            retain = [setting[name]["value"] for name in ("near", "far") if name in setting]
            if sum(retain) / len(retain) >= RETAIN_AT_LEAST:
                qualifying.append(setting["forget"]["value"])
        n = next(iter(settings.values()))["forget"]["n"]
        best = 1 - min(qualifying) if qualifying else 0.0
        out.append(row("unlearn_score", strategy, best, n))
        out.append(row("unlearn_qualifying", strategy, len(qualifying), len(settings)))
    return out
