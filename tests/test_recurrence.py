"""State, memory and gates of the recurrent variant, by hand."""

import math

import pytest
import torch
from test_saes import text

from tsae.saes.recurrence import FeatureMemory, HardConcrete, pieces_of, run_lstm

# ---- state -----------------------------------------------------------------------------------


def cell(lstm, x, h, c):
    """i, f, g, o = (W_ih x + b_ih + W_hh h + b_hh), c' = f c + i g, h' = o tanh(c')."""
    gates = lstm.weight_ih_l0 @ x + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
    i, f, g, o = gates.chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def test_packed_pieces_equal_one_cell_after_another():
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(8, 5, batch_first=True)
    x, context = text(B=4)
    context = context.filled(x)
    pieces = pieces_of(context)
    h_n = run_lstm(lstm, x.flatten(0, 1)[pieces.rows_n], pieces)
    expected = []
    for b in range(4):
        for t in range(14):
            if context.boundary_BT[b, t] == 3:
                h, c = torch.zeros(5), torch.zeros(5)
            if context.mask_BT[b, t]:
                h, c = cell(lstm, x[b, t], h, c)
                expected.append(h)
    torch.testing.assert_close(h_n, torch.stack(expected))


def test_memory_of_many_blocks_equals_reading_slot_by_slot():
    torch.manual_seed(1)
    memory = FeatureMemory(n_latents=2, rank=3, window=5, d_in=1, k=2)
    torch.nn.init.normal_(memory.lag_bias)
    c = torch.randn(130, 3)
    position = torch.cat([torch.arange(61), torch.arange(4), torch.arange(65)])
    lag = torch.arange(5, 0, -1).expand(130, 5)
    rows = torch.arange(130)[:, None] - lag
    slots = memory.read(c, c[rows.clamp_min(0)], lag, lag <= position[:, None])
    torch.testing.assert_close(memory(c, position), slots)


# ---- memory and gate -------------------------------------------------------------------------


def test_attention_over_three_tokens_by_hand():
    memory = FeatureMemory(n_latents=1, rank=1, window=2, d_in=1, k=1)
    with torch.no_grad():
        memory.Q.fill_(1.0)
        memory.lag_bias.copy_(torch.tensor([0.5, -1.0]))
    c = torch.tensor([[1.0], [2.0], [3.0], [1.0]])
    m = memory(c, torch.tensor([0, 1, 2, 0]))[:, 0]  # the last token starts a new document
    e = math.exp
    expected = [
        0.0,
        1 * e(2 + 0.5) / (1 + e(2 + 0.5)),  # the empty slot weighs exp(0)
        (2 * e(6 + 0.5) + 1 * e(3 - 1)) / (1 + e(6 + 0.5) + e(3 - 1)),
        0.0,
    ]
    torch.testing.assert_close(m, torch.tensor(expected))


def test_hard_concrete_by_hand():
    gate = HardConcrete(4).eval()
    with torch.no_grad():
        gate.slow.copy_(torch.tensor([1e-9, 1 / 2, 1 / 12, 11 / 12]).logit() / gate.speed)
    # 1.2 s - 0.1 at s = 0+, 1/2, 1/12, 11/12
    torch.testing.assert_close(gate(), torch.tensor([0.0, 0.5, 0.0, 1.0]), atol=1e-6, rtol=0)
    open_now = gate.open_probability()
    assert open_now[1].item() == pytest.approx(1 / (1 + 11 ** (-2 / 3)))  # log(0.1/1.1) = -log 11
    torch.manual_seed(0)
    gate.train()
    draws = torch.stack([gate() for _ in range(4000)])
    torch.testing.assert_close((draws > 0).float().mean(0), open_now.detach(), atol=0.03, rtol=0)
    assert (draws[:, 1] == 1).float().mean() > 0.1  # closed and fully open have mass of their own
