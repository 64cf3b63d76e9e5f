r"""Muon: momentum whose matrices are made nearly orthogonal before they move a weight.

    B ← μ B + (1 − μ) G,   U = G + μ (B − G),   W ← W − 0.2 lr √(max(m, n)) NS(U)      W [m, n]

NS is five quintic Newton–Schulz steps, X ← a X + (b A + c A²) X with A = X Xᵀ, from X = U / |U|,
which bring singular values from 0 to 1 to between about 0.7 and 1.2. Source: Jordan et al. 2024,
scaled to AdamW's root mean square (Liu et al. 2025, arXiv 2502.16982). ``torch.optim.Muon`` computes
the same in bfloat16, which a CPU without AVX-512 multiplies 15 times slower than float32. Elsewhere
float32 costs one millisecond more a matrix, and every CPU computes the same.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalised(G: Tensor) -> Tensor:
    """``NS(G)`` [m, n] in float32: the singular vectors of ``G`` with singular values near 1."""
    X = G.float()
    X = X / X.norm().clamp_min(1e-7)
    if tall := G.shape[0] > G.shape[1]:
        X = X.T
    for _ in range(5):
        gram = X @ X.T
        X = torch.addmm(X, torch.addmm(gram, gram, gram, beta=B, alpha=C), X, beta=A)
    return X.T if tall else X


class Muon(torch.optim.Optimizer):
    """Moves matrices by the module's equations; ``momentum`` is μ."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for W in (p for p in group["params"] if p.grad is not None):
                buffer = self.state[W].setdefault("momentum_buffer", torch.zeros_like(W))
                buffer.lerp_(W.grad, 1 - group["momentum"])
                length = 0.2 * group["lr"] * max(W.shape) ** 0.5
                update = orthogonalised(W.grad.lerp(buffer, group["momentum"]))
                W.add_(update, alpha=-length)
