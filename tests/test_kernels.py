"""Sparse products against plain torch, values and gradients."""

import pytest
import torch

from tsae.kernels import sparse
from tsae.saes.activations import BatchTopK, Grouped, TopK


def dense_case(seed=0, N=12, F=20):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return [draw(N, 5), draw(5, F), draw(N, 3), draw(3, F), draw(F), draw(F, 5)]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "grouped"])
def test_sparse_encode_decode_equals_dense(kind, reference):
    act = {
        "topk": TopK(4),
        "batchtopk": BatchTopK(4),
        "grouped": Grouped([TopK(2), TopK(1)], [15, 5]),
    }[kind]
    mask = torch.ones(12, dtype=torch.bool)
    mask[5] = False
    results = []
    for fast in (True, False):
        tensors = [t.clone().requires_grad_() for t in dense_case()]
        u, W, v, V, b, D = tensors
        if fast:
            codes, pre = sparse.encode(
                lambda p: act.select(p, mask), b, [(u, W), (v, V)], reference
            )
            z, x_hat = codes.dense(), sparse.decode(codes, D, reference)
        else:
            pre = u @ W + v @ V + b
            z = act(pre, mask)
            x_hat = z @ D
        (x_hat.sin().sum() + z.square().sum()).backward()
        results.append([z.detach(), x_hat.detach(), *[t.grad for t in tensors]])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


def test_lag_dot_and_energy_equal_dense():
    act, mask = TopK(4), torch.ones(12, dtype=torch.bool)
    group = (torch.arange(20) >= 12).long()
    u, W, _, _, b, _ = dense_case()
    for lag in (1, 3):
        gradients = []
        for fast in (True, False):
            weight = W.clone().requires_grad_()
            codes, _ = sparse.encode(lambda p: act.select(p, mask), b, [(u, weight)])
            if fast:
                dots = sparse.lag_dot(codes, lag, group, 2)
                energy = sparse.group_energy(codes, group, 2)
            else:
                z = codes.dense()
                product = z * torch.cat([torch.zeros(lag, 20), z[:-lag]])
                dots = torch.stack([product[:, :12].sum(1), product[:, 12:].sum(1)], 1)
                energy = torch.stack([z[:, :12].square().sum(1), z[:, 12:].square().sum(1)], 1)
            (dots.sin().sum() + energy.cos().sum()).backward()
            gradients.append((dots.detach(), energy.detach(), weight.grad))
        for fast, plain in zip(*gradients, strict=True):
            torch.testing.assert_close(fast, plain)
