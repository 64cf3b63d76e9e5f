"""When latents are born, how long they live, and when they come back."""

import math
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor


def kaplan_meier(ended_L: Tensor, censored_L: Tensor) -> Tensor:
    """Survival beyond each dwell time, with right-censored runs.

    S(d) = Π_{s ≤ d} (1 − e_s / r_s), with e_s the runs that ended after s tokens, c_s those cut off
    after s tokens, and r_s = Σ_{u ≥ s} e_u + Σ_{u > s} c_u the runs at risk: a run cut after s
    tokens may have ended just there, so its risk was last seen at s − 1.

    ended_L, censored_L: [..., L] counts by dwell time, index 0 being zero tokens.
    Returns S, [..., L] float64. Source: Kaplan and Meier (1958).
    """
    ended_L, censored_L = ended_L.double(), censored_L.double()
    at_risk = (ended_L + censored_L).flip(-1).cumsum(-1).flip(-1) - censored_L
    return (1 - ended_L / at_risk.clamp(min=1)).cumprod(-1)


def half_life(survival_L: Tensor) -> Tensor:
    """[..., L] survival → [...]: the first dwell time d (tokens) with S(d) ≤ ½; inf if never."""
    dead = survival_L <= 0.5
    return torch.where(dead.any(-1), dead.double().argmax(-1).double(), math.inf)


def mean_dwell(survival_L: Tensor) -> Tensor:
    """[..., L] survival → [...]: restricted mean Σ_{d < L} S(d) in tokens, up to the window."""
    return survival_L[..., :-1].sum(-1)


def runs(active_NF: Tensor, piece_N: Tensor) -> dict[str, Tensor]:
    """Every run of consecutive active tokens, per latent, none crossing a piece.

    active_NF: bool; piece_N: ascending piece numbers. Returns vectors of one entry a run, ordered
    by latent and then time: latent, start, length, born (the token before was in the piece and
    silent), ended (the token after was in the piece and silent; False = censored).
    """
    active_FN = active_NF.T.contiguous()
    first_N = torch.ones_like(piece_N, dtype=torch.bool)
    first_N[1:] = piece_N[1:] != piece_N[:-1]
    last_N = first_N.roll(-1)
    before, after = active_FN.roll(1, dims=1), active_FN.roll(-1, dims=1)
    latent, start = (active_FN & (~before | first_N)).nonzero(as_tuple=True)
    stop = (active_FN & (~after | last_N)).nonzero(as_tuple=True)[1]
    born, ended = ~first_N[start], ~last_N[stop]
    return {
        "latent": latent, "start": start, "length": stop - start + 1, "born": born, "ended": ended
    }  # fmt: skip


class LifecycleTracker:
    """Births, deaths, dwell times and reactivation gaps of every latent.

    A run that is active at a piece's first token counts as starting there (the context is cut
    there), one active at its last token is right-censored. Births and deaths are changes seen
    between two linked tokens. A gap is the silence between two runs inside one piece.

    n_latents: F; max_length: the longest piece in tokens (longer dwell times raise ValueError).
    """

    def __init__(self, n_latents: int, max_length: int, device: str | torch.device = "cpu"):
        shape = (3, n_latents, max_length + 1)
        self.ended_FL, self.censored_FL, self.gaps_FL = torch.zeros(shape, device=device).long()
        self.births_F, self.deaths_F = torch.zeros(2, n_latents, device=device).long()
        self.tokens = self.links = 0

    def update(self, active_NF: Tensor, piece_N: Tensor) -> None:
        """Take in N more tokens in reading order; pieces do not continue from earlier calls."""
        if not len(active_NF):
            return
        run = runs(active_NF, piece_N)
        f, length, start, ended = (run[name] for name in ("latent", "length", "start", "ended"))
        n_latents, width = self.ended_FL.shape
        if len(length) and int(length.max()) >= width:
            raise ValueError(
                f"a run of {int(length.max())} tokens is longer than max_length={width - 1}"
            )

        def histogram(latent: Tensor, value: Tensor) -> Tensor:
            counts = torch.bincount(latent * width + value, minlength=n_latents * width)
            return counts.view(n_latents, width)

        self.ended_FL += histogram(f[ended], length[ended])
        self.censored_FL += histogram(f[~ended], length[~ended])
        self.births_F += torch.bincount(f[run["born"]], minlength=n_latents)
        self.deaths_F += torch.bincount(f[ended], minlength=n_latents)
        again = (f[1:] == f[:-1]) & (piece_N[start[1:]] == piece_N[start[:-1]])
        self.gaps_FL += histogram(f[1:][again], (start[1:] - (start + length)[:-1])[again])
        self.tokens += len(active_NF)
        self.links += int((piece_N[1:] == piece_N[:-1]).sum())

    def half_life(self, latents: Tensor) -> float:
        """Kaplan–Meier half-life in tokens of the runs of these latents, pooled."""
        return float(half_life(self._survival(latents)))

    def mean_dwell(self, latents: Tensor) -> float:
        """Restricted mean dwell time in tokens of the runs of these latents, pooled."""
        return float(mean_dwell(self._survival(latents)))

    def runs_seen(self, latents: Tensor) -> int:
        return int(self.ended_FL[latents].sum() + self.censored_FL[latents].sum())

    def _survival(self, latents: Tensor) -> Tensor:
        return kaplan_meier(self.ended_FL[latents].sum(0), self.censored_FL[latents].sum(0))

    def table(self, latents: Tensor | slice = slice(None)) -> pd.DataFrame:
        """Columns dwell (tokens), count (runs), censored (how many of them were cut), pooled."""
        censored_L = self.censored_FL[latents].sum(0).cpu()
        count_L = self.ended_FL[latents].sum(0).cpu() + censored_L
        dwell = count_L.nonzero().squeeze(1)
        columns = {"dwell": dwell, "count": count_L[dwell], "censored": censored_L[dwell]}
        return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def stays(
    parts: Iterable[tuple[Tensor, Tensor]], n_latents: int, max_length: int
) -> tuple[Tensor, Tensor]:
    """Mean dwell (Kaplan–Meier, tokens) and share of active tokens [F] of each latent, from pairs
    of active_NF and piece_N."""
    life = active_F = None
    for active_NF, piece_N in parts:
        life = life or LifecycleTracker(n_latents, max_length, piece_N.device)
        life.update(active_NF, piece_N)
        active_F = active_NF.sum(0) + (0 if active_F is None else active_F)
    assert life is not None and active_F is not None
    dwell_F = mean_dwell(kaplan_meier(life.ended_FL, life.censored_FL))
    return dwell_F, active_F / max(life.tokens, 1)
