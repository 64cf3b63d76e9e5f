"""Latents in relation to the others: which start before and after, and the tokens that name them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

N_NAMES = 3


class Neighbour(NamedTuple):
    """Latent ``latent`` starts ``lag`` tokens before or after the shown one does.

    ``share`` of the shown one's starts, ``lift`` = share over what independence gives, ``times``
    in all; ``name`` as in :class:`Peaks`.
    """

    latent: int
    lag: int
    share: float
    lift: float
    times: int
    name: str = ""


class Peaks:
    """Of every latent the tokens of the :data:`N_NAMES` sequences in which it was strongest."""

    def __init__(self, n_latents: int, device: str) -> None:
        self.value_KF = torch.zeros(N_NAMES, n_latents, device=device)
        self.token_KF = torch.full((N_NAMES, n_latents), -1, device=device)

    def update(self, z_BTF: Tensor, tokens_BT: Tensor) -> None:
        """Take in B sequences."""
        peak_BF, place_BF = z_BTF.max(1)
        token_BF = tokens_BT.to(self.token_KF.dtype).gather(1, place_BF)
        values, tokens = torch.cat([self.value_KF, peak_BF]), torch.cat([self.token_KF, token_BF])
        self.value_KF, order_KF = values.topk(N_NAMES, dim=0)
        self.token_KF = tokens.gather(0, order_KF)

    def name(self, latent: int, world: Any) -> str:
        """The distinct ones, strongest first, joined by " · "; empty for a silent latent."""
        active_K = self.value_KF[:, latent] > 0
        tokens = dict.fromkeys(self.token_KF[active_K, latent].tolist())
        strings = dict.fromkeys(string.strip() or string for string in world.to_strings(tokens))
        return " · ".join(strings)


class Starts:
    """Counts of starts: of every latent, and of every latent around those of the K chosen ones."""

    def __init__(self, n_latents: int, n_chosen: int, max_lag: int, device: str) -> None:
        self.max_lag = max_lag
        self.all_F = torch.zeros(n_latents, device=device)
        # [side, lag − 1, k, F]: side 0 before the chosen one's start, 1 after it
        self.joint = torch.zeros(2, max_lag, n_chosen, n_latents, device=device)
        self.seen = torch.zeros(2, max_lag, n_chosen, device=device)
        self.tokens = 0

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

    def neighbours(
        self, k: int, own: int, sign: int, min_count: int, limit: int
    ) -> list[Neighbour]:
        """The latents that start most in excess before (−1) or after (1) the k-th chosen one.

        Each at its best lag, by (count − expected) / √expected; expected is what the latent's own
        rate gives. At most ``limit`` latents with ``min_count`` joint starts or more. Descriptive:
        many latents are searched, so single lifts are not tests.
        """
        side = (sign + 1) // 2
        count_LF, seen_L = self.joint[side, :, k], self.seen[side, :, k]
        expected_LF = seen_L[:, None] * self.all_F / max(self.tokens, 1)
        excess_LF = (count_LF - expected_LF) / expected_LF.clamp_min(1e-9).sqrt()
        excess_LF[count_LF < min_count] = -torch.inf
        excess_LF[:, own] = -torch.inf
        best_F, lag_F = excess_LF.max(0)
        order = best_F.argsort(descending=True, stable=True)[:limit]
        found = []
        for j in order.tolist():
            if best_F[j] <= 0:
                break
            i = int(lag_F[j])
            share = float(count_LF[i, j] / seen_L[i])
            lift = float(count_LF[i, j] / expected_LF[i, j])
            found.append(Neighbour(j, i + 1, share, lift, int(count_LF[i, j])))
        return found
