r"""Which latents are on when one that is on leaves only for one that is clearly stronger.

    S[t] = the k largest positive entries of m[t] / (rho if on before, else 1)

over the valid tokens of a document; nothing is on before it. With rho = 1 these are the k largest of
each token; the smaller rho, the fewer latents are born.
"""

import numpy as np
import torch
from torch import Tensor

from tsae.kernels.compiled import compiled


@compiled
def _held(m_BTG, k, rho, keep_BT, valid_BT, on_BG, on_BTG):
    B, T, G = m_BTG.shape
    score_G = np.empty(G, m_BTG.dtype)
    for b in range(B):
        for t in range(T):
            if not keep_BT[b, t]:
                on_BG[b, :] = False
            if not valid_BT[b, t]:
                continue
            for g in range(G):
                score_G[g] = m_BTG[b, t, g] / (rho if on_BG[b, g] else 1)
                on_BG[b, g] = False
            for _ in range(k):
                best = 0
                for g in range(1, G):
                    if score_G[g] > score_G[best]:
                        best = g
                if score_G[best] <= 0:
                    break
                on_BG[b, best] = on_BTG[b, t, best] = True
                score_G[best] = 0


def held(
    m_BTG: Tensor,
    k: int,
    rho: float,
    keep_BT: Tensor,
    valid_BT: Tensor,
    before_BG: Tensor | None = None,
    reference: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """``S`` as bool [B, T, G], and which latents are on after the last token [B, G].

    ``keep_BT`` bool, False where a document starts; ``valid_BT`` bool: nothing is on at other
    tokens; ``before_BG``: what earlier calls left on. ``reference`` forces plain torch.
    """
    B, T, G = m_BTG.shape
    m_BTG = m_BTG.detach()
    on_BTG = torch.zeros((B, T, G), dtype=torch.bool, device=m_BTG.device)
    on_BG = on_BTG[:, 0].clone() if before_BG is None else before_BG.clone()
    if reference is None:
        reference = m_BTG.device.type != "cpu" or m_BTG.element_size() < 4
    if not reference:
        given = keep_BT.numpy(), valid_BT.numpy(), on_BG.numpy(), on_BTG.numpy()
        _held(m_BTG.contiguous().numpy(), min(k, G), np.float32(rho), *given)
        return on_BTG, on_BG
    for t in range(T):
        on_BG = on_BG & keep_BT[:, t, None]
        score_BG = m_BTG[:, t] / torch.where(on_BG, rho, 1.0)
        cols_BK = score_BG.topk(min(k, G), 1).indices
        new_BG = torch.zeros_like(on_BG).scatter(1, cols_BK, True) & (score_BG > 0)
        on_BG = torch.where(valid_BT[:, t, None], new_BG, on_BG)
        on_BTG[:, t] = on_BG & valid_BT[:, t, None]
    return on_BTG, on_BG
