"""The crosscoder and its control without sharing, against their equations written as loops."""

import pytest
import torch

from tsae import saes
from tsae.sequences import SequenceContext

WINDOW = 3


def made(name):
    torch.manual_seed(0)
    return saes.build(name, d_in=6, d_sae=12, k=6, window=WINDOW)


def text():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 7, 6, generator=generator)
    boundary = torch.zeros(2, 7, dtype=torch.uint8)
    boundary[:, 0] = boundary[1, 4] = 3
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 3] = False
    return x, SequenceContext(mask, boundary)


def windows(x, context):
    """(row, token, place, u[t-j]) of every valid token and each place of its window that is in its
    document, u None where that token is invalid."""
    mask, boundary = context.mask_BT, context.boundary_BT
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for j in range(WINDOW):
                if not mask[b, t] or t - j < 0 or (boundary[b, t - j + 1 : t + 1] == 3).any():
                    continue
                yield b, t, j, x[b, t - j] if mask[b, t - j] else None


@pytest.mark.parametrize("name", ["txc", "stacked"])
def test_code_and_loss_are_the_equations(name):
    sae, (x, context) = made(name), text()
    z = sae.encode(x, context)
    pre = torch.zeros(2, 7, 12)
    error = {"mse": 0.0, "window": 0.0}
    own = 12 // WINDOW
    for b, t, j, u in windows(x, context):
        place = slice(j * own, (j + 1) * own) if name == "stacked" else slice(None)
        W, D = sae.W_enc, sae.W_dec
        if j and name == "txc":
            W, D = sae.W_past[j - 1], sae.D_past[j - 1]
        if u is not None:
            pre[b, t, place] += u @ W[:, place]
            miss = (u - z[b, t, place] @ D[place]).square().sum() / 6 / int(context.mask_BT.sum())
            error["window" if j else "mse"] += miss
    on = z > 0
    torch.testing.assert_close(z[on], pre[on])
    losses = sae.loss(x, context)
    for term, value in error.items():
        torch.testing.assert_close(losses[term], value)


def test_each_place_of_the_stack_has_its_share_of_k():
    sae, (x, _) = made("stacked"), text()
    sae.b_enc.data += 10.0  # no place is short of positive entries
    z = sae.encode(x)[:, WINDOW - 1 :]
    assert (z.unflatten(-1, (WINDOW, -1)) > 0).sum(-1).unique().tolist() == [2]


def test_stack_of_more_places_than_k_is_refused():
    with pytest.raises(ValueError, match="k=2 .* at least the window's places, 3"):
        saes.build("stacked", d_in=6, d_sae=12, k=2, window=3)
