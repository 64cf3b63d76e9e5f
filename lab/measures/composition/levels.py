"""Both levels of a ``hierarchical`` SAE on the same tokens, and on which time scale each lives."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lab.edits.ranking import random_control
from lab.measures.reading import Reading, Tokens, row
from lab.measures.time.lifecycle import LifecycleTracker
from lab.measures.truth.codes import Codes
from lab.measures.truth.recovery import Recovery
from tsae.saes.base import SAEOutput
from tsae.saes.hierarchical import HierarchicalSAE
from tsae.sequences import SCALES, SequenceContext


class Parents:
    """Codes h2 [B, T, F2], reconstruction x2 = h2 D2 W_dec + b; the weights are those of ``sae``.

    What a family asks of an SAE, so that it measures parents as it measures latents. Calling raises
    ``ValueError`` when ``sae`` has one level.
    """

    def __init__(self, sae: HierarchicalSAE):
        cfg = sae.cfg
        self.sae, self.meta, self.name = sae, sae.meta, f"parents({sae.name})"
        self.groups: dict[str, Tensor] = {}  # level 1's groups are of other latents
        size: dict[str, Any] = {"levels": 1, "ratio": 1, "d_sae": cfg.n_parents, "k2": None}
        self.cfg = replace(cfg, act=cfg.act2 or cfg.act, k=cfg.parents_per_token, **size)
        self.parameters = sae.parameters

    @property
    def W_dec(self) -> Tensor:
        """[F2, d] what one unit of each parent adds to x2; not of norm 1."""
        return self.sae.parent_directions()

    def encode(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        return self.sae.parents(x_BTD, context)

    def decode(self, z_BTF: Tensor) -> Tensor:
        return self.sae.decode_parents(z_BTF)

    def __call__(self, x_BTD: Tensor, context: SequenceContext | None = None) -> SAEOutput:
        """``pre`` is h2 itself: what went into its activation is not kept."""
        h2 = self.encode(x_BTD, context)
        return SAEOutput(self.decode(h2), h2, h2, {})


class Both(NamedTuple):
    """The same tokens with the codes of level 1, and with those of level 2 (and x̂ from them)."""

    leaves: Tokens
    parents: Tokens


def read(sae: HierarchicalSAE, parents: Parents, reading: Reading, split: str) -> Iterator[Both]:
    """Batches of a split."""
    for pair in zip(reading.tokens(sae, split), reading.tokens(parents, split), strict=True):
        yield Both(*pair)


class Frequencies(NamedTuple):
    """Share of tokens on which each latent of level 1 and of level 2 fires."""

    level1_F: Tensor
    level2_P: Tensor


def frequencies(readings: Iterable[Both]) -> Frequencies:
    """Firing frequencies over all readings. Raises ``ValueError`` when there is no token."""
    parts, n = [], 0
    for both in readings:
        parts.append([(t.z_NF > 0).sum(0) for t in both])
        n += len(both.leaves)
    if n == 0:
        raise ValueError("no valid token to choose parents on; ask for more tokens")
    return Frequencies(*(torch.stack([p[i] for p in parts]).sum(0).double() / n for i in (0, 1)))


def matched_leaves(frequency: Frequencies, seed: int) -> Tensor:
    """[F2] latents of level 1 that fire as often as the parents, drawn at random, none twice.

    Parents that never fire share one leaf: the latent of level 1 that fires least.
    """
    level1_F, level2_P = (part.cpu() for part in frequency)
    fires = (level2_P > 0).nonzero()[:, 0]
    # Of both levels in one list the chosen are the parents, so that only leaves are drawn.
    both = torch.cat([level1_F, level2_P])
    leaves = torch.full((len(level2_P),), int(level1_F.argmin()))
    leaves[fires] = random_control(fires + len(level1_F), both, seed)
    return leaves


def against_null(
    metric: str, group: str, value: Tensor, null: Tensor, n: int
) -> list[dict[str, Any]]:
    """``metric``, ``_null`` and ``_excess``, what is left without its null."""
    ends = {"": value, "_null": null, "_excess": value - null}
    return [row(metric + end, group, number, n) for end, number in ends.items()]


class TimeScales:
    """Which level recovers slow labels, and how long its latents stay on.

    Three codings of the same tokens: ``level1``, ``level2``, and ``leaves``, as many latents of
    level 1 as there are parents and of like frequency, since among fewer latents the best one is
    worse by itself. Per coding: ``level_ap`` with group ``coding:scale`` (:class:`Recovery`),
    ``level_mean_dwell`` (tokens, Kaplan–Meier, runs pooled) with group ``coding``.
    """

    def __init__(self, reading: Reading, sae: HierarchicalSAE, leaves_P: Tensor):
        self.leaves_P = leaves_P.to(sae.W_dec.device)
        n, store = sae.cfg.n_parents, reading.store
        sizes = {"level1": sae.cfg.d_sae, "level2": n, "leaves": n}
        length, specs, device = store.seq_len, store.label_specs, sae.W_dec.device
        self.life = {name: LifecycleTracker(f, length, device) for name, f in sizes.items()}
        self.codes = {name: (Codes(specs), Codes(specs)) for name in (sizes if specs else ())}

    def codings(self, both: Both) -> dict[str, Tokens]:
        chosen = replace(both.leaves, z_NF=both.leaves.z_NF[:, self.leaves_P])
        return {"level1": both.leaves, "level2": both.parents, "leaves": chosen}

    def select(self, both: Both) -> None:
        codings = self.codings(both)
        for name, (choices, _) in self.codes.items():
            choices.add(codings[name])

    def update(self, both: Both) -> None:
        for name, t in self.codings(both).items():
            self.life[name].update(t.z_NF > 0, t.piece_N)
            if name in self.codes:
                self.codes[name][1].add(t)

    def rows(self) -> list[dict[str, Any]]:
        out = []
        for name, codes in self.codes.items():
            recovery = Recovery(*codes)
            recovery.own()
            for r in recovery.rows:
                if r["metric"] == "ap" and r["group"] in SCALES:
                    out.append(row("level_ap", f"{name}:{r['group']}", r["value"], r["n"]))
        for name, life in self.life.items():
            every = torch.arange(len(life.births_F))
            if runs := life.runs_seen(every):
                out.append(row("level_mean_dwell", name, life.mean_dwell(every), runs))
        return out

    def dwell(self) -> pd.DataFrame:
        """Columns group (the coding), dwell, count, censored; latents pooled."""
        parts = [life.table().assign(group=name) for name, life in self.life.items()]
        return pd.concat(parts, ignore_index=True)
