r"""How strongly an active latent now goes with an active latent of a recent token.

    R_ij[t, ℓ] = σ(z_i[t] W_ij^(ℓ) z_j[t−ℓ]) on active pairs, 0 elsewhere,    W^(ℓ) = U diag(s_ℓ) Vᵀ

Learning: logistic regression that tells pairs that occurred from pairs whose later latent i' was
drawn from another token, hence with its own frequency and size, and is silent at t:

    L = mean softplus(−z_i W_ij z_j) + mean softplus(z_i' W_i'j z_j)

At the optimum z_i W_ij z_j is the log of the pair's lift, so that σ = ½ is independence. The naive
alternative, ‖W‖² alone, is kept as an ablation: it is least where nothing was learned.
"""

import torch
from torch import Tensor, nn

from tsae.tracking.active import Active

LEARNING = ("logistic", "norm")
PART = 128
"""Tokens whose relations are computed at a time."""


class Relation(nn.Module):
    """``W`` of the module's equations for F latents, ``window`` lags and rank r.

    U, V [F, r]; s [window, r]. ``spread``: the standard deviation of W's entries at the start.
    """

    def __init__(self, n_latents: int, window: int, rank: int, spread: float = 0.1):
        super().__init__()
        size = (spread / rank**0.5) ** 0.5
        self.U_FR = nn.Parameter(torch.randn(n_latents, rank) * size)
        self.V_FR = nn.Parameter(torch.randn(n_latents, rank) * size)
        self.s_LR = nn.Parameter(torch.ones(window, rank))

    @torch.no_grad()
    def forward(self, past: Active, now: Active, lag: int) -> Tensor:
        """R [n, M, M]: entry (t, b, a) relates slot b of past to slot a of now; 0 if not active."""
        left = self.V_FR[past.ids_NM] * (past.values_NM[..., None] * self.s_LR[lag - 1])
        right = self.U_FR[now.ids_NM] * now.values_NM[..., None]
        R = torch.bmm(left, right.transpose(1, 2)).sigmoid_()
        R *= (past.values_NM > 0)[:, :, None]
        R *= (now.values_NM > 0)[:, None, :]
        return R

    @torch.no_grad()
    def gathered(self, active: Active) -> tuple[Tensor, Tensor]:
        """V of the latents of N tokens, and U times their codes, both [N, M, r]: for all lags."""
        at_P = active.ids_NM.flatten()
        shape = (*active.ids_NM.shape, -1)
        V_NMR, U_NMR = (W.index_select(0, at_P).view(shape) for W in (self.V_FR, self.U_FR))
        return V_NMR, U_NMR.mul_(active.values_NM[..., None])

    @torch.no_grad()
    def at_lag(
        self, lag: int, past_NM: Tensor, now_NM: Tensor, pairs: tuple[Tensor, Tensor], out: Tensor
    ) -> Tensor:
        """:meth:`forward` [n, M, M] of each :meth:`gathered` token with the ``lag``-th after it.

        Written into the memory of ``out``, in parts that stay in the cache; rows of past codes that
        are 0 are left as they come.
        """
        V_NMR, U_NMR = pairs
        s_R = self.s_LR[lag - 1]
        out = out[: len(past_NM)]
        for part in torch.arange(len(past_NM)).split(PART):
            here = slice(int(part[0]), int(part[-1]) + 1)
            then = slice(here.start + lag, here.stop + lag)
            left = V_NMR[here] * (past_NM[here, :, None] * s_R)
            torch.bmm(left, U_NMR[then].transpose(1, 2), out=out[here])
            out[here].sigmoid_()
        silent_NM = now_NM == 0
        if silent_NM.any():
            out.masked_fill_(silent_NM[:, None, :], 0.0)
        return out

    def logits(self, later: Active, earlier: Active, lag_P: Tensor) -> Tensor:
        """``z_i W_ij z_j`` [P] of P pairs whose ids and values are [P]."""
        u = self.U_FR[later.ids_NM] * later.values_NM[:, None]
        v = self.V_FR[earlier.ids_NM] * earlier.values_NM[:, None]
        return (u * self.s_LR[lag_P - 1] * v).sum(1)

    def logistic_loss(
        self, active: Active, document_N: Tensor, remembered_NM: Tensor, n_pairs: int
    ) -> Tensor:
        """The loss of the module's equations on ``n_pairs`` draws of (t, ℓ, slot, slot, t', slot).

        Draws that hit an empty slot, another document, or an i' that is active at t do not count.
        """
        ids, values = active
        (N, M), device = ids.shape, ids.device
        window = min(len(self.s_LR), N - 1)
        if window < 1:
            return self.s_LR.sum() * 0.0

        def draw(high: int) -> Tensor:
            return torch.randint(high, (n_pairs,), device=device)

        lag = 1 + draw(window)
        t = lag + (torch.rand(n_pairs, device=device) * (N - lag)).long()
        a, b, other, c = draw(M), draw(M), draw(N), draw(M)
        earlier = Active(ids[t - lag, b], remembered_NM[t - lag, b])
        later = Active(ids[t, a], values[t, a])
        drawn = Active(ids[other, c], values[other, c])
        linked = (document_N[t] == document_N[t - lag]) & (earlier.values_NM > 0)
        positive = linked & (later.values_NM > 0)
        silent = ((ids[t] != drawn.ids_NM[:, None]) | (values[t] == 0)).all(1)
        negative = linked & (drawn.values_NM > 0) & silent
        softplus = nn.functional.softplus
        present = softplus(-self.logits(later, earlier, lag)) * positive
        absent = softplus(self.logits(drawn, earlier, lag)) * negative
        return present.sum() / positive.sum().clamp_min(
            1
        ) + absent.sum() / negative.sum().clamp_min(1)

    def norm_loss(self) -> Tensor:
        """Mean square of W's entries, as tr(S UᵀU S VᵀV) / F², so that no W is formed."""
        gram_U, gram_V = self.U_FR.t() @ self.U_FR, self.V_FR.t() @ self.V_FR
        square = torch.einsum("lr,rs,ls,rs->", self.s_LR, gram_U, self.s_LR, gram_V)
        return square / len(self.U_FR) ** 2
