r"""The composition matrix of ``hierarchical``: a sparse regression of parents on children.

    W = argmin mean_t |W h1 - h2|^2 / 2 + lambda_w sum_ij s_i s_j |W_ij|

with ``s`` the root mean squares of parents h2 [N, F2] and children h1 [N, F1]: the lasso of
standardised variables (Tibshirani 1996), so lambda_w is a correlation and means the same for rare
and frequent latents. Followed batch by batch with proximal steps (ISTA, Beck & Teboulle 2009),
after which entries are exactly 0; a subgradient of |W| only makes them small.
"""

import torch
from torch import Tensor, nn

from tsae.kernels.sparse import Codes, decode, has_sparse_products
from tsae.training import distributed

RATE, STEP = 0.01, 0.2  # of the running moments; of W, as a share of the largest safe step


def soft_threshold(W: Tensor, amount: Tensor | float) -> Tensor:
    """``sign(W) max(|W| - amount, 0)``, the proximal operator of ``amount |W|_1``."""
    return W.sign() * (W.abs() - amount).clamp_min(0.0)


class Composition(nn.Module):
    """``W`` [F2, F1] and the running moments its steps need, all buffers: no optimiser moves them.

    ``energy1``, ``energy2``: mean h1^2 and h2^2; ``curvature``: mean h1_j |h1|_1; ``fits``: batches
    seen.
    """

    W: Tensor
    curvature: Tensor
    energy1: Tensor
    energy2: Tensor
    fits: Tensor

    def __init__(self, n_children: int, n_parents: int, lambda_w: float):
        super().__init__()
        self.lambda_w = lambda_w
        self.register_buffer("W", torch.zeros(n_parents, n_children))
        self.register_buffer("curvature", torch.zeros(n_children))
        self.register_buffer("energy1", torch.zeros(n_children))
        self.register_buffer("energy2", torch.zeros(n_parents))
        self.register_buffer("fits", torch.zeros((), dtype=torch.int64))

    def forward(self, h1: Tensor | Codes) -> Tensor:
        """``W h1`` [N, F2] from dense or sparse codes."""
        return h1 @ self.W.t() if isinstance(h1, Tensor) else decode(h1, self.W.t())

    @torch.no_grad()
    def fit(self, h1: Tensor | Codes, h2: Tensor, error_NP: Tensor, n: Tensor) -> None:
        """Move the moments by a batch, and W by ``W_ij <- soft(W_ij - eta_j G_ij, eta_j lambda_w
        s_i s_j)``, G = mean_t (W h1 - h2) h1^T.

        ``error_NP`` = W h1 - h2 [N, F2], ``n`` the number of valid tokens. As h1 >= 0, the mean of
        h1_j |h1|_1 bounds the curvature by diagonal dominance, so that with ``eta_j = STEP`` over it
        no step diverges and none needs a learning rate. W is a new tensor: a gradient may yet be
        taken through the old one.
        """
        if isinstance(h1, Tensor):
            h1_NF, h1_FN = h1, h1.t()
        elif has_sparse_products(h2.device):
            h1_NF, h1_FN = h1.dense(), h1.csr(h1.values).t().to_sparse_csr()
        else:
            h1_NF, h1_FN = h1.dense(), h1.dense().t()
        G = distributed.mean((h1_FN @ error_NP).t() / n, n)
        rate = torch.clamp(1.0 / (self.fits + 1), min=RATE)  # a plain mean until the window is full
        self.fits.add_(1)
        self.curvature.lerp_(distributed.mean(h1_NF.t() @ h1_NF.sum(1) / n, n), rate)
        self.energy1.lerp_(distributed.mean(h1_NF.square().sum(0) / n, n), rate)
        self.energy2.lerp_(distributed.mean(h2.square().sum(0) / n, n), rate)
        eta_F = STEP / self.curvature.clamp_min(1e-8)
        shrink = self.lambda_w * self.energy2.sqrt()[:, None] * self.energy1.sqrt()
        self.W = soft_threshold(self.W - eta_F * G, eta_F * shrink)
