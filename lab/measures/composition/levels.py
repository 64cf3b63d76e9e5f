"""Both levels of a ``hierarchical`` SAE on the same tokens, and on which time scale each lives."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.edits import random_control
from lab.measures.time.lifecycle import LifecycleTracker
from lab.measures.tokens import Tokens, row
from lab.measures.truth.recovery import SCALES, Recovery

RECOVERY = ("recovery_f1", "recovery_f1_matched", "recovery_f1_excess")


class Reading(NamedTuple):
    """Tokens with the codes of level 1, those of level 2, its reconstruction, and token ids."""

    tokens: Tokens
    h2_NP: Tensor
    x_parents_ND: Tensor
    id_N: Tensor


@torch.no_grad()
def read(
    sae: Any, store: Any, split: str, limit_tokens: int, *, batch_size: int, device: str
) -> Iterator[Reading]:
    """Batches of a split until ``limit_tokens`` valid tokens."""
    seen = 0
    for batch in store.batches(split, batch_size):
        batch = batch.to(device)
        out = sae(batch.x_BTD, batch.context)
        mask_BT = batch.context.mask_BT.bool()
        tokens = Tokens.of(batch, out.z, out.x_hat)
        h2_NP = sae.parent_codes(tokens.z_NF, mask_BT[mask_BT])[0]
        x_parents_ND = sae.decode_parents(h2_NP)
        yield Reading(tokens, h2_NP, x_parents_ND, batch.tokens_BT[mask_BT].long())
        seen += len(tokens)
        if seen >= limit_tokens:
            return


class Frequencies(NamedTuple):
    """Share of tokens on which each latent of level 1 and of level 2 fires."""

    level1_F: Tensor
    level2_P: Tensor


def frequencies(readings: Iterable[Reading]) -> Frequencies:
    """Firing frequencies over all readings. Raises ``ValueError`` when there is no token."""
    parts = [((r.tokens.z_NF > 0).sum(0), (r.h2_NP > 0).sum(0), len(r.tokens)) for r in readings]
    n = sum(part[2] for part in parts)
    if n == 0:
        raise ValueError("no valid token to choose parents on; ask for more tokens")
    level1_F = torch.stack([part[0] for part in parts]).sum(0).double() / n
    return Frequencies(level1_F, torch.stack([part[1] for part in parts]).sum(0).double() / n)


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


def document_sums(columns_NX: Tensor, doc_N: Tensor) -> tuple[Tensor, Tensor]:
    """Document ids [D], ascending, and Σ over each document's tokens [D, ...], float64, on the CPU."""
    doc_D, index_N = torch.unique(doc_N.cpu(), return_inverse=True)
    sums = torch.zeros(len(doc_D), *columns_NX.shape[1:], dtype=torch.float64)
    return doc_D, sums.index_add_(0, index_N, columns_NX.double().cpu())


def document_draws(n_documents: int, draws: int, seed: int) -> Tensor:
    """[1 + draws, D] float64: every document once, then how often each draw holds each."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=draws)
    return torch.cat([torch.ones(1, n_documents), torch.as_tensor(drawn)]).double()


def against_null(
    metric: str, group: str, values_B: Tensor, null_B: Tensor, n: int
) -> list[dict[str, Any]]:
    """``metric``, ``_null`` and ``_excess`` of all documents, with the 95% interval of the excess.

    The first of the values is of all documents, the others are of the draws.
    """
    excess_B = values_B - null_B
    low, high = torch.nanquantile(excess_B[1:], excess_B.new_tensor([0.025, 0.975]))
    found = {"": values_B[0], "_null": null_B[0], "_excess": excess_B[0]}
    found |= {"_excess_low": low, "_excess_high": high}
    return [row(metric + end, group, value, n) for end, value in found.items()]


class Fit:
    """How many latents fire on each level, and how well parents reconstruct and are composed."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}

    def update(self, r: Reading, W_PF: Tensor) -> None:
        x_ND, h1_NF, h2_NP = r.tokens.x_ND.double(), r.tokens.z_NF, r.h2_NP.double()
        new = {
            "n": len(r.tokens),
            "l0_level1": (h1_NF > 0).sum(),
            "l0_level2": (h2_NP > 0).sum(),
            "error": (x_ND - r.x_parents_ND).square().sum(),
            "x": x_ND.sum(0),
            "x2": x_ND.square().sum(),
            "missed": (h1_NF @ W_PF.t() - h2_NP).square().sum(0),
            "h2": h2_NP.sum(0),
            "h2_2": h2_NP.square().sum(0),
        }
        self.sums = {name: self.sums.get(name, 0) + value for name, value in new.items()}

    def rows(self) -> list[dict[str, Any]]:
        s, n = self.sums, self.sums["n"]
        spread_P = s["h2_2"] - s["h2"].square() / n
        fits_P = (1 - s["missed"] / spread_P)[spread_P > 0]
        r2 = fits_P.quantile(0.5) if len(fits_P) else float("nan")
        return [
            row("l0_level1", "all", s["l0_level1"] / n, n),
            row("l0_level2", "all", s["l0_level2"] / n, n),
            row("l0_both", "all", (s["l0_level1"] + s["l0_level2"]) / n, n),
            row("fve_parents", "all", 1 - s["error"] / (s["x2"] - s["x"].square().sum() / n), n),
            row("composition_r2", "all", r2, len(fits_P)),
        ]


class TimeScales:
    """Which level recovers slow labels, and how long its latents stay on.

    Three codings of the same tokens: ``level1``, ``level2``, and ``leaves``, as many latents of
    level 1 as there are parents and of like frequency, since among fewer latents the best one is
    worse by itself. Per coding: ``level_recovery_f1`` (and ``_matched``, ``_excess``) with group
    ``coding:scale`` (:class:`Recovery`), ``level_mean_dwell`` and ``level_half_life`` (tokens,
    Kaplan–Meier, runs pooled) with group ``coding``.
    """

    def __init__(self, store: Any, sae: Any, leaves_P: Tensor, seed: int):
        self.leaves_P = leaves_P.to(sae.W_dec.device)
        n = sae.cfg.n_parents
        sizes = {"level1": sae.cfg.d_sae, "level2": n, "leaves": n}
        length, specs, device = store.seq_len, store.label_specs, sae.W_dec.device
        self.life = {name: LifecycleTracker(f, length, device=device) for name, f in sizes.items()}
        self.recovery = {}
        if specs:
            self.recovery = {name: Recovery(specs, max_length=length, seed=seed) for name in sizes}

    def codings(self, r: Reading) -> dict[str, Tokens]:
        codes = {"level1": r.tokens.z_NF, "level2": r.h2_NP}
        codes["leaves"] = r.tokens.z_NF[:, self.leaves_P]
        return {name: replace(r.tokens, z_NF=z_NX) for name, z_NX in codes.items()}

    def select(self, r: Reading) -> None:
        codings = self.codings(r)
        for name, recovery in self.recovery.items():
            recovery.select(codings[name])

    def update(self, r: Reading) -> None:
        for name, t in self.codings(r).items():
            self.life[name].update(t.z_NF > 0, t.piece_N)
            if name in self.recovery:
                self.recovery[name].update(t)

    def rows(self) -> list[dict[str, Any]]:
        out = []
        for name, recovery in self.recovery.items():
            for r in recovery.rows():
                if r["metric"] in RECOVERY and r["group"] in SCALES:
                    renamed = {"metric": f"level_{r['metric']}", "group": f"{name}:{r['group']}"}
                    out.append({**r, **renamed})
        for name, life in self.life.items():
            every = torch.arange(len(life.births_F))
            if runs := life.runs_seen(every):
                out.append(row("level_mean_dwell", name, life.mean_dwell(every), runs))
                out.append(row("level_half_life", name, life.half_life(every), runs))
        return out

    def dwell(self) -> pd.DataFrame:
        """Columns group (the coding), dwell, count, censored; latents pooled."""
        parts = [life.table().assign(group=name) for name, life in self.life.items()]
        columns = ["count", "censored"]
        return pd.concat(parts).groupby(["group", "dwell"], as_index=False)[columns].sum()
