"""Which latents start before and after others, more often than their own rates explain."""

from typing import NamedTuple

import torch
from torch import Tensor


class Neighbour(NamedTuple):
    """Latent ``latent`` starts ``lag`` tokens before or after the shown one does.

    ``share`` of the shown one's starts, ``lift`` = share over what independence gives, ``times``
    in all; ``name``: the tokens at which it was strongest.
    """

    latent: int
    lag: int
    share: float
    lift: float
    times: int
    name: str = ""


class Starts:
    """Counts of starts: of every latent, and of every latent around those of the K chosen ones."""

    def __init__(self, n_latents: int, n_chosen: int, max_lag: int, device: str) -> None:
        self.max_lag, self.tokens = max_lag, 0
        self.all_F = torch.zeros(n_latents, device=device)
        # [side, lag − 1, k, F]: side 0 before the chosen one's start, 1 after it
        self.joint = torch.zeros(2, max_lag, n_chosen, n_latents, device=device)
        self.seen = torch.zeros(2, max_lag, n_chosen, device=device)

    def update(self, active_NF: Tensor, piece_N: Tensor, chosen: Tensor) -> None:
        """Take in N tokens in reading order; pieces do not continue from earlier calls."""
        start_NF = torch.zeros_like(active_NF)
        same_N = piece_N[1:] == piece_N[:-1]
        start_NF[1:] = active_NF[1:] & ~active_NF[:-1] & same_N[:, None]
        self.all_F += start_NF.sum(0)
        self.tokens += len(piece_N)
        for k, latent in enumerate(chosen.tolist()):
            at = start_NF[:, latent].nonzero()[:, 0]
            for lag in range(1, self.max_lag + 1):
                for side, other in enumerate((at - lag, at + lag)):
                    ok = (other >= 0) & (other < len(piece_N))
                    ok[ok.clone()] = piece_N[other[ok]] == piece_N[at[ok]]
                    self.joint[side, lag - 1, k] += start_NF[other[ok]].sum(0)
                    self.seen[side, lag - 1, k] += int(ok.sum())

    def neighbours(self, k: int, own: int, side: int, least: int, most: int) -> list[Neighbour]:
        """The latents that start most in excess before (side 0) or after (1) the k-th chosen one.

        At most ``most``, of at least ``least`` joint starts, each at its best lag, by
        (count − expected) / √expected; expected is what the latent's own rate gives. Descriptive:
        many latents are searched, so single lifts are not tests.
        """
        count_LF, seen_L = self.joint[side, :, k], self.seen[side, :, k]
        expected_LF = seen_L[:, None] * self.all_F / max(self.tokens, 1)
        excess_LF = (count_LF - expected_LF) / expected_LF.clamp_min(1e-9).sqrt()
        excess_LF[count_LF < least] = -torch.inf
        excess_LF[:, own] = -torch.inf
        best_F, lag_F = excess_LF.max(0)
        made = []
        for j in best_F.argsort(descending=True, stable=True)[:most].tolist():
            if best_F[j] > 0:
                i = int(lag_F[j])
                count, lift = float(count_LF[i, j]), float(count_LF[i, j] / expected_LF[i, j])
                made.append(Neighbour(j, i + 1, count / float(seen_L[i]), lift, int(count)))
        return made
