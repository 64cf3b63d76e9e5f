"""Muon: its equations, torch's own optimiser, and that no product is in bfloat16."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lab.worlds.microworld import model as microworld_model
from lab.worlds.microworld.config import MicroworldConfig
from lab.worlds.microworld.muon import Muon, orthogonalised


class Dtypes(TorchDispatchMode):
    """Remembers the types of all that is computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen |= {t.dtype for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        return out


def test_the_models_optimisers_never_compute_in_bfloat16():
    config = MicroworldConfig(n_layers=1, layer=0, d_model=16, n_heads=2, seq_len=48)
    model = microworld_model.boot(config, 20)
    model.original_model(torch.zeros(1, 8, dtype=torch.int64)).square().sum().backward()
    with Dtypes() as dtypes:
        for optimizer in microworld_model.optimizers(model, config):
            optimizer.step()
    assert torch.float32 in dtypes.seen and torch.bfloat16 not in dtypes.seen


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    x = S / G.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    torch.testing.assert_close(orthogonalised(G), U @ torch.diag(x) @ Vh, atol=1e-4, rtol=1e-4)


def test_steps_are_torchs_up_to_the_rounding_of_bfloat16():
    g = torch.Generator().manual_seed(1)
    ours = torch.nn.Parameter(torch.randn(8, 5, generator=g))
    theirs = torch.nn.Parameter(ours.detach().clone())
    both = [
        Muon([ours], lr=0.1),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    ]
    start = ours.detach().clone()
    for _ in range(4):
        ours.grad = torch.randn(8, 5, generator=g)
        theirs.grad = ours.grad.clone()
        for optimizer in both:
            optimizer.step()
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()
