"""What the browser shows of a latent: contexts, stays, logit effects, dwell, neighbours in time."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.browser.neighbours import Neighbour, Starts
from lab.measures.reading import Tokens, latent_groups
from lab.measures.time.lifecycle import LifecycleTracker
from tsae.errors import UserError
from tsae.saes import SAE
from tsae.saes.config import require
from tsae.sequences import LabelSpec
from tsae.store.reading import Batch

DENSE = {"document": 0.5, "section": 0.5, "slow": 0.5}
"""Share of tokens above which :func:`choose` passes a latent of a slow group over."""
USUAL = 0.1
"""The same for all other groups: contexts of what is nearly always on say little."""
N_NAMES = 3
"""Sequences whose strongest token names a latent."""


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
        for name, value in vars(self).items():
            least = 0 if name in ("before", "after") else 1
            ok = isinstance(value, str) or value >= least
            require(ok, name, value, f"a whole number of at least {least}")


class Context(NamedTuple):
    """Tokens around a latent's strongest one in a sequence, with its codes there and in ``stay``,
    all of the document that the sequence holds; ``labels``: what the strongest token is about."""

    strings: list[str]
    values: list[float]
    peak: int
    doc: int
    stay: list[float]
    labels: dict[str, str]


class LatentView(NamedTuple):
    """Everything the page shows of one latent; times in tokens, codes in the store's units.

    ``topic``: the class of a slow label that its contexts share most, beyond its share of all tokens.
    """

    latent: int
    name: str
    topic: str
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
    """The ``n_latents`` latents of the largest summed code, evenly over groups, group by group.

    A SAE with slow groups lists them first. Latents that never fire, or on more tokens than
    :data:`DENSE` allows, are passed over.
    """
    config = config or BrowserConfig()
    total_F, active_F = torch.zeros(2, sae.cfg.d_sae)
    n = 0
    for _, z_BTF in encoded(sae, store, config):
        total_F += z_BTF.sum((0, 1)).cpu()
        active_F += (z_BTF > 0).sum((0, 1)).cpu()
        n += z_BTF.shape[0] * z_BTF.shape[1]
    groups = latent_groups(sae, sae.cfg.d_sae, "cpu")
    if len(groups) > 1:
        del groups["all"]
    chosen: list[int] = []
    for name, latents in groups.items():
        score_F = torch.where(active_F > DENSE.get(name, USUAL) * n, 0.0, total_F)
        share = math.ceil(config.n_latents / len(groups))
        best = latents[score_F[latents].argsort(descending=True, stable=True)[:share]]
        chosen += sorted(int(i) for i in best if score_F[i] > 0)
    return chosen


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
    F, device = sae.cfg.d_sae, config.device
    inside = len(set(latents)) == len(latents) > 0 and all(0 <= i < F for i in latents)
    require(inside, "latents", latents, f"distinct ids from 0 to {F - 1}, at least one")
    chosen = torch.tensor(latents, device=device)
    contexts: list[list[tuple[float, Context]]] = [[] for _ in latents]
    tracker = LifecycleTracker(len(latents), store.seq_len, device=device)
    starts = Starts(F, len(latents), config.max_lag, device)
    peak_KF = torch.zeros(N_NAMES, F, device=device)
    token_KF, active_K = peak_KF.long(), torch.zeros(len(latents), device=device)
    count_of: Counter[tuple[str, str]] = Counter()
    for batch, z_BTF in encoded(sae, store, config):
        tokens = Tokens.of(batch, z_BTF, batch.x_BTD)
        for label, spec in slow_labels(world).items():
            counts = torch.bincount(tokens.labels[label].long() + 1, minlength=1).tolist()[1:]
            count_of.update({(label, spec.classes[c]): n for c, n in enumerate(counts)})
        active_NF = tokens.z_NF > 0
        tracker.update(active_NF[:, chosen], tokens.piece_N)
        starts.update(active_NF, tokens.piece_N, chosen)
        active_K += active_NF[:, chosen].sum(0)
        peak_BF, place_BF = z_BTF.max(1)
        token_BF = batch.tokens_BT.long().gather(1, place_BF)
        peak_KF, order_KF = torch.cat([peak_KF, peak_BF]).topk(N_NAMES, dim=0)
        token_KF = torch.cat([token_KF, token_BF]).gather(0, order_KF)
        for k, kept in enumerate(contexts):
            keep_strongest(kept, batch, z_BTF[..., latents[k]], world, config)

    def name(latent: int) -> str:
        """The distinct tokens at which it was strongest, strongest first."""
        tokens = dict.fromkeys(token_KF[peak_KF[:, latent] > 0, latent].tolist())
        strings = (string.strip() or string for string in world.to_strings(list(tokens)))
        return " · ".join(dict.fromkeys(strings))

    def topic(kept: list[tuple[float, Context]]) -> str:
        shared = Counter(pair for _, context in kept for pair in context.labels.items())
        excess = [
            (n / len(kept) - (share := count_of[pair] / tracker.tokens), pair, n, share)
            for pair, n in shared.items()
        ]
        if not excess or (best := max(excess, key=lambda one: one[0]))[0] <= 0:
            return ""
        _, (label, kind), n, share = best
        return f"{label} {kind} in {n} of {len(kept)} (of all tokens {share:.0%})"

    def neighbours(k: int, side: int) -> list[Neighbour]:
        found = starts.neighbours(k, latents[k], side, config.min_count, config.n_neighbours)
        return [one._replace(name=name(one.latent)) for one in found]

    def effects(effect_V: Tensor, sign: int) -> list[tuple[str, float]]:
        top = (sign * effect_V).topk(min(config.n_tokens, len(effect_V)))
        strings = world.to_strings(top.indices.tolist())
        return list(zip(strings, (sign * top.values).tolist(), strict=True))

    group_of: dict[int, str] = {}
    for group, ids in latent_groups(sae, F, "cpu").items():
        group_of |= dict.fromkeys(ids.tolist(), group)  # "all" comes first and is overwritten
    W_U, views = world.model(device).unembed.W_U.float(), []
    effect_KV = sae.W_dec[chosen].to(W_U) @ W_U
    effect_KV = effect_KV - effect_KV.mean(1, keepdim=True)
    for k, latent in enumerate(latents):
        at = torch.tensor([k], device=device)
        rows = tracker.table(at)
        view = LatentView(
            latent=latent,
            name=name(latent),
            topic=topic(contexts[k]),
            group=group_of[latent],
            density=float(active_K[k]) / max(tracker.tokens, 1),
            peak=contexts[k][0][0] if contexts[k] else 0.0,
            contexts=[context for _, context in contexts[k]],
            raised=effects(effect_KV[k], 1),
            lowered=effects(effect_KV[k], -1),
            n_runs=tracker.runs_seen(at),
            half_life=tracker.half_life(at),
            mean_dwell=tracker.mean_dwell(at),
            dwell=list(zip(rows["dwell"].tolist(), rows["count"].tolist(), strict=True)),
            predecessors=neighbours(k, 0),
            successors=neighbours(k, 1),
        )
        views.append(view)
    return views


def slow_labels(world: Any) -> dict[str, LabelSpec]:
    """The labels of documents and sections."""
    return {name: spec for name, spec in world.label_specs.items() if spec.scale != "token"}


def encoded(sae: SAE, store: Any, config: BrowserConfig) -> Iterator[tuple[Batch, Tensor]]:
    """Batches with their codes, until ``limit_tokens``."""
    sae, seen = sae.to(config.device).eval(), 0
    for batch in store.batches(config.split, config.batch_size):
        batch = batch.to(config.device)
        yield batch, sae.encode(batch.x_BTD, batch.context)
        seen += batch.tokens_BT.numel()
        if seen >= config.limit_tokens:
            return


def keep_strongest(
    kept: list[tuple[float, Context]], batch: Batch, z_BT: Tensor, world: Any, config: BrowserConfig
) -> None:
    """Keep the strongest contexts, each the window around a peak that is its own document's."""
    peak_B, place_B = z_BT.max(1)
    for b in (peak_B > 0).nonzero()[:, 0].tolist():
        value, at = float(peak_B[b]), int(place_B[b])
        if len(kept) == config.n_contexts and value <= kept[-1][0]:
            continue
        same_T = batch.doc_BT[b] == batch.doc_BT[b, at]
        here = same_T.nonzero()[:, 0]  # a document's tokens stand together
        first = max(at - config.before, int(here[0]))
        stop = min(at + config.after, int(here[-1])) + 1
        strings = world.to_strings(batch.tokens_BT[b, first:stop].tolist())
        values, stay = z_BT[b, first:stop].tolist(), z_BT[b, same_T].tolist()
        labels = {
            label: spec.classes[c]
            for label, spec in slow_labels(world).items()
            if (c := int(batch.labels[label][b, at])) >= 0
        }
        doc = int(batch.doc_BT[b, at])
        kept.append((value, Context(strings, values, at - first, doc, stay, labels)))
        kept.sort(key=lambda one: -one[0])
        del kept[config.n_contexts :]
