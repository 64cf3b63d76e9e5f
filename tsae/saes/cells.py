r"""An LSTM over *pieces*: the valid tokens of one document inside one sequence.

State starts at zero in each piece and passes over masked tokens unchanged, so every piece can be
run beside every other.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tsae.sequences import DOCUMENT, FilledContext


class Pieces(NamedTuple):
    """The n valid tokens of a batch in reading order, and how they are packed.

    ``rows_n``: their index among the N = B * T tokens; ``position_n``: place inside the piece;
    ``order_n``: reading order -> packed order (first tokens of all pieces, then second …, longest
    piece first); ``sizes``: pieces still running at each position, on the CPU.
    """

    rows_n: Tensor
    position_n: Tensor
    order_n: Tensor
    sizes: Tensor


def pieces_of(context: FilledContext) -> Pieces:
    """Cut the valid tokens of a filled context into pieces at document starts."""
    rows_n = context.mask_BT.flatten().nonzero()[:, 0]
    document_n = (context.boundary_BT >= DOCUMENT).flatten().cumsum(0)[rows_n]
    _, piece_n, length_P = document_n.unique_consecutive(return_inverse=True, return_counts=True)
    start_P = length_P.cumsum(0) - length_P
    position_n = torch.arange(len(rows_n), device=rows_n.device) - start_P[piece_n]
    rank_P = torch.empty_like(length_P)
    by_length = length_P.argsort(descending=True, stable=True)
    rank_P[by_length] = torch.arange(len(length_P), device=rows_n.device)
    order_n = (position_n * max(len(length_P), 1) + rank_P[piece_n]).argsort()
    return Pieces(rows_n, position_n, order_n, torch.bincount(position_n).cpu())


class _Cells(torch.autograd.Function):
    """h [n, H] from the input's share of the gates [n, 4H] (i, f, o, g) and W_hh [4H, H]; packed.

    One product a step each way, and one for the whole gradient of W_hh; torch's own packed LSTM
    makes that gradient step by step on a CPU, at twice the time and more.
    """

    @staticmethod
    def forward(ctx, given_nG, W_hh, sizes, tbptt):
        H, W_HG = W_hh.shape[1], W_hh.t().contiguous()
        gates = given_nG.clone()
        h, c, squashed = (gates.new_empty(len(gates), H) for _ in range(3))
        parts = (gates, gates[:, : 3 * H], *gates.split(H, 1), h, c, squashed)
        before = None
        for now, ifo, i, f, o, g, h_t, c_t, squashed_t in zip(
            *(part.split(sizes) for part in parts), strict=True
        ):
            if before is not None:
                h_before, c_before = (part[: len(now)] for part in before)
                now.addmm_(h_before, W_HG)
            ifo.sigmoid_()
            g.tanh_()
            torch.mul(i, g, out=c_t)
            if before is not None:
                c_t.addcmul_(f, c_before)
            torch.tanh(c_t, out=squashed_t)
            torch.mul(o, squashed_t, out=h_t)
            before = h_t, c_t
        ctx.save_for_backward(gates, W_hh, h, c, squashed)
        ctx.sizes, ctx.tbptt = sizes, tbptt
        return h

    @staticmethod
    def backward(ctx, grad_nH):
        gates, W_hh, h, c, squashed = ctx.saved_tensors
        sizes, H = ctx.sizes, W_hh.shape[1]
        i, f, o, g = gates.split(H, 1)
        # Row of the token before in its piece, for all tokens but the first of each.
        size = torch.tensor(sizes, device=h.device)
        earlier = torch.arange(sizes[0], len(h), device=h.device)
        earlier -= size[:-1].repeat_interleave(size[1:])
        c_before = torch.cat([torch.zeros_like(c[: sizes[0]]), c[earlier]])
        of_ifg = [g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g)]
        slopes = torch.stack([*of_ifg, squashed * o * (1 - o)], 1)  # by i, f, g, and o
        slope_c = o * (1 - squashed * squashed)
        dgates = torch.empty_like(slopes)  # in the order i, f, g, o
        W_GH = torch.cat([W_hh[: 2 * H], W_hh[3 * H :], W_hh[2 * H : 3 * H]])
        dh, dc = grad_nH.clone(), torch.zeros_like(c)
        steps = [part.split(sizes) for part in (slopes, slope_c, f, dgates, dh, dc)]
        for t in range(len(sizes) - 1, -1, -1):
            slopes_t, slope_c_t, f_t, dgates_t, dh_t, dc_t = (part[t] for part in steps)
            dc_t.addcmul_(dh_t, slope_c_t)
            torch.mul(slopes_t[:, :3], dc_t[:, None], out=dgates_t[:, :3])
            torch.mul(slopes_t[:, 3], dh_t, out=dgates_t[:, 3])
            if t and not (ctx.tbptt and t % ctx.tbptt == 0):
                steps[4][t - 1][: sizes[t]].addmm_(dgates_t.flatten(1), W_GH)
                torch.mul(dc_t, f_t, out=steps[5][t - 1][: sizes[t]])
        dgates = dgates[:, [0, 1, 3, 2]].flatten(1)
        grad_W = dgates[sizes[0] :].t() @ h[earlier] if ctx.needs_input_grad[1] else None
        return dgates, grad_W, None, None


def run_lstm(lstm: nn.LSTM, x_nD: Tensor, pieces: Pieces, tbptt: int | None = None) -> Tensor:
    """h [n, H] of every valid token, all pieces side by side.

    With ``tbptt`` the gradient through the state is cut every so many tokens of a piece: same
    values, shorter gradients. Packing needs no padding: a step runs the pieces that reach it and
    no other. A CPU runs the cells above, a GPU cuDNN's.
    """
    if len(x_nD) == 0:
        return x_nD.new_empty(0, lstm.hidden_size)
    packed = x_nD[pieces.order_n]
    if x_nD.device.type == "cpu":
        i, f, g, o = torch.arange(4 * lstm.hidden_size).chunk(4)
        order = torch.cat([i, f, o, g])  # so that one call does all that is squashed alike
        W_ih, W_hh, b_ih, b_hh = lstm.all_weights[0]
        given = nn.functional.linear(packed, W_ih[order], (b_ih + b_hh)[order])
        h = _Cells.apply(given, W_hh[order], pieces.sizes.tolist(), tbptt)
    else:
        parts, state, done = [], None, 0
        for sizes in pieces.sizes.split(tbptt or len(pieces.sizes)):
            n, first = int(sizes.sum()), int(sizes[0])
            if state is not None:
                state = tuple(s[:, :first].detach().contiguous() for s in state)
            y, state = lstm(PackedSequence(packed[done : done + n], sizes), state)
            parts.append(y.data)
            done += n
        h = torch.cat(parts)
    back = torch.empty_like(pieces.order_n)
    back[pieces.order_n] = torch.arange(len(h), device=h.device)
    return h[back]
