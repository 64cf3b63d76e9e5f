"""When latents are born, how long they live, and when they come back."""

import math

import pandas as pd
import torch
from torch import Tensor

STATES = ("unborn", "active", "dormant", "dead")


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
    first = dead.double().argmax(-1).double()
    return torch.where(dead.any(-1), first, torch.full_like(first, math.inf))


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
    before = active_FN.roll(1, dims=1)
    after = active_FN.roll(-1, dims=1)
    latent, start = (active_FN & (~before | first_N)).nonzero(as_tuple=True)
    stop = (active_FN & (~after | last_N)).nonzero(as_tuple=True)[1]
    return {
        "latent": latent,
        "start": start,
        "length": stop - start + 1,
        "born": ~first_N[start],
        "ended": ~last_N[stop],
    }


class LifecycleTracker:
    """Births, deaths, dwell times, reactivation gaps and state of every latent.

    A run that is active at a piece's first token counts as starting there (the context is cut
    there), one active at its last token is right-censored. Births and deaths are changes seen
    between two linked tokens. A gap is the silence between two runs inside one piece.

    n_latents: F; max_length: the longest piece in tokens (longer dwell times raise ValueError);
    dead_after: a latent that was born and has been silent for that many tokens is dead, and
    dormant from ``active_within`` tokens on.
    """

    def __init__(
        self,
        n_latents: int,
        max_length: int,
        *,
        active_within: int = 1_000,
        dead_after: int = 100_000,
        device: str | torch.device = "cpu",
    ):
        if not 0 < active_within <= dead_after:
            raise ValueError(
                f"active_within={active_within} is not allowed: take 1 … dead_after={dead_after}"
            )
        shape = (n_latents, max_length + 1)
        self.active_within, self.dead_after = active_within, dead_after
        self.ended_FL = torch.zeros(shape, dtype=torch.long, device=device)
        self.censored_FL = torch.zeros(shape, dtype=torch.long, device=device)
        self.gaps_FL = torch.zeros(shape, dtype=torch.long, device=device)
        self.births_F = torch.zeros(n_latents, dtype=torch.long, device=device)
        self.deaths_F = torch.zeros(n_latents, dtype=torch.long, device=device)
        self.last_seen_F = torch.full((n_latents,), -1, dtype=torch.long, device=device)
        self.tokens = self.links = 0

    def update(self, active_NF: Tensor, piece_N: Tensor) -> None:
        """Take in N more tokens in reading order; pieces do not continue from earlier calls."""
        if not len(active_NF):
            return
        run = runs(active_NF, piece_N)
        f, length, start = run["latent"], run["length"], run["start"]
        n_latents, width = self.ended_FL.shape
        if len(length) and int(length.max()) >= width:
            raise ValueError(
                f"a run of {int(length.max())} tokens is longer than max_length={width - 1}"
            )

        def histogram(latent: Tensor, value: Tensor) -> Tensor:
            return torch.bincount(latent * width + value, minlength=n_latents * width).view(
                n_latents, width
            )

        ended = run["ended"]
        self.ended_FL += histogram(f[ended], length[ended])
        self.censored_FL += histogram(f[~ended], length[~ended])
        self.births_F += torch.bincount(f[run["born"]], minlength=n_latents)
        self.deaths_F += torch.bincount(f[ended], minlength=n_latents)
        stop = start + length
        again = (f[1:] == f[:-1]) & (piece_N[start[1:]] == piece_N[start[:-1]])
        self.gaps_FL += histogram(f[1:][again], (start[1:] - stop[:-1])[again])
        self.last_seen_F.scatter_reduce_(0, f, self.tokens + stop - 1, "amax")
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

    def states(self) -> list[str]:
        """Per latent: unborn (never fired), active, dormant or dead by tokens since it last did."""
        silent_F = self.tokens - 1 - self.last_seen_F
        code_F = torch.ones_like(silent_F)
        code_F[silent_F >= self.active_within] = 2
        code_F[silent_F >= self.dead_after] = 3
        code_F[self.last_seen_F < 0] = 0
        return [STATES[i] for i in code_F.tolist()]

    def table(self) -> pd.DataFrame:
        """Columns latent, dwell (tokens), count (runs), censored (how many of them were cut)."""
        count_FL = self.ended_FL + self.censored_FL
        latent, dwell = count_FL.nonzero(as_tuple=True)
        return pd.DataFrame(
            {
                "latent": latent.cpu().numpy(),
                "dwell": dwell.cpu().numpy(),
                "count": count_FL[latent, dwell].cpu().numpy(),
                "censored": self.censored_FL[latent, dwell].cpu().numpy(),
            }
        )

    def latents(self) -> pd.DataFrame:
        """One row a latent: births, deaths, half_life, mean_dwell, mean gap (tokens), state."""
        survival = kaplan_meier(self.ended_FL, self.censored_FL)
        gap = torch.arange(self.gaps_FL.shape[1], device=self.gaps_FL.device)
        gaps = self.gaps_FL.sum(1)
        return pd.DataFrame(
            {
                "births": self.births_F.cpu().numpy(),
                "deaths": self.deaths_F.cpu().numpy(),
                "half_life": half_life(survival).cpu().numpy(),
                "mean_dwell": mean_dwell(survival).cpu().numpy(),
                "reactivation_gap": ((self.gaps_FL * gap).sum(1) / gaps).cpu().numpy(),
                "state": self.states(),
            }
        )
