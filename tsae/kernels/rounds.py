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
    def forward(ctx, reference, shape, rows, cols, crow, r_ND, W_dec):
        pattern = Codes(r_ND.new_empty(len(cols)), rows, cols, crow, shape)
        ctx.save_for_backward(rows, cols, crow, r_ND, W_dec)
        ctx.shape, ctx.reference = shape, reference
        return sparse._sampled(pattern, r_ND, W_dec.t(), reference)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, cols, crow, r_ND, W_dec = ctx.saved_tensors
        pattern = Codes(grad, rows, cols, crow, ctx.shape)
        need_r, need_W = ctx.needs_input_grad[5:]
        grad_r = sparse._matmul(pattern, grad, W_dec, ctx.reference) if need_r else None
        grad_W = sparse._transposed_matmul(pattern, grad, r_ND, ctx.reference) if need_W else None
        return None, None, None, None, None, grad_r, grad_W


def projected(codes: Codes, r_ND: Tensor, W_dec: Tensor, reference: bool | None = None) -> Tensor:
    """``r W_dec^T`` at the entries of ``codes`` alone [nnz]; differentiable once in r and W_dec."""
    if reference is None:
        reference = not sparse.has_sparse_products(W_dec.device)
    return _Project.apply(reference, codes.shape, codes.rows, codes.cols, codes.crow, r_ND, W_dec)


def corrected(
    codes: Codes, r_ND: Tensor, W_dec: Tensor, eta: Tensor, reference: bool | None = None
) -> Codes:
    """The codes after the joint correction; ``r_ND`` [N, d] is what they leave of the target."""
    step = projected(codes, r_ND, W_dec, reference)
    return codes._replace(values=torch.maximum(codes.values + eta * step, FLOOR * codes.values))


def dense_corrected(z_NF: Tensor, r_ND: Tensor, W_dec: Tensor, eta: Tensor) -> Tensor:
    """:func:`corrected` of dense codes: the reference."""
    moved = torch.maximum(z_NF + eta * (r_ND @ W_dec.t()), FLOOR * z_NF)
    return torch.where(z_NF > 0, moved, 0.0)


def merged(parts: Sequence[Codes], firsts: Sequence[int], n_latents: int) -> Codes:
    """The positive entries of several codes of the same tokens as one; latent i of a part is latent
    ``first + i`` of the whole, and no entry is in two parts."""
    values = torch.cat([part.values for part in parts])
    rows = torch.cat([part.rows for part in parts])
    cols = torch.cat([part.cols + first for part, first in zip(parts, firsts, strict=True)])
    kept = (values.detach() > 0).nonzero()[:, 0]
    order = kept[(rows[kept] * n_latents + cols[kept]).argsort()]
    rows, n = rows[order], parts[0].shape[0]
    crow = rows_to_crow(torch.bincount(rows, minlength=n))
    return Codes(values.index_select(0, order), rows, cols[order], crow, (n, n_latents))


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
    token. ``W_enc`` [d, F], ``W_dec`` [F, d], ``biases`` [F] each.
    """
    found: list[Codes] = []
    pres = []
    for i, (bias_F, act) in enumerate(zip(biases, acts, strict=True)):
        spare = spare_N if i == len(acts) - 1 else None

        def select(pre_NF: Tensor, act=act, spare=spare) -> sparse.Selection:
            for codes in found:
                taken = (codes.values > 0).nonzero()[:, 0]
                flat = codes.rows[taken] * pre_NF.shape[1] + codes.cols[taken]
                pre_NF.view(-1).index_fill_(0, flat, float("-inf"))
            return act.select(pre_NF, mask_N, spare)

        codes, pre_NF = sparse.encode(select, bias_F, [(r_ND, W_enc)])
        r_ND = r_ND - sparse.decode(codes, W_dec)
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
    """:func:`sparse_rounds` of dense codes [N, F], for every activation: the reference."""
    z_NF, pres = r_ND.new_zeros(len(r_ND), W_enc.shape[1]), []
    for i, (bias_F, act) in enumerate(zip(biases, acts, strict=True)):
        pre_NF = (r_ND @ W_enc + bias_F).masked_fill(z_NF > 0, float("-inf"))
        new_NF = act(pre_NF, mask_N, spare_N if i == len(acts) - 1 else None)
        r_ND = r_ND - new_NF @ W_dec
        z_NF = z_NF + new_NF
        pres.append(pre_NF)
    return z_NF, pres, r_ND
