r"""Causal tests: what the model loses or gains with latents of long and of short lifetime.

    ablate:  z'_i[t] = 0                        where z_i[t] > 0
    add:     z'_i[t] = z_i[t] + mean active z_i where z_i[t - o_i] > 0, o_i an offset of its own
    raw'     = raw + (decode(z') - decode(z)) / scale     at the tokens where z' differs from z

for the latents i of a set at once, so the SAE's error is kept. The effect is KL(clean || edited) of
the next token's distribution, in nats, a mean over the edited tokens; what an edit does to a later
edited token is in it. ``add`` moves activity circularly over the batch, which keeps how often and
how long. Sets: the latents of the longest and of the shortest mean dwell among those that are
active often enough, and for each a random set of the same densities.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.edits import random_control
from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.time.lifecycle import LifecycleTracker, kaplan_meier, mean_dwell
from lab.worlds import World
from tsae import models
from tsae.saes.config import require

KINDS = ("ablate", "add")


@register("effects", needs=("model",))
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    n_latents: int = 16,
    least_density: float = 0.002,
    most_density: float = 0.2,
) -> dict[str, Measured]:
    """Effects on the first test sequences; sets are chosen on the split for choices.

    Rows, group ``kind|set`` with set long, short, random_long, random_short: ``effect_kl`` (nats;
    n = edited tokens), ``effect_kl_se`` (over documents), ``effect_push`` (mean |change of x|, in
    the store's units, in which a residual's norm is about sqrt(d)). Group = set:
    ``effect_dwell`` (tokens), ``effect_density``. Document rows of ``effect_kl``.

    Nulls and SAEs without a decoder matrix are left out, as is an SAE of which fewer than
    4 ``n_latents`` latents have a density between ``least_density`` and ``most_density``.
    """
    ok = isinstance(n_latents, int) and n_latents > 0
    require(ok, "n_latents", n_latents, "a whole number above 0")
    assert world is not None
    model, found = world.model(reading.device), {}
    for name, sae in saes.items():
        if getattr(sae, "W_dec", None) is None:
            continue
        dwell_F, density_F = lifetimes(sae, reading)
        sets = choose(dwell_F, density_F, n_latents, least_density, most_density, reading.seed)
        if sets:
            effects = Effects(sae, reading.store, model, reading.sizes.batch, reading.device)
            found[name] = effects.measured(sets, reading.sizes.sequences, reading.seed)
            for group, latents in sets.items():
                mean = float(dwell_F[latents].mean())
                found[name].rows.append(row("effect_dwell", group, mean, len(latents)))
                mean = float(density_F[latents].mean())
                found[name].rows.append(row("effect_density", group, mean, len(latents)))
    return found


def lifetimes(sae: Encoder, reading: Reading) -> tuple[Tensor, Tensor]:
    """Mean dwell (Kaplan–Meier, tokens) and share of active tokens [F] of each latent."""
    life = LifecycleTracker(sae.cfg.d_sae, reading.store.seq_len, device=reading.device)
    active_F = torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=reading.device)
    for t in reading.tokens(sae, reading.choices):
        life.update(t.z_NF > 0, t.piece_N)
        active_F = active_F + (t.z_NF > 0).sum(0)
    dwell_F = mean_dwell(kaplan_meier(life.ended_FL, life.censored_FL))
    return dwell_F, active_F / life.tokens


def choose(
    dwell_F: Tensor, density_F: Tensor, n: int, least: float, most: float, seed: int
) -> dict[str, Tensor]:
    """The four sets of latents; empty when too few latents have a density in least … most."""
    fit = ((density_F >= least) & (density_F <= most)).nonzero()[:, 0]
    if len(fit) < 4 * n:
        return {}
    order = fit[dwell_F[fit].argsort(stable=True)]
    sets = {"long": order[-n:], "short": order[:n]}
    for name in ("long", "short"):
        # Drawn among those that are in neither set.
        share_F = torch.zeros_like(density_F)
        free = torch.cat([order[n:-n], sets[name]])
        share_F[free] = density_F[free]
        sets[f"random_{name}"] = random_control(sets[name], share_F, seed).to(order.device)
    return sets


def edited(z_NF: Tensor, latents: Tensor, kind: str, offset_K: Tensor) -> Tensor:
    """The change [N, K] of the set's codes of N tokens in reading order."""
    z_NK = z_NF[:, latents]
    if kind == "ablate":
        return -z_NK
    row_NK = (torch.arange(len(z_NK), device=z_NK.device)[:, None] - offset_K) % len(z_NK)
    mean_K = z_NK.sum(0) / (z_NK > 0).sum(0).clamp_min(1)
    return (z_NK.gather(0, row_NK) > 0) * mean_K


class Effects:
    """Runs the model with and without a change of an SAE's codes."""

    def __init__(self, sae: Any, store: Any, model: Any, batch_size: int, device: str):
        self.sae, self.store, self.model = sae, store, model
        self.batch_size, self.device = batch_size, device

    def measured(self, sets: Mapping[str, Tensor], n_sequences: int, seed: int) -> Measured:
        """The effects of every set and kind on the first test sequences."""
        generator = torch.Generator().manual_seed(seed)
        sums: dict[str, list[pd.DataFrame]] = {}
        n_sequences = min(n_sequences, self.store.n_sequences("test"))
        for start in range(0, n_sequences, self.batch_size):
            chosen = range(start, min(start + self.batch_size, n_sequences))
            batch = self.store.batch("test", list(chosen), self.device)
            z_BTF = self.sae.encode(batch.x_BTD, batch.context)
            clean = models.logits(self.model, batch.tokens_BT.long()).float().log_softmax(-1)
            for name, latents in sets.items():
                offset_K = torch.randint(1, batch.x_BTD[..., 0].numel(), (len(latents),),
                                         generator=generator)  # fmt: skip
                for kind in KINDS:
                    frame = self.effect(batch, z_BTF, clean, latents, kind, offset_K)
                    sums.setdefault(f"{kind}|{name}", []).append(frame)
        rows, documents = [], []
        for group, frames in sums.items():
            frame = pd.concat(frames).groupby("doc", as_index=False).sum()
            n, mean = int(frame["den"].sum()), frame["num"].sum() / max(frame["den"].sum(), 1)
            rows.append(row("effect_kl", group, mean, n))
            rows.append(row("effect_kl_se", group, ratio_error(frame), len(frame)))
            rows.append(row("effect_push", group, frame["push"].sum() / max(n, 1), n))
            frame = frame.drop(columns="push").assign(metric="effect_kl", group=group)
            documents.append(frame)
        return Measured(rows, pd.concat(documents, ignore_index=True))

    def effect(
        self,
        batch: Any,
        z_BTF: Tensor,
        clean_BTV: Tensor,
        latents: Tensor,
        kind: str,
        offset_K: Tensor,
    ) -> pd.DataFrame:
        """Per document: num = Σ KL over edited tokens, den = edited tokens, push = Σ |Δx|."""
        change_NK = edited(z_BTF.flatten(0, 1), latents, kind, offset_K.to(latents.device))
        change_NK *= batch.context.mask_BT.flatten()[:, None]
        push_BTD = (change_NK @ self.sae.W_dec[latents]).unflatten(0, z_BTF.shape[:2])

        def edit(raw_BTD: Tensor) -> Tensor:
            return raw_BTD + (push_BTD / self.store.scale).to(raw_BTD.dtype)

        tokens = batch.tokens_BT.long()
        logits = models.logits_with(self.model, tokens, self.store.layer, edit)
        touched = (change_NK != 0).any(1)
        clean_NV = clean_BTV.flatten(0, 1)[touched]
        new_NV = logits.flatten(0, 1)[touched].float().log_softmax(-1)
        kl_N = (clean_NV - new_NV).mul_(clean_NV.exp()).sum(-1)
        frame = pd.DataFrame({"doc": batch.doc_BT.flatten()[touched].cpu().numpy()})
        frame["num"], frame["den"] = kl_N.double().cpu().numpy(), 1.0
        frame["push"] = push_BTD.flatten(0, 1)[touched].norm(dim=1).cpu().numpy()
        return frame.groupby("doc", as_index=False).sum()


def ratio_error(frame: pd.DataFrame) -> float:
    """Standard error of Σ num / Σ den over documents, by linearisation; NaN for one document."""
    n, den = len(frame), frame["den"].sum()
    if n < 2 or den == 0:
        return float("nan")
    left = frame["num"] - frame["num"].sum() / den * frame["den"]
    return float(np.sqrt(n / (n - 1) * (left**2).sum()) / den)
