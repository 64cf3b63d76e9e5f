"""What the browser shows of a latent: contexts, logit effects, dwell times, neighbours in time."""

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.browser.neighbours import Neighbour, Peaks, Starts
from lab.measures.reading import Tokens, latent_groups
from lab.measures.time.lifecycle import LifecycleTracker
from tsae.errors import UserError
from tsae.saes import SAE
from tsae.saes.config import require

DENSE = 0.1
"""Share of tokens above which :func:`choose` passes a latent over: its contexts say little."""


@dataclass(frozen=True)
class BrowserConfig:
    """How much is read and shown."""

    n_latents: int = 24
    """Latents that are chosen where none are given, evenly over the SAE's groups."""
    n_contexts: int = 8
    """Contexts a latent, the strongest first, at most one a sequence."""
    before: int = 24
    """Tokens shown before the strongest one."""
    after: int = 12
    """Tokens shown after it."""
    n_tokens: int = 8
    """Tokens shown whose logit the latent raises most, and as many that it lowers most."""
    n_neighbours: int = 6
    """Predecessors and successors shown."""
    max_lag: int = 8
    """Farthest start, in tokens, that counts as a predecessor or a successor."""
    min_count: int = 5
    """Fewest joint starts of a neighbour that is shown."""
    split: str = "test"
    """Split of the store that is read."""
    limit_tokens: int = 65_536
    """Tokens that are read."""
    batch_size: int = 16
    """Sequences encoded at once."""
    device: str = "cpu"
    """Where it runs."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, int):
                least = 0 if f.name in ("before", "after") else 1
                ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
                require(ok, f.name, value, f"a whole number of at least {least}")


class Context(NamedTuple):
    """Tokens around a latent's strongest one in a sequence, with its codes there."""

    strings: list[str]
    values: list[float]
    peak: int
    doc: int


class LatentView(NamedTuple):
    """Everything the page shows of one latent; times in tokens, codes in the store's units.

    ``name``: the tokens at which it was strongest, at most three (:class:`Peaks`).
    """

    latent: int
    name: str
    group: str
    density: float
    peak: float
    contexts: list[Context]
    raised: list[tuple[str, float]]
    lowered: list[tuple[str, float]]
    n_runs: int
    half_life: float
    mean_dwell: float
    dwell: list[tuple[int, int]]
    predecessors: list[Neighbour]
    successors: list[Neighbour]


@torch.no_grad()
def choose(sae: SAE, store: Any, config: BrowserConfig | None = None) -> list[int]:
    """The ``n_latents`` latents of the largest summed code, evenly over groups, in id order.

    Latents that never fire, or on more than :data:`DENSE` of the tokens, are passed over.
    """
    config = config or BrowserConfig()
    total_F = torch.zeros(sae.cfg.d_sae)
    active_F = torch.zeros(sae.cfg.d_sae)
    n = 0
    for _, z_BTF in _encoded(sae, store, config):
        total_F += z_BTF.sum((0, 1)).cpu()
        active_F += (z_BTF > 0).sum((0, 1)).cpu()
        n += z_BTF.shape[0] * z_BTF.shape[1]
    score_F = torch.where(active_F > DENSE * n, 0.0, total_F)
    groups = latent_groups(sae, sae.cfg.d_sae, "cpu")
    if len(groups) > 1:
        del groups["all"]
    share = math.ceil(config.n_latents / len(groups))
    chosen: list[int] = []
    for latents in groups.values():
        best = latents[score_F[latents].argsort(descending=True, stable=True)[:share]]
        chosen += [int(i) for i in best if score_F[i] > 0]
    return sorted(chosen[: config.n_latents] if len(groups) == 1 else chosen)


@torch.no_grad()
def view_latents(
    sae: SAE, store: Any, world: Any, latents: list[int], config: BrowserConfig | None = None
) -> list[LatentView]:
    """What each of ``latents`` does on the store's tokens and to the world's logits.

    A start of a latent is a token at which it is active after one, in the same piece of text, at
    which it is silent. Logit effects are W_dec[i] W_U, less their mean over the vocabulary: what the
    latent adds to the residual stream, read by the unembedding alone.
    """
    config = config or BrowserConfig()
    if store.fingerprint != world.fingerprint:
        raise UserError(f"The store is of another world than {world.name}: give its own store.")
    F = sae.cfg.d_sae
    inside = len(set(latents)) == len(latents) > 0 and all(0 <= i < F for i in latents)
    require(inside, "latents", latents, f"distinct ids from 0 to {F - 1}, at least one")
    chosen = torch.tensor(latents, device=config.device)
    contexts: list[list[tuple[float, Any]]] = [[] for _ in latents]
    tracker = LifecycleTracker(len(latents), store.seq_len, device=config.device)
    starts = Starts(F, len(latents), config.max_lag, config.device)
    peaks = Peaks(F, config.device)
    active_K = torch.zeros(len(latents), device=config.device)
    for batch, z_BTF in _encoded(sae, store, config):
        tokens = Tokens.of(batch, z_BTF, batch.x_BTD)
        active_NF = tokens.z_NF > 0
        tracker.update(active_NF[:, chosen], tokens.piece_N)
        starts.update(active_NF, tokens.piece_N, chosen)
        active_K += active_NF[:, chosen].sum(0)
        peaks.update(z_BTF, batch.tokens_BT)
        _keep_strongest(contexts, batch, z_BTF[..., chosen], config)
    raised, lowered = _logit_effects(sae, world, chosen, config)
    group_of: dict[int, str] = {}
    for name, ids in latent_groups(sae, F, "cpu").items():
        group_of |= dict.fromkeys(ids.tolist(), name)  # "all" comes first and is overwritten
    dwell = tracker.table()
    found = []
    for k, latent in enumerate(latents):
        index = torch.tensor([k], device=config.device)
        rows = dwell[dwell["latent"] == k]
        shown = [_context(entry, world, config) for _, entry in contexts[k]]
        before, after = (
            [
                other._replace(name=peaks.name(other.latent, world))
                for other in starts.neighbours(
                    k, latent, sign, config.min_count, config.n_neighbours
                )
            ]
            for sign in (-1, 1)
        )
        found.append(
            LatentView(
                latent,
                peaks.name(latent, world),
                group_of[latent],
                float(active_K[k]) / max(tracker.tokens, 1),
                contexts[k][0][0] if contexts[k] else 0.0,
                shown,
                raised[k],
                lowered[k],
                tracker.runs_seen(index),
                tracker.half_life(index),
                tracker.mean_dwell(index),
                list(zip(rows["dwell"].tolist(), rows["count"].tolist(), strict=True)),
                before,
                after,
            )
        )
    return found


def _encoded(sae: SAE, store: Any, config: BrowserConfig):
    sae = sae.to(config.device).eval()
    seen = 0
    for batch in store.batches(config.split, config.batch_size):
        batch = batch.to(config.device)
        yield batch, sae.encode(batch.x_BTD, batch.context)
        seen += batch.tokens_BT.numel()
        if seen >= config.limit_tokens:
            return


def _keep_strongest(contexts: list, batch: Any, z_BTK: Tensor, config: BrowserConfig) -> None:
    peak_BK, place_BK = z_BTK.max(1)
    for k, kept in enumerate(contexts):
        for b in (peak_BK[:, k] > 0).nonzero()[:, 0].tolist():
            value = float(peak_BK[b, k])
            if len(kept) < config.n_contexts or value > kept[-1][0]:
                at = int(place_BK[b, k])
                first, stop = max(at - config.before, 0), at + config.after + 1
                doc = int(batch.doc_BT[b, at])
                here = (batch.doc_BT[b, first:stop] == doc).tolist()
                tokens, values = batch.tokens_BT[b, first:stop], z_BTK[b, first:stop, k]
                entry = (tokens.tolist(), values.tolist(), here, at - first, doc)
                kept.append((value, entry))
                kept.sort(key=lambda one: -one[0])
                del kept[config.n_contexts :]


def _context(entry: Any, world: Any, config: BrowserConfig) -> Context:
    """The part of the window that is the peak's own document."""
    tokens, values, here, peak, doc = entry
    first = peak
    while first > 0 and here[first - 1]:
        first -= 1
    stop = peak + 1
    while stop < len(here) and here[stop]:
        stop += 1
    strings = world.to_strings(tokens[first:stop])
    return Context(strings, values[first:stop], peak - first, doc)


def _logit_effects(
    sae: SAE, world: Any, chosen: Tensor, config: BrowserConfig
) -> tuple[list[list[tuple[str, float]]], list[list[tuple[str, float]]]]:
    W_U = world.model(config.device).unembed.W_U.float()
    effect_KV = sae.W_dec[chosen].to(W_U) @ W_U
    effect_KV = effect_KV - effect_KV.mean(1, keepdim=True)
    sides = []
    for sign in (1, -1):
        best = (sign * effect_KV).topk(min(config.n_tokens, effect_KV.shape[1]), dim=1)
        sides.append(
            [
                list(zip(world.to_strings(ids), (sign * v).tolist(), strict=True))
                for ids, v in zip(best.indices.tolist(), best.values, strict=True)
            ]
        )
    return sides[0], sides[1]
