r"""A leaky memory over time: the linear recurrence of adaptation.

    r[t] = keep[t] m[t-1]                                (what is remembered before token t)
    m[t] = delta r[t] + a[t]    if token t is valid,  else  m[t] = r[t]
    so that  r[t] = sum_{s<t} delta^n(s,t) a[s]

over the valid tokens s since the last reset (``keep`` = 0), n(s,t) being the number of valid
tokens between s and t. Its adjoint is the same recurrence backwards in time:

    lam[t] = keep[t+1] rho[t+1],   rho[t] = dr[t] + (delta if valid else 1) lam[t]
    da[t]  = valid[t] lam[t],      ddelta = sum over valid t of lam[t] r[t]

A step is one fused product, written where the next one reads it, and keeps no graph. A reset
multiplies by exactly 0: nothing leaks across it, not even rounding.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _run(
    a_BTF: Tensor, delta_F: Tensor, keep_BT: Tensor, valid_BT: Tensor, reverse: bool
) -> Tensor:
    """``r`` [B, T, F]; ``reverse`` runs from the last token, its input counts at every token."""
    valid_everywhere, kept_everywhere = valid_BT.all(0).tolist(), keep_BT.all(0).tolist()
    r_BTF = torch.empty_like(a_BTF, memory_format=torch.contiguous_format)
    steps = range(a_BTF.shape[1])[:: -1 if reverse else 1]
    r_BTF[:, steps[0]] = 0
    for t, after in zip(steps, steps[1:], strict=False):
        a_BF, decay, next_BF = a_BTF[:, t], delta_F, r_BTF[:, after]
        if not valid_everywhere[t]:
            valid_B1 = valid_BT[:, t, None]
            decay = torch.where(valid_B1, delta_F, 1.0)
            a_BF = a_BF if reverse else a_BF * valid_B1
        torch.addcmul(a_BF, r_BTF[:, t], decay, out=next_BF)
        if not kept_everywhere[after]:
            next_BF.mul_(keep_BT[:, after, None])
    return r_BTF


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a_BTF, delta_F, keep_BT, valid_BT):
        r_BTF = _run(a_BTF, delta_F, keep_BT, valid_BT, reverse=False)
        ctx.save_for_backward(r_BTF, delta_F, keep_BT, valid_BT)
        return r_BTF

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTF):
        r_BTF, delta_F, keep_BT, valid_BT = ctx.saved_tensors
        # The last token's memory is never read, so what follows it is a reset.
        after_BT = nn.functional.pad(keep_BT[:, 1:], (0, 1))
        lam_BTF = _run(grad_BTF, delta_F, after_BT, valid_BT, reverse=True)
        lam_BTF.flatten(0, 1).index_fill_(0, (~valid_BT).flatten().nonzero()[:, 0], 0.0)
        grad_TF = torch.zeros_like(lam_BTF[0])
        for lam_TF, r_TF in zip(lam_BTF, r_BTF, strict=True):
            grad_TF.addcmul_(lam_TF, r_TF)
        return lam_BTF, grad_TF.sum(0), None, None


def scan(a_BTF: Tensor, delta_F: Tensor, keep_BT: Tensor, valid_BT: Tensor) -> Tensor:
    """``r`` [B, T, F] of the module's equations, differentiable once in ``a_BTF`` and ``delta_F``.

    ``a_BTF`` input, ``delta_F`` in [0, 1]; ``keep_BT`` bool, False where memory is forgotten
    before the token; ``valid_BT`` bool, False where the token leaves memory as it is.
    """
    return _Scan.apply(a_BTF, delta_F, keep_BT, valid_BT)
