r"""The leaky mean of a document so far: what remembers which latents have been spoken for.

    m[t] = sum_j delta^j e[t-j] / sum_j delta^j

over the valid tokens of the document up to and with t, j counting valid tokens. Unlike a moving
average that starts at 0 it is unbiased from the first token on. An invalid token leaves it as it
is, and before the first valid token it is 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tsae.kernels.scan import scan


class LeakySum(NamedTuple):
    """What the leaky mean remembers between tokens: ``sum_BF`` = sum_j delta^j e[t-j], and
    ``count_B``, the valid tokens since the document's start."""

    sum_BF: Tensor
    count_B: Tensor


def leaky_mean(
    e_BTF: Tensor,
    delta_F: Tensor,
    keep_BT: Tensor,
    valid_BT: Tensor,
    before: LeakySum | None = None,
) -> tuple[Tensor, LeakySum]:
    """``m`` [B, T, F] and what is remembered after the last token.

    ``e_BTF`` evidence, ``delta_F`` in (0, 1); ``keep_BT`` bool, False where a document starts;
    ``valid_BT`` bool; ``before``: what is remembered from earlier calls. Differentiable once in
    ``e_BTF`` and ``delta_F``.
    """
    n_BT = valid_BT.long().cumsum(1)
    at_start_BT = torch.where(keep_BT, 0, n_BT - valid_BT.long()).cummax(1).values
    n_BT = n_BT - at_start_BT
    r_BTF = scan(e_BTF, delta_F, keep_BT, valid_BT)
    if before is not None:
        still_BT = keep_BT.long().cumprod(1)
        lived_BT = still_BT * (valid_BT.long().cumsum(1) - valid_BT.long())
        inherited_BTF = before.sum_BF[:, None] * delta_F ** lived_BT[..., None]
        r_BTF = r_BTF + still_BT[..., None] * inherited_BTF
        n_BT = n_BT + still_BT * before.count_B[:, None]
    valid_BT1 = valid_BT[..., None]
    sum_BTF = torch.where(valid_BT1, torch.addcmul(e_BTF, r_BTF, delta_F), r_BTF)
    most = int(n_BT.max()) if before is not None else e_BTF.shape[1]
    n_T = torch.arange(1, most + 1, device=e_BTF.device)[:, None]
    share_TF = (1.0 - delta_F) / (1.0 - delta_F**n_T)
    m_BTF = sum_BTF * share_TF[(n_BT - 1).clamp_min(0)]
    return m_BTF, LeakySum(sum_BTF[:, -1], n_BT[:, -1])


def leaky_mean_reference(
    e_BTF: Tensor, delta_F: Tensor, keep_BT: Tensor, valid_BT: Tensor
) -> Tensor:
    """:func:`leaky_mean` one token at a time in plain torch."""
    total_BF = weight_BF = torch.zeros_like(e_BTF[:, 0])
    means = []
    for e_BF, keep_B, valid_B in zip(e_BTF.unbind(1), keep_BT.t(), valid_BT.t(), strict=True):
        total_BF, weight_BF = keep_B[:, None] * total_BF, keep_B[:, None] * weight_BF
        valid_B1 = valid_B[:, None]
        total_BF = torch.where(valid_B1, delta_F * total_BF + e_BF, total_BF)
        weight_BF = torch.where(valid_B1, delta_F * weight_BF + 1.0, weight_BF)
        means.append(total_BF / weight_BF.clamp_min(1.0))
    return torch.stack(means, 1)
