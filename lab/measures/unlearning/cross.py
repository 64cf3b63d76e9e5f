"""The cross of gates and edits: what each is made of, calibrated and chosen once for one bench."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab import edits
from lab.edits import Edit, Gate, Link, Push
from lab.edits.following import Path
from lab.edits.hierarchical import Above, above, above_parents
from lab.measures.reading import row
from lab.measures.unlearning.bench import Bench
from lab.measures.unlearning.config import RANDOM
from tsae.saes.config import require

N_CANDIDATES = 256
"""Leaves, by how much more often they fire on forget text, that are ranked."""


class Case(NamedTuple):
    """One gate with one edit; ``strategy`` is ``gate/edit``, ``setting`` the rest of its group."""

    strategy: str
    setting: str
    gate: Gate | None
    push: Push

    def edit(self, bench: Bench, m: float) -> Edit:
        """This case at a strength."""
        matched = bench.config.matched
        return Edit(bench.sae, self.push, m, gate=self.gate, matched=matched, **bench.options)

    def group(self, bench: Bench, m: float) -> str:
        """``gate/edit|t=…|n=…|fpr=…|m=…``."""
        within = f"|group={bench.config.group}" if bench.config.group else ""
        return f"{self.strategy}|{self.setting}|m={m:g}{within}"

    def strengths(self, bench: Bench) -> tuple[float, ...]:
        """The m of its sweep."""
        config, of_chain = bench.config, self.strategy.endswith("/chain")
        return (of_chain and not config.matched and config.chain_strengths) or config.strengths


class Cross:
    """Gates and pushes by (t, n), each made once. ``rows``: how they were made."""

    def __init__(self, bench: Bench):
        self.bench, self.sae, self.config = bench, bench.sae, bench.config
        within = None
        if self.config.group is not None:
            groups = self.sae.groups
            require(
                self.config.group in groups,
                "group",
                self.config.group,
                f"one of {', '.join(groups)}",
            )
            within = groups[self.config.group]
        self.within = within
        self.forget_F = edits.frequency(bench.forget)
        self.retain_F = edits.frequency(bench.retain)
        self.n = {name: sum(int(t.keep_BT.sum()) for t in getattr(bench, name)) for name in SIDES}
        self.rows = [
            row("unlearn_rank_tokens", f"{name}:{bench.source}", n, n) for name, n in self.n.items()
        ]
        self.gate, self.push = cache(self.make_gate), cache(self.make_push)
        self.follow, self.rank = cache(self.make_links), cache(self.make_rank)
        self.probe = cache(lambda kind: edits.separating(kind, bench.forget, bench.retain))

    def cases(self) -> Iterator[Case]:
        """Every gate at every rate with every edit; hold-random joins behind each gate."""
        n_cases = 0
        asked = dict.fromkeys([*self.config.edits, RANDOM])
        for t in self.config.retain_thresholds:
            for n in self.config.n_latents:
                for name in self.config.gates:
                    for gate, at in self.gates(name, t, n):
                        for edit in asked:
                            for push, how in self.pushes(edit, t, n):
                                n_cases += edit != RANDOM
                                setting = f"t={t:g}|n={n}{at}{how}"
                                yield Case(f"{name}/{edit}", setting, gate, push)
        require(n_cases > 0, "edits", self.config.edits, f"one that fits a {self.sae.name!r} SAE")

    def pushes(self, name: str, t: float, n: int) -> Iterator[tuple[Push, str]]:
        """The push, at every gamma of a chain, with what stands for it in the setting."""
        gammas = self.config.chain_gammas if name == "chain" else ()
        for gamma in gammas or (None,):
            push = self.push(name, t, n, gamma)
            if push is not None:
                yield push, "" if gamma is None else f"|gamma={gamma:g}"

    def gates(self, name: str, t: float, n: int) -> Iterator[tuple[Gate | None, str]]:
        """The gate at every rate, with what stands for it in the setting."""
        if name == "always":
            yield None, ""
            return
        made = self.gate(name, t, n)
        if made is None:
            return
        for rate in self.config.false_positive_rates:
            gate = made.at(rate)
            at = f"|fpr={rate:g}"
            group = f"{name}|t={t:g}|n={n}{at}"
            rate_row = row(
                "unlearn_false_positive_rate", group, gate.measured_rate, self.n["retain"]
            )
            self.rows.append(rate_row)
            yield gate, at

    def make_gate(self, name: str, t: float, n: int) -> Gate | None:
        """None where no chain leads to the chosen latents."""
        score, kind = name.split("-")
        cfg, retain = replace(self.config.gate, score=score), self.bench.retain
        evidence: Any
        if kind in ("logistic", "residual"):
            evidence = self.probe(kind)
        elif kind == "chain":
            paths = self.follow(t, n)[1]
            if not paths:
                return None
            evidence = edits.ordered(paths, retain, cfg.latent_rate)
        else:
            latents = self.chosen(t, n)
            latents = self.other(latents) if kind == "random" else latents
            evidence = edits.Mass(latents, edits.quantiles(latents, retain, cfg.latent_rate))
        return edits.calibrate(evidence, retain, cfg)

    def ranked(self, t: float) -> Tensor:
        """Latents of the forget text, strongest first."""
        return edits.select(self.forget_F, self.retain_F, t, self.within)

    def chosen(self, t: float, n: int) -> Tensor:
        """The first n of them."""
        return self.ranked(t)[:n]

    def other(self, latents: Tensor) -> Tensor:
        """Random latents that fire as often on all that was read."""
        n_forget, n_retain = self.n["forget"], self.n["retain"]
        overall_F = (n_forget * self.forget_F + n_retain * self.retain_F) / (n_forget + n_retain)
        return edits.random_control(latents, overall_F, self.config.seed).to(latents.device)

    @cached_property
    def tracker(self) -> Any:
        """The SAE's own, or one of the forget text."""
        return edits.tracker_of(self.sae, self.bench.texts(True), self.config.chain)

    def make_links(self, t: float, n: int) -> tuple[list[Link], list[Path]]:
        """Links and paths over the latents that are rare on retained text, to the chosen ones."""
        ranked = self.ranked(t)
        found = edits.follow(self.tracker, ranked[:n], ranked, self.config.chain)
        group = f"chain|t={t:g}|n={n}"
        self.rows += [row("unlearn_links", group, len(found[0]), len(ranked))]
        self.rows += [row("unlearn_paths", group, len(found[1]), len(ranked))]
        return found

    def make_rank(self, kind: str, t: float, random: bool) -> Above:
        """Parents or leaves of a two-level SAE, with their thresholds."""
        sae, texts = self.sae, (self.bench.forget, self.bench.retain)
        seed = self.config.seed if random else None
        if kind == "hierarchical":
            return above_parents(sae, *texts, t, seed)
        excess_F = self.forget_F - self.retain_F
        ids = excess_F.topk(min(N_CANDIDATES, len(excess_F))).indices
        if random:
            ids = self.other(self.rank(kind, t, False).latents[: max(self.config.n_latents)])
        return above(lambda text: text.kept(ids), ids, *texts, t, seed)

    def make_push(self, name: str, t: float, n: int, gamma: float | None) -> Push | None:
        """None for what this SAE has not."""
        sae, config = self.sae, self.config
        kind, random = name.removesuffix("-random"), name.endswith("-random")
        if kind in ("hierarchical", "leaves"):
            if not edits.two_levels(sae):
                return None
            found = self.rank(kind, t, random)
            if kind == "hierarchical":
                return edits.Parents(sae, found.latents, found.q_K, n)
            return edits.Clamp(sae, found.latents[:n], q_K=found.q_K[:n])
        if kind == "mean":
            if random:
                generator = torch.Generator().manual_seed(config.seed)
                return edits.Direction(torch.randn(sae.cfg.d_in, generator=generator))
            forget_D, retain_D = (
                torch.cat([t.x_BTD[t.keep_BT] for t in getattr(self.bench, name)]).mean(0)
                for name in SIDES
            )
            return edits.Direction(forget_D - retain_D)
        if kind == "chain":
            links = self.follow(t, n)[0]
            beta, gamma = config.chain.beta, gamma or config.chain.gamma
            return edits.ChainClamp(sae, links, beta=beta, gamma=gamma) if links else None
        latents = self.chosen(t, n)
        latents = self.other(latents) if random else latents
        return (
            edits.Ablation(sae, latents)
            if kind == "ablate"
            else edits.Clamp(sae, latents, kind == "hold")
        )


SIDES = ("forget", "retain")
