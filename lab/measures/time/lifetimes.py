"""Lifetimes through a document: births, returns and deaths by position, and what is never born.

A birth is a change from silent to active between two linked tokens; it is a *return* when the
latent was active earlier in the same piece.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.time.lifecycle import STATES, LifecycleTracker
from lab.worlds import World


@register("lifetimes")
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    n_tokens: int = 20_000,
) -> dict[str, Measured]:
    """One pass over ``n_tokens`` test tokens for each SAE.

    Rows: ``reactivation_gap`` (mean tokens of silence between two stays in one piece), ``returns``
    (share of births), ``latent_state`` by group unborn, active, dormant, dead (shares; see
    :class:`LifecycleTracker`). Table ``lifecycle``: position in the piece; first births, returns
    and deaths per 100 tokens; active; seen = distinct latents so far.
    """
    found = {}
    for name, sae in saes.items():
        length, ages = reading.store.seq_len, []
        life = LifecycleTracker(sae.cfg.d_sae, length, active_within=1000, dead_after=10_000)
        for t in reading.tokens(sae, "test", n_tokens):
            active_NF, piece_N = (t.z_NF > 0).cpu(), t.piece_N.cpu()
            life.update(active_NF, piece_N)
            ages.append(by_position(active_NF, piece_N))
        table = pd.concat(ages).groupby("position", as_index=False).sum()
        found[name] = Measured(life_rows(life, table), tables={"lifecycle": per_token(table)})
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
