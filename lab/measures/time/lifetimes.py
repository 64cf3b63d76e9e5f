r"""Lifetimes through a document, what follows what, and how that compares with the true chains.

A birth is a change from silent to active between two linked tokens; it is a *return* when the
latent was active earlier in the same piece. A pattern (i, j, lag) is latent i active at t - lag and
j at t; its lift is its count over what independence would give.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, Tokens, row
from lab.measures.succession.transitions import LaggedCounts
from lab.measures.time.lifecycle import STATES, LifecycleTracker
from lab.worlds import World

LAGS = tuple(range(1, 9))
LEAST_F1 = 0.3  # from which on a latent is named after the class that it fires on


@register("lifetimes")
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    n_tokens: int = 20_000,
    top: int = 40,
    n_followed: int = 512,
    least_count: int = 20,
) -> dict[str, Measured]:
    """One pass over test tokens for each SAE.

    Rows: ``reactivation_gap`` (mean tokens of silence between two stays in one piece), ``returns``
    (share of births), ``latent_state`` by group unborn, active, dormant, dead (shares; see
    :class:`LifecycleTracker`). With true chains ``pattern_true``: of the ``top`` patterns between
    latents that stand for two different classes, the share that is an edge at its lag.

    Tables: ``lifecycle`` (position in the piece; first births, returns and deaths per 100 tokens;
    active; seen = distinct latents so far), ``gaps`` (gap, count), ``patterns`` (kind all or named,
    source, target, lag, count, support, lift, source_class, target_class, true).
    """
    edges = [] if world is None else world.chains() or []
    label = edges[0].label if edges else None
    found = {}
    store = reading.store
    for name, sae in saes.items():
        tokens = [t.to("cpu") for t in reading.tokens(sae, "test", n_tokens)]
        n_latents = tokens[0].z_NF.shape[1]
        life = LifecycleTracker(n_latents, store.seq_len, active_within=1000, dead_after=10_000)
        ages = []
        for t in tokens:
            active_NF = t.z_NF > 0
            life.update(active_NF, t.piece_N)
            ages.append(by_position(active_NF, t.piece_N))
        ages = pd.concat(ages).groupby("position", as_index=False).sum()
        class_of = [""] * n_latents if label is None else names(tokens, label, store)
        table = patterns(tokens, class_of, n_followed, least_count, top)
        rows = life_rows(life, ages)
        if edges:
            table["true"] = is_true(table, edges)
            named = table[table["kind"] == "named"]
            if len(named):
                rows.append(row("pattern_true", "all", named["true"].mean(), len(named)))
        gap = torch.arange(life.gaps_FL.shape[1])
        counts = pd.DataFrame({"gap": gap.numpy(), "count": life.gaps_FL.sum(0).numpy()})
        tables = {"lifecycle": per_token(ages), "gaps": counts[counts["count"] > 0]}
        found[name] = Measured(rows, None, {**tables, "patterns": table})
    return found


def by_position(active_NF: Tensor, piece_N: Tensor) -> pd.DataFrame:
    """Sums over the tokens at each position of a piece: tokens, first, back, died, active, seen."""
    first_N = torch.ones_like(piece_N, dtype=torch.bool)
    first_N[1:] = piece_N[1:] != piece_N[:-1]
    start_N = torch.where(first_N, torch.arange(len(piece_N)), 0).cummax(0).values
    so_far_NF = active_NF.long().cumsum(0)
    before_NF = torch.cat([so_far_NF.new_zeros(1, so_far_NF.shape[1]), so_far_NF])[start_N]
    so_far_NF = so_far_NF - before_NF  # active tokens of the piece up to this one
    silent_NF = ~active_NF.roll(1, 0) & ~first_N[:, None]
    born_NF = active_NF & silent_NF
    died_NF = ~active_NF & active_NF.roll(1, 0) & ~first_N[:, None]
    sums = {
        "position": torch.arange(len(piece_N)) - start_N,
        "tokens": torch.ones_like(piece_N),
        "first": (born_NF & (so_far_NF == 1)).sum(1),
        "back": (born_NF & (so_far_NF > 1)).sum(1),
        "died": died_NF.sum(1),
        "active": active_NF.sum(1),
        "seen": (so_far_NF > 0).sum(1),
    }
    frame = pd.DataFrame({name: value.numpy() for name, value in sums.items()})
    return frame.groupby("position", as_index=False).sum()


def per_token(ages: pd.DataFrame) -> pd.DataFrame:
    """The table ``lifecycle`` from the sums by position."""
    n = ages["tokens"]
    table = {"position": ages["position"], "tokens": n}
    table |= {name: 100 * ages[name] / n for name in ("first", "back", "died")}
    return pd.DataFrame({**table, "active": ages["active"] / n, "seen": ages["seen"] / n})


def life_rows(life: LifecycleTracker, ages: pd.DataFrame) -> list[dict[str, Any]]:
    """``reactivation_gap``, ``returns`` and ``latent_state``."""
    gaps_L = life.gaps_FL.sum(0)
    n, born = int(gaps_L.sum()), int(ages["first"].sum() + ages["back"].sum())
    mean = float((gaps_L * torch.arange(len(gaps_L))).sum()) / max(n, 1)
    states = life.states()
    rows = [row("reactivation_gap", "all", mean, n)]
    rows.append(row("returns", "all", ages["back"].sum() / max(born, 1), born))
    for state in STATES:
        rows.append(row("latent_state", state, states.count(state) / len(states), len(states)))
    return rows


def patterns(
    tokens: list[Tokens], class_of: list[str], n_followed: int, least: int, top: int
) -> pd.DataFrame:
    """The ``top`` patterns by count above expectation, and as many between two classes.

    Latents that are active at a quarter of the tokens or more are left out.
    """
    active_F = torch.stack([(t.z_NF > 0).sum(0) for t in tokens]).sum(0)
    named_F = torch.tensor([name != "" for name in class_of])
    usual_F = (active_F > 0) & (active_F < sum(map(len, tokens)) / 4)
    rank_F = torch.where(usual_F, active_F + named_F * active_F.max(), -1)  # named ones first
    latents = rank_F.topk(min(n_followed, len(active_F))).indices
    latents = latents[usual_F[latents]].sort().values
    counts = LaggedCounts(len(latents), LAGS)
    for t in tokens:
        counts.update((t.z_NF > 0)[:, latents], t.piece_N)
    expected, together = counts.expected(), counts.together_LMM
    gain = torch.where(together >= least, together - expected, -1.0)
    gain.diagonal(dim1=1, dim2=2).fill_(-1.0)
    id_M = torch.tensor([class_of.index(class_of[i]) for i in latents.tolist()])
    between_MM = named_F[latents][:, None] & named_F[latents] & (id_M[:, None] != id_M)
    frames = []
    for kind, allowed in (("all", True), ("named", between_MM)):
        score = torch.where(torch.as_tensor(allowed), gain, -1.0).flatten()
        best = score.topk(min(top, int((score > 0).sum()))).indices
        lag, source, target = torch.unravel_index(best, together.shape)
        count = together.flatten()[best]
        columns = {
            "kind": kind,
            "source": latents[source].numpy(),
            "target": latents[target].numpy(),
            "lag": [LAGS[i] for i in lag.tolist()],
            "count": count.long().numpy(),
            "support": (count / counts.pairs_L[lag].clamp(min=1)).numpy(),
            "lift": (count / expected.flatten()[best].clamp(min=1e-12)).numpy(),
            "source_class": [class_of[i] for i in latents[source].tolist()],
            "target_class": [class_of[i] for i in latents[target].tolist()],
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def names(tokens: list[Tokens], label: str, store: Any) -> list[str]:
    """Per latent the class of ``label`` on which it fires with the best F1, if that is enough."""
    classes = store.label_specs[label].classes
    both_FC = active_F = class_C = torch.zeros(())
    for t in tokens:
        one_NC = (t.labels[label][:, None] == torch.arange(len(classes))).float()
        fires_NF = (t.z_NF > 0).float()
        both_FC = both_FC + fires_NF.T @ one_NC
        active_F, class_C = active_F + fires_NF.sum(0), class_C + one_NC.sum(0)
    f1_FC = 2 * both_FC / (active_F[:, None] + class_C).clamp_min(1)
    value_F, best_F = f1_FC.max(1)
    found = zip(value_F.tolist(), best_F.tolist(), strict=True)
    return [classes[c] if value >= LEAST_F1 else "" for value, c in found]


def is_true(table: pd.DataFrame, edges: Iterable[Any]) -> list[bool]:
    """Whether each pattern is an edge of the world at one of the edge's lags."""
    lags = {(e.source, e.target): range(e.lag_min, e.lag_max + 1) for e in edges}
    cells = table[["source_class", "target_class", "lag"]].itertuples(index=False)
    return [lag in lags.get((source, target), ()) for source, target, lag in cells]
