"""The cross of gates and edits: what each is made of, calibrated and chosen once for one bench."""

from collections.abc import Callable, Iterator
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.edits.chain import ChainClamp, Link, follow, tracker_of
from lab.edits.clamp import Ablation, Clamp, Direction
from lab.edits.edit import Edit, Push
from lab.edits.evidence import Evidence, Path, Prefix, Votes, separating
from lab.edits.gate import Gate, calibrate
from lab.edits.hierarchical import Above, Parents, above, above_parents, two_levels
from lab.edits.ranking import frequency, random_control, select
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
    """Gates and pushes by (t, n), each made once. ``rows``: on how much they were made."""

    def __init__(self, bench: Bench):
        self.bench, self.sae, self.config = bench, bench.sae, bench.config
        self.texts = {"forget": bench.forget, "retain": bench.retain}
        self.within, group, groups = None, self.config.group, self.sae.groups
        if group is not None:
            require(group in groups, "group", group, f"one of {', '.join(groups)}")
            self.within = groups[group]
        self.forget_F, self.retain_F = (frequency(texts) for texts in self.texts.values())
        self.n = {name: sum(int(t.keep_BT.sum()) for t in ts) for name, ts in self.texts.items()}
        self.rows = [
            row("unlearn_rank_tokens", f"{name}:{bench.source}", n, n) for name, n in self.n.items()
        ]
        self.gate, self.push = cache(self.make_gate), cache(self.make_push)
        self.follow, self.rank = cache(self.make_links), cache(self.make_rank)
        self.probe = cache(lambda kind: separating(kind, bench.forget, bench.retain))

    def cases(self) -> Iterator[Case]:
        """Every gate at every rate with every edit; hold-random joins behind each gate."""
        n_cases = 0
        for t in self.config.retain_thresholds:
            for n in self.config.n_latents:
                pushes = [
                    (edit, gamma, push)
                    for edit in dict.fromkeys([*self.config.edits, RANDOM])
                    for gamma in (self.config.chain_gammas if edit == "chain" else (None,))
                    if (push := self.push(edit, t, n, gamma)) is not None
                ]
                n_cases += sum(edit != RANDOM for edit, *_ in pushes)
                for name in self.config.gates:
                    for gate, at in self.gates(name, t, n):
                        for edit, gamma, push in pushes:
                            how = "" if gamma is None else f"|gamma={gamma:g}"
                            yield Case(f"{name}/{edit}", f"t={t:g}|n={n}{at}{how}", gate, push)
        require(n_cases > 0, "edits", self.config.edits, f"one that fits a {self.sae.name!r} SAE")

    def gates(self, name: str, t: float, n: int) -> Iterator[tuple[Gate | None, str]]:
        """The gate at every rate, with what stands for it in the setting."""
        if name == "always":
            yield None, ""
        elif (made := self.gate(name, t, n)) is not None:
            for rate in self.config.false_positive_rates:
                yield made.at(rate), f"|fpr={rate:g}"

    def make_gate(self, name: str, t: float, n: int) -> Gate | None:
        """None where no chain leads to the chosen latents."""
        score, kind = name.split("-")
        forget, retain = self.bench.forget, self.bench.retain
        evidence: Evidence
        if kind in ("logistic", "residual"):
            evidence = self.probe(kind)
        elif kind == "chain":
            if not (paths := self.follow(t, n)[1]):
                return None
            evidence = Prefix.of(paths, retain)
        else:
            latents = self.chosen(t, n, kind == "random")
            evidence = Votes.of(latents, forget, retain)
        return calibrate(evidence, forget, retain, score)

    def ranked(self, t: float) -> Tensor:
        """Latents of the forget text, strongest first."""
        return select(self.forget_F, self.retain_F, t, self.within)

    def chosen(self, t: float, n: int, random: bool = False) -> Tensor:
        """The first n of them, or as many random ones."""
        latents = self.ranked(t)[:n]
        return self.other(latents) if random else latents

    def other(self, latents: Tensor) -> Tensor:
        """Random latents that fire as often on all that was read."""
        n_forget, n_retain = self.n["forget"], self.n["retain"]
        overall_F = (n_forget * self.forget_F + n_retain * self.retain_F) / (n_forget + n_retain)
        return random_control(latents, overall_F, self.config.seed).to(latents.device)

    @cached_property
    def tracker(self) -> Any:
        """The SAE's own, or one of the forget text."""
        return tracker_of(self.sae, self.bench.texts(True))

    def make_links(self, t: float, n: int) -> tuple[list[Link], list[Path]]:
        """Links and paths over the latents that are rare on retained text, to the chosen ones."""
        ranked = self.ranked(t)
        return follow(self.tracker, ranked[:n], ranked)

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
        sae, random = self.sae, name.endswith("-random")
        kind = name.removesuffix("-random")
        if kind in ("hierarchical", "leaves"):
            if not two_levels(sae):
                return None
            found = self.rank(kind, t, random)
            if kind == "hierarchical":
                return Parents(sae, found, n)
            return Clamp(sae, found.latents[:n], q_K=found.q_K[:n])
        if kind == "chain":
            links = self.follow(t, n)[0]
            return ChainClamp(sae, links, gamma or 1.0) if links else None
        if kind == "mean":
            return Direction(self.direction(random))
        pushes: dict[str, Callable[..., Push]] = {"clamp": Clamp, "ablate": Ablation}
        if kind == "hold":
            return Clamp(sae, self.chosen(t, n, random), hold=True)
        return pushes[kind](sae, self.chosen(t, n, random))

    def direction(self, random: bool) -> Tensor:
        """From the mean of retained to that of forget text, or a random one."""
        if random:
            generator = torch.Generator().manual_seed(self.config.seed)
            return torch.randn(self.sae.cfg.d_in, generator=generator)
        forget_D, retain_D = (
            torch.cat([t.x_BTD[t.keep_BT] for t in texts]).mean(0) for texts in self.texts.values()
        )
        return forget_D - retain_D
