r"""Codes found in rounds, each on what the ones before left, and one joint correction of them all.

    pre_i = r_{i-1} W_enc + b_i,   S_i = act_i(pre_i without S_1 .. S_{i-1}),   z_{S_i} = relu(pre_i)
    r_i   = r_{i-1} - z_{S_i} W_dec,                                               r_0 given
    z    <- max(z + eta (r W_dec^T), z / 20)  on the active entries                (:func:`corrected`)

This is matching pursuit (Mallat & Zhang 1993) with a learned encoder and several latents a round;
the correction is one gradient step of the error in the codes, eta being learned, and keeps every
active code positive. The sparse forms cost O(N k d) beside one product with the encoder a round;
:func:`dense_rounds` and :func:`dense_corrected` are the same in plain torch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsae.kernels import sparse
from tsae.kernels.sparse import Codes, rows_to_crow

FLOOR = 0.05
"""Share of itself that a code keeps at least when it is corrected."""


class _Project(torch.autograd.Function):
    @staticmethod
    @sparse.in_float32
    def forward(ctx, shape, rows, cols, crow, r_ND, W_dec):
        ctx.save_for_backward(rows, cols, crow, r_ND, W_dec)
        ctx.shape = shape
        pattern = Codes(r_ND.new_empty(len(cols)), rows, cols, crow, shape)
        return sparse._sampled(pattern, r_ND, W_dec.t())

    @staticmethod
    @sparse.as_forward
    @once_differentiable
    def backward(ctx, grad):
        rows, cols, crow, r_ND, W_dec = ctx.saved_tensors
        pattern = Codes(grad, rows, cols, crow, ctx.shape)
        need_r, need_W = ctx.needs_input_grad[4:]
        grad_r = sparse._matmul(pattern, grad, W_dec) if need_r else None
        grad_W = sparse._transposed_matmul(pattern, grad, r_ND) if need_W else None
        return None, None, None, None, grad_r, grad_W


def projected(codes: Codes, r_ND: Tensor, W_dec: Tensor) -> Tensor:
    """``r W_dec^T`` at the entries of ``codes`` alone [nnz]; differentiable once in r and W_dec."""
    return _Project.apply(codes.shape, codes.rows, codes.cols, codes.crow, r_ND, W_dec)


def corrected(codes: Codes, r_ND: Tensor, W_dec: Tensor, eta: Tensor) -> Codes:
    """The codes after the joint correction; ``r_ND`` [N, d] is what they leave of the target."""
    moved = codes.values + eta * projected(codes, r_ND, W_dec)
    return codes._replace(values=torch.maximum(moved, FLOOR * codes.values))


def dense_corrected(z_NF: Tensor, r_ND: Tensor, W_dec: Tensor, eta: Tensor) -> Tensor:
    """:func:`corrected` of dense codes: the reference."""
    moved = torch.maximum(z_NF + eta * (r_ND @ W_dec.t()), FLOOR * z_NF)
    return torch.where(z_NF > 0, moved, 0.0)


def merged(parts: Sequence[Codes]) -> Codes:
    """The positive entries of several codes of the same tokens and latents as one; no entry may be
    in two of them."""
    values = torch.cat([part.values for part in parts])
    rows, cols = torch.cat([p.rows for p in parts]), torch.cat([p.cols for p in parts])
    N, F = parts[0].shape
    kept = (values.detach() > 0).nonzero()[:, 0]
    order = kept[(rows[kept] * F + cols[kept]).argsort()]
    crow = rows_to_crow(torch.bincount(rows[order], minlength=N))
    return Codes(values.index_select(0, order), rows[order], cols[order], crow, (N, F))


def subtracted(r_ND: Tensor, codes: Codes, W_dec: Tensor) -> Tensor:
    """``r - z W_dec``; the sign is given to the few values, not to the gradient of the many."""
    return r_ND + sparse.decode(codes._replace(values=-codes.values), W_dec)


def sparse_rounds(
    r_ND: Tensor,
    W_enc: Tensor,
    W_dec: Tensor,
    biases: Sequence[Tensor],
    acts: Sequence[Any],
    mask_N: Tensor,
    spare_N: Tensor | None = None,
) -> tuple[list[Codes], list[Tensor], Tensor]:
    """Codes and pre-activations of every round, and what they leave of ``r`` [N, d].

    ``acts``: activations with ``select``; the last one may keep ``spare_N`` entries more of each
    token. ``W_dec`` [F, d]; ``W_enc`` [d, G] and the ``biases`` [G] are of the last G latents, which
    alone are chosen from.
    """
    F, first = len(W_dec), len(W_dec) - W_enc.shape[1]
    found: list[Codes] = []
    pres = []
    for i, (bias_F, act) in enumerate(zip(biases, acts, strict=True)):
        spare = spare_N if i == len(acts) - 1 else None

        def select(pre_NF: Tensor, act=act, spare=spare) -> sparse.Selection:
            for codes in found:
                taken = (codes.values > 0).nonzero()[:, 0]
                flat = codes.rows[taken] * pre_NF.shape[1] + codes.cols[taken] - first
                pre_NF.view(-1).index_fill_(0, flat, float("-inf"))
            return act.select(pre_NF, mask_N, spare)

        codes, pre_NF = sparse.encode(select, bias_F, [(r_ND, W_enc)])
        codes = codes._replace(cols=codes.cols + first, shape=(len(r_ND), F))
        r_ND = subtracted(r_ND, codes, W_dec)
        found.append(codes)
        pres.append(pre_NF)
    return found, pres, r_ND


def dense_rounds(
    r_ND: Tensor,
    W_enc: Tensor,
    W_dec: Tensor,
    biases: Sequence[Tensor],
    acts: Sequence[Any],
    mask_N: Tensor,
    spare_N: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """:func:`sparse_rounds` of dense codes [N, G], for every activation: the reference."""
    z_NF, pres = r_ND.new_zeros(len(r_ND), W_enc.shape[1]), []
    W_dec = W_dec[-W_enc.shape[1] :]
    for i, (bias_F, act) in enumerate(zip(biases, acts, strict=True)):
        pre_NF = (r_ND @ W_enc + bias_F).masked_fill(z_NF > 0, float("-inf"))
        new_NF = act(pre_NF, mask_N, spare_N if i == len(acts) - 1 else None)
        r_ND = r_ND - new_NF @ W_dec
        z_NF = z_NF + new_NF
        pres.append(pre_NF)
    return z_NF, pres, r_ND
