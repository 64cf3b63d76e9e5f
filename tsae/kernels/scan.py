r"""A leaky memory over time: the linear recurrence of adaptation, as a chunked scan.

    r[t] = keep[t] m[t-1]                                (what is remembered before token t)
    m[t] = delta r[t] + a[t]    if token t is valid,  else  m[t] = r[t]
    so that  r[t] = sum_{s<t} delta^n(s,t) a[s]

over the valid tokens s since the last reset (``keep`` = 0), n(s,t) being the number of valid
tokens between s and t. Its adjoint is the same recurrence backwards in time:

    lam[t] = keep[t+1] rho[t+1],   rho[t] = dr[t] + (delta if valid else 1) lam[t]
    da[t]  = valid[t] lam[t],      ddelta = sum over valid t of lam[t] r[t]

:func:`scan` cuts T into C chunks of L tokens: a first sweep runs all chunks at once from an empty
memory and keeps their ends alone; the C ends are chained; a second sweep starts each chunk from
what it inherits. That is 2L + C steps in place of T, which counts where a step is a launch (CUDA).
On CPU a sweep is bound by memory, so one chunk, read once, is fastest. Either way a step is one
fused product and keeps no graph. A reset multiplies by exactly 0: nothing leaks across it, not
even rounding.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def scan_reference(a_BTF: Tensor, delta_F: Tensor, keep_BT: Tensor, valid_BT: Tensor) -> Tensor:
    """``r`` [B, T, F] of the module's equations, one token at a time in plain torch.

    ``a_BTF`` input, ``delta_F`` in [0, 1]; ``keep_BT`` bool, False where memory is forgotten
    before the token; ``valid_BT`` bool, False where the token leaves memory as it is.
    """
    m_BF = torch.zeros_like(a_BTF[:, 0])
    before = []
    for a_BF, keep_B, valid_B in zip(a_BTF.unbind(1), keep_BT.t(), valid_BT.t(), strict=True):
        r_BF = keep_B[:, None] * m_BF
        before.append(r_BF)
        m_BF = torch.where(valid_B[:, None], delta_F * r_BF + a_BF, r_BF)
    return torch.stack(before, 1)


def _sweep(
    r_BCF: Tensor,
    a_BCLF: Tensor,
    delta_F: Tensor,
    keep_BCL: Tensor,
    valid_BCL: Tensor,
    steps: range,
    masked_input: bool,
    r_BCLF: Tensor | None,
) -> Tensor:
    """Run the recurrence over ``steps`` of every chunk from ``r`` at the first of them.

    Fills ``r_BCLF`` if it is given; returns the memory after the last step.
    """
    valid_everywhere = valid_BCL.flatten(0, 1).all(0).tolist()
    kept_everywhere = keep_BCL.flatten(0, 1).all(0).tolist()
    m_BCF = torch.empty_like(r_BCF)
    if r_BCLF is not None:
        r_BCLF[:, :, steps[0]] = r_BCF
    for i, after in zip(steps, [*steps[1:], None], strict=True):
        # Where nothing is forgotten, m[t] is r[t+1]: it is written where that belongs.
        next_BCF = m_BCF if r_BCLF is None or after is None else r_BCLF[:, :, after]
        a_BCF, decay = a_BCLF[:, :, i], delta_F
        if not valid_everywhere[i]:
            valid_BC1 = valid_BCL[:, :, i, None]
            decay = torch.where(valid_BC1, delta_F, 1.0)
            a_BCF = a_BCF * valid_BC1 if masked_input else a_BCF
        torch.addcmul(a_BCF, r_BCF, decay, out=next_BCF)
        if after is not None and not kept_everywhere[after]:
            next_BCF.mul_(keep_BCL[:, :, after, None])
        r_BCF = next_BCF
    return m_BCF


def _chunked(
    a_BTF: Tensor,
    delta_F: Tensor,
    keep_BT: Tensor,
    valid_BT: Tensor,
    chunk: int,
    reverse: bool,
) -> Tensor:
    """``r`` [B, T, F]; ``reverse`` runs from the last token, its input counts at every token."""
    B, T, F = a_BTF.shape
    C = -(-T // chunk)
    if padding := C * chunk - T:
        a_BTF = nn.functional.pad(a_BTF, (0, 0, 0, padding))
        keep_BT = nn.functional.pad(keep_BT, (0, padding))
        valid_BT = nn.functional.pad(valid_BT, (0, padding))
    a, keep, valid = (tensor.unflatten(1, (C, chunk)) for tensor in (a_BTF, keep_BT, valid_BT))
    steps, order = range(chunk), range(C)
    if reverse:
        steps, order = steps[::-1], order[::-1]
    sweep = (a, delta_F, keep, valid, steps, not reverse)
    start_BCF = a.new_zeros(B, C, F)
    if C > 1:
        end_BCF = _sweep(start_BCF, *sweep, None)
        kept_BC = keep[:, :, steps[1:]].all(2)
        through_BCF = kept_BC[..., None] * delta_F ** valid.sum(2)[..., None]
        inherited_BF = a.new_zeros(B, F)
        for c in order:
            torch.mul(inherited_BF, keep[:, c, steps[0], None], out=start_BCF[:, c])
            inherited_BF = torch.addcmul(end_BCF[:, c], through_BCF[:, c], start_BCF[:, c])
    r = torch.empty_like(a, memory_format=torch.contiguous_format)
    _sweep(start_BCF, *sweep, r)
    return r.flatten(1, 2)[:, :T]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a_BTF, delta_F, keep_BT, valid_BT, chunk):
        r_BTF = _chunked(a_BTF, delta_F, keep_BT, valid_BT, chunk, reverse=False)
        ctx.save_for_backward(r_BTF, delta_F, keep_BT, valid_BT)
        ctx.chunk = chunk
        return r_BTF

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTF):
        r_BTF, delta_F, keep_BT, valid_BT = ctx.saved_tensors
        # The last token's memory is never read, so what follows it is a reset.
        after_BT = nn.functional.pad(keep_BT[:, 1:], (0, 1))
        lam_BTF = _chunked(grad_BTF, delta_F, after_BT, valid_BT, ctx.chunk, reverse=True)
        lam_BTF.flatten(0, 1).index_fill_(0, (~valid_BT).flatten().nonzero()[:, 0], 0.0)
        grad_TF = torch.zeros_like(lam_BTF[0])
        for lam_TF, r_TF in zip(lam_BTF, r_BTF, strict=True):
            grad_TF.addcmul_(lam_TF, r_TF)
        return lam_BTF, grad_TF.sum(0), None, None, None


def scan(
    a_BTF: Tensor,
    delta_F: Tensor,
    keep_BT: Tensor,
    valid_BT: Tensor,
    chunk: int | None = None,
) -> Tensor:
    """``r`` [B, T, F] as :func:`scan_reference`, in 2 ``chunk`` + T / ``chunk`` steps.

    ``chunk`` None is T on CPU and 16 elsewhere. Differentiable once, in ``a_BTF`` and
    ``delta_F``. Raises ``ValueError`` on a wrong shape or a chunk below 1.
    """
    B, T, F = a_BTF.shape
    for name, tensor, shape in (
        ("delta_F", delta_F, (F,)),
        ("keep_BT", keep_BT, (B, T)),
        ("valid_BT", valid_BT, (B, T)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}.")
    if chunk is None:
        chunk = T if a_BTF.device.type == "cpu" else 16
    if chunk < 1:
        raise ValueError(f"chunk={chunk} is not allowed; chunk must be at least 1.")
    return _Scan.apply(a_BTF, delta_F, keep_BT, valid_BT, min(chunk, T))
