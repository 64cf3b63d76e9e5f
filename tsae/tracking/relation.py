r"""How much an active latent of a recent token raises the odds of an active latent now.

    a_ij[t, ℓ] = W_ij^(ℓ) z̄_j[t−ℓ],   W^(ℓ) = U diag(s_ℓ) Vᵀ,   R_ij[t, ℓ] = min(exp a_ij, 16)

on active pairs, 0 elsewhere; z̄ is a code over its latent's usual one, so R = 1 is independence.
Learning: logistic regression, from all active latents of the window together, that tells the latents i
of a token from those i' of a token *at the same place of another document*, hence as frequent and
as early:

    L = mean softplus(−Σ_ℓ Σ_j a_ij[t, ℓ]) + mean softplus(Σ_ℓ Σ_j a_i'j[t, ℓ])

The sum makes W partial: what one source explains is not given to another that goes with it. At the
optimum it is the log of the lift. The naive alternative, ‖W‖² alone, learns W = 0, hence R = 1
everywhere, and is kept as an ablation. Source: this project.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, pad, softplus

from tsae.tracking.active import Active

MOST = 16.0
"""Largest R."""


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
        V_NMR, U_NMR = self.V_FR[past.ids_NM], self.U_FR[now.ids_NM]
        R = self.related(V_NMR, past.values_NM, U_NMR, now.values_NM, lag)
        return R.masked_fill_((past.values_NM == 0)[:, :, None], 0.0)

    def related(
        self, V_NMR: Tensor, past_NM: Tensor, U_NMR: Tensor, now_NM: Tensor, lag: int
    ) -> Tensor:
        """:meth:`forward` from the rows of V and U that the slots are of; past ones may be silent."""
        left = V_NMR * (past_NM[..., None] * self.s_LR[lag - 1])
        R = torch.bmm(left, U_NMR.transpose(1, 2)).exp_().clamp_(max=MOST)
        silent_NM = now_NM == 0
        return R.masked_fill_(silent_NM[:, None, :], 0.0) if silent_NM.any() else R

    def expected(self, past: Active, document_N: Tensor) -> Tensor:
        """[N, r] ``Σ_ℓ s_ℓ Σ_j V_j z̄_j[t−ℓ]`` over the earlier tokens of each token's document."""
        h_NR = embedding_bag(past.ids_NM, self.V_FR, per_sample_weights=past.values_NM, mode="sum")
        total_NR = torch.zeros_like(h_NR)
        for lag, s_R in enumerate(self.s_LR[: len(h_NR) - 1], start=1):
            linked_N1 = (document_N[lag:] == document_N[:-lag])[:, None]
            total_NR = total_NR + pad(h_NR[:-lag] * linked_N1 * s_R, (0, 0, lag, 0))
        return total_NR

    def logistic_loss(
        self, active: Active, past: Active, document_N: Tensor, n_pairs: int
    ) -> Tensor:
        """The loss of the module's equations on tokens drawn so as to hold about ``n_pairs`` slots.

        ``past``: the same tokens' codes as they are remembered, over each latent's usual code.
        A document's first token has no past, and a place that one document alone reaches gives no
        negative; both are left out.
        """
        N, M = active.ids_NM.shape
        device = document_N.device
        first_N = torch.searchsorted(document_N, document_N)
        place_N = torch.arange(N, device=device) - first_N
        t = torch.randperm(N, device=device)[: max(1, n_pairs // M)]
        by_place_N, order_N = place_N.sort(stable=True)
        low, high = (torch.searchsorted(by_place_N, place_N[t], right=r) for r in (False, True))
        other = order_N[low + (torch.rand(len(t), device=device) * (high - low)).long()]
        now, drawn = (Active(*(part[at] for part in active)) for at in (t, other))
        has_past = place_N[t] > 0
        apart = has_past & (document_N[t] != document_N[other])
        present = (now.values_NM > 0) & has_past[:, None]
        absent = (drawn.values_NM > 0) & apart[:, None]
        context_TR1 = self.expected(past, document_N)[t, :, None]
        losses = [
            (softplus(sign * (self.U_FR[ids] @ context_TR1).squeeze(2)) * kept).sum()
            / kept.sum().clamp_min(1)
            for sign, ids, kept in ((-1, now.ids_NM, present), (1, drawn.ids_NM, absent))
        ]
        return losses[0] + losses[1]

    def norm_loss(self) -> Tensor:
        """Mean square of W's entries, as tr(S UᵀU S VᵀV) / F², so that no W is formed."""
        gram_U, gram_V = self.U_FR.t() @ self.U_FR, self.V_FR.t() @ self.V_FR
        square = torch.einsum("lr,rs,ls,rs->", self.s_LR, gram_U, self.s_LR, gram_V)
        return square / len(self.U_FR) ** 2
