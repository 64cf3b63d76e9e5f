r"""The leaky mean of a document so far: what remembers which latents have been spoken for.

    s[t] = delta s[t-1] + e[t],   n[t] = n[t-1] + 1       (both 0 before a document)
    m[t] = s[t] share[n[t]],      share[n] = 1 / (prior + sum_{j<n} delta^j)

over the valid tokens of the document; an invalid token leaves all as it is. ``prior`` is how many
tokens without evidence every document is thought to begin with: with 0 the mean is as sure after
one token as after a hundred, above 0 it rises as evidence comes in. The adjoint runs backwards:

    lam[t] = dm[t] share[n[t]] + (delta if t+1 is valid else 1) lam[t+1]     (0 across a start)
    de[t]  = lam[t] if t is valid,   ddelta = sum lam[t] s[t-1],   dshare[n] = sum dm[t] s[t]

On the CPU both are one compiled loop over the memory, elsewhere a scan (:mod:`tsae.kernels.scan`).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsae.kernels.compiled import compiled
from tsae.kernels.scan import scan


class LeakySum(NamedTuple):
    """What is remembered between tokens: ``sum_BF`` s, and ``count_B`` int64 n."""

    sum_BF: Tensor
    count_B: Tensor


@compiled
def _forward(e_BTF, delta_F, share_NF, keep_BT, valid_BT, sum_BF, n_BT, s_BTF, m_BTF):
    B, T, F = e_BTF.shape
    for b in range(B):
        for t in range(T):
            n = n_BT[b, t]
            for f in range(F):
                s = sum_BF[b, f] if t == 0 else s_BTF[b, t - 1, f]
                if not keep_BT[b, t]:
                    s *= 0
                if valid_BT[b, t]:
                    s = s * delta_F[f] + e_BTF[b, t, f]
                s_BTF[b, t, f] = s
                m_BTF[b, t, f] = s * share_NF[n - 1, f] if n > 0 else 0.0


@compiled
def _backward(
    grad_BTF, delta_F, share_NF, keep_BT, valid_BT, sum_BF, n_BT, s_BTF, de_BTF, ddelta_F, dshare_NF
):
    B, T, F = grad_BTF.shape
    learns = len(dshare_NF) > 0
    for b in range(B):
        for t in range(T - 1, -1, -1):
            n = n_BT[b, t]
            for f in range(F):
                lam = grad_BTF[b, t, f] * share_NF[n - 1, f] if n > 0 else grad_BTF[b, t, f] * 0
                if t + 1 < T and keep_BT[b, t + 1]:
                    # de holds lam itself until its own token has been passed on.
                    lam += de_BTF[b, t + 1, f] * (delta_F[f] if valid_BT[b, t + 1] else 1)
                de_BTF[b, t, f] = lam
                if learns:
                    before = s_BTF[b, t - 1, f] if t > 0 else sum_BF[b, f]
                    if valid_BT[b, t] and keep_BT[b, t]:
                        ddelta_F[f] += lam * before
                    if n > 0:
                        dshare_NF[n - 1, f] += grad_BTF[b, t, f] * s_BTF[b, t, f]
            if t + 1 < T and not valid_BT[b, t + 1]:
                de_BTF[b, t + 1, :] = 0
        if not valid_BT[b, 0]:
            de_BTF[b, 0, :] = 0


class _Leaky(torch.autograd.Function):
    @staticmethod
    def forward(ctx, e_BTF, delta_F, share_NF, keep_BT, valid_BT, sum_BF, n_BT):
        e_BTF = e_BTF.contiguous()
        s_BTF, m_BTF = torch.empty_like(e_BTF), torch.empty_like(e_BTF)
        given = delta_F, share_NF, keep_BT, valid_BT, sum_BF, n_BT, s_BTF
        _forward(e_BTF.numpy(), *(tensor.numpy() for tensor in given), m_BTF.numpy())
        ctx.save_for_backward(*given)
        ctx.mark_non_differentiable(s_BTF)
        return m_BTF, s_BTF

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTF, _):
        delta_F, share_NF = ctx.saved_tensors[:2]
        learns = ctx.needs_input_grad[1]
        de_BTF, ddelta_F = torch.empty_like(grad_BTF), torch.zeros_like(delta_F)
        dshare_NF = torch.zeros_like(share_NF[: len(share_NF) if learns else 0])
        tensors = grad_BTF.contiguous(), *ctx.saved_tensors, de_BTF, ddelta_F, dshare_NF
        _backward(*(tensor.numpy() for tensor in tensors))
        return de_BTF, *((ddelta_F, dshare_NF) if learns else (None, None)), None, None, None, None


def leaky_mean(
    e_BTF: Tensor,
    delta_F: Tensor,
    keep_BT: Tensor,
    valid_BT: Tensor,
    before: LeakySum | None = None,
    prior_F: Tensor | float = 0.0,
    reference: bool | None = None,
) -> tuple[Tensor, LeakySum]:
    """``m`` [B, T, F] and what is remembered after the last token.

    ``e_BTF`` evidence, ``delta_F`` in (0, 1); ``keep_BT`` bool, False where a document starts;
    ``valid_BT`` bool; ``before``: what is remembered from earlier calls; ``prior_F`` >= 0.
    Differentiable once in ``e_BTF`` and ``delta_F``. ``reference`` forces (True) or forbids the
    scan in place of the compiled loop.
    """
    most = e_BTF.shape[1] + (0 if before is None else int(before.count_B.max()))
    if before is None:
        sum_BF = e_BTF.new_zeros(e_BTF.shape[0], e_BTF.shape[2])
        before = LeakySum(sum_BF, valid_BT.new_zeros(len(valid_BT), dtype=torch.long))
    added_BT = valid_BT.long().cumsum(1)
    at_start_BT = torch.where(keep_BT, 0, added_BT - valid_BT.long()).cummax(1).values
    still_BT = keep_BT.long().cumprod(1)
    n_BT = added_BT - at_start_BT + still_BT * before.count_B[:, None]
    n_N1 = torch.arange(1, most + 1, device=e_BTF.device)[:, None]
    share_NF = 1.0 / (prior_F + (1.0 - delta_F**n_N1) / (1.0 - delta_F))
    if reference is None:
        reference = e_BTF.device.type != "cpu" or e_BTF.element_size() < 4
    if not reference:
        m_BTF, s_BTF = _Leaky.apply(
            e_BTF, delta_F, share_NF, keep_BT, valid_BT, before.sum_BF, n_BT
        )
        return m_BTF, LeakySum(s_BTF[:, -1], n_BT[:, -1])
    r_BTF = scan(e_BTF, delta_F, keep_BT, valid_BT)
    lived_BT = still_BT * (added_BT - valid_BT.long())
    inherited_BTF = before.sum_BF[:, None] * delta_F ** lived_BT[..., None]
    r_BTF = r_BTF + still_BT[..., None] * inherited_BTF
    s_BTF = torch.where(valid_BT[..., None], torch.addcmul(e_BTF, r_BTF, delta_F), r_BTF)
    m_BTF = s_BTF * share_NF[(n_BT - 1).clamp_min(0)] * (n_BT > 0)[..., None]
    return m_BTF, LeakySum(s_BTF[:, -1], n_BT[:, -1])
