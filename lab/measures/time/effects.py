r"""Causal tests: what the model loses with latents of long and of short lifetime.

    z'_i[t] = 0                                        where z_i[t] > 0
    raw'    = raw + (decode(z') − decode(z)) / scale   at the tokens where z' differs from z

for the latents i of a set at once, so the SAE's error is kept. The effect is KL(clean || edited) of
the next token's distribution, in nats, a mean over the edited tokens; what an edit does to a later
edited token is in it. Beside it stands the loss of logit, clean − edited, of the token that follows
in the text, each logit less the mean over the vocabulary. Sets: the latents of the longest and of
the shortest mean dwell among those that are active often enough, and for each a random set of the
same densities.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lab.edits.ranking import random_control
from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.time.lifecycle import stays
from lab.worlds import World
from tsae import models
from tsae.saes.config import require

LEAST, MOST = 0.002, 0.2
"""Shares of tokens between which a latent of a set is active."""


@register("effects", needs=("model",))
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World, *, n_latents: int = 16
) -> dict[str, Measured]:
    """``effect_kl`` and ``effect_logit``, group ``ablate|set`` with set long, short, random_long,
    random_short, on the first test sequences, n = edited tokens (with a token after them). Sets of
    ``n_latents`` are chosen on the split for choices.

    Nulls and SAEs without a decoder matrix are left out, as is an SAE of which fewer than
    4 ``n_latents`` latents are active often enough.
    """
    ok = isinstance(n_latents, int) and n_latents > 0
    require(ok, "n_latents", n_latents, "a whole number above 0")
    found, kept = {}, {n: s for n, s in saes.items() if getattr(s, "W_dec", None) is not None}
    for name, sae in kept.items():
        read = ((t.z_NF > 0, t.piece_N) for t in reading.tokens(sae, reading.choices))
        dwell_F, density_F = stays(read, sae.cfg.d_sae, reading.store.seq_len)
        if sets := choose(dwell_F, density_F, n_latents, reading.seed):
            effects = ablated(sae, reading, world.model(reading.device), sets)
            rows = [row(name, f"ablate|{of}", *effect) for (name, of), effect in effects.items()]
            found[name] = Measured(rows)
    return found


def choose(dwell_F: Tensor, density_F: Tensor, n: int, seed: int) -> dict[str, Tensor]:
    """The four sets of latents; empty when too few latents have such a density."""
    fit = ((density_F >= LEAST) & (density_F <= MOST)).nonzero()[:, 0]
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


def ablated(
    sae: Any, reading: Reading, model: Any, sets: Mapping[str, Tensor]
) -> dict[tuple[str, str], tuple[float, int]]:
    """By metric and set the mean over its edited tokens on the first test sequences, and how many."""
    store, step = reading.store, reading.sizes.batch
    keys = [(metric, of) for metric in ("effect_kl", "effect_logit") for of in sets]
    sums, n = dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 0)
    n_sequences = min(reading.sizes.sequences, store.n_sequences("test"))
    for start in range(0, n_sequences, step):
        chosen = list(range(start, min(start + step, n_sequences)))
        batch = store.batch("test", chosen, reading.device)
        tokens_BT, z_BTF = batch.tokens_BT.long(), sae.encode(batch.x_BTD, batch.context)
        next_BT = tokens_BT.roll(-1, 1)
        followed_BT = batch.context.mask_BT.bool().roll(-1, 1)
        followed_BT[:, -1] = False
        clean_BTV = models.logits(model, tokens_BT).float().log_softmax(-1)
        for of, latents in sets.items():
            z_BTK = z_BTF[..., latents] * batch.context.mask_BT[..., None]
            push_BTD = z_BTK @ sae.W_dec[latents] / store.scale

            def edit(raw_BTD: Tensor, push_BTD: Tensor = push_BTD) -> Tensor:
                return raw_BTD - push_BTD.to(raw_BTD.dtype)

            touched = (z_BTK != 0).any(-1)
            new_NV = models.logits_with(model, tokens_BT, store.layer, edit)[touched].float()
            new_NV = new_NV.log_softmax(-1)
            clean_NV = clean_BTV[touched]
            lost_NV = clean_NV - new_NV
            kl_N = (lost_NV * clean_NV.exp()).sum(-1)
            lost_N = lost_NV.gather(1, next_BT[touched][:, None])[:, 0] - lost_NV.mean(-1)
            parts = {"effect_kl": kl_N, "effect_logit": lost_N[followed_BT[touched]]}
            for metric, part_N in parts.items():
                sums[metric, of] += float(part_N.double().sum())
                n[metric, of] += len(part_N)
    return {key: (total / max(n[key], 1), n[key]) for key, total in sums.items()}
