"""What smoothing alone, or a bag of tokens, would give: averaged residuals, shuffled windows."""

from typing import Any

import torch
from torch import Tensor

from lab.measures.reading import Encoder, pieces
from tsae.saes.base import SAEOutput
from tsae.saes.config import require
from tsae.sequences import SequenceContext
from tsae.store.reading import Batch

DECAYS = (0.5, 0.8, 0.9, 0.95, 0.98)
"""Of the moving averages that every dictionary's readings, and the ceilings, are tried with."""


def averaged(batch: Batch, decay: float) -> Tensor:
    """x̄ [B, T, D]: m[t] = Σ_s δ^(t−s) x[s] / Σ_s δ^(t−s) over the valid tokens s ≤ t of t's document
    in the sequence; masked tokens stay as they are."""
    keep_BT = torch.where(batch.context.boundary_BT >= 3, 0.0, decay)
    mask_BT = batch.context.mask_BT.float()
    keep_BT = torch.where(mask_BT > 0, keep_BT, torch.where(keep_BT > 0, 1.0, 0.0))
    out_BTD = torch.empty_like(batch.x_BTD)
    m_BD, weight_B = torch.zeros_like(batch.x_BTD[:, 0]), torch.zeros_like(mask_BT[:, 0])
    for t in range(mask_BT.shape[1]):
        weight_B = keep_BT[:, t] * weight_B + mask_BT[:, t]
        m_BD = keep_BT[:, t, None] * m_BD + mask_BT[:, t, None] * batch.x_BTD[:, t]
        out_BTD[:, t] = m_BD / weight_B.clamp_min(1e-30)[:, None]
    return torch.where(mask_BT[..., None] > 0, out_BTD, batch.x_BTD)


class ShuffledNull:
    """The parent on tokens whose order within a window is lost.

    Each piece (valid tokens of one document, see :class:`lab.measures.reading.Tokens`) is cut into
    windows of ``window`` tokens, the last one shorter. x is permuted inside each window, encoded,
    and codes and reconstructions are put back in place: a token keeps its own content, and sees a
    context with the same tokens in another order. A static SAE is left unchanged. The permutation
    depends on ``seed`` and the position alone. Raises ValueError when window < 1.
    """

    def __init__(self, sae: Encoder, window: int = 8, seed: int = 0):
        require(window >= 1, "window", window, "a whole number from 1")
        self.sae, self.window, self.seed = sae, window, seed
        self.cfg, self.groups, self.name = sae.cfg, sae.groups, f"shuffled({sae.name})"
        self.meta = {**sae.meta, "shuffle_window": window, "shuffle_seed": seed}

    def permutation(
        self, context: SequenceContext | None, shape: tuple[int, ...], device: Any
    ) -> Tensor:
        """[B, T] positions: entry t is the token that is moved to t."""
        b, t = shape
        mask_BT, boundary_BT = context or SequenceContext()
        mask_BT = torch.ones(b, t, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
        boundary_BT = torch.zeros(b, t) if boundary_BT is None else boundary_BT
        piece_BT = pieces(mask_BT, boundary_BT).cpu()
        time_T = torch.arange(t)
        new_BT = torch.ones(b, t, dtype=torch.bool)
        new_BT[:, 1:] = piece_BT[:, 1:] != piece_BT[:, :-1]
        start_BT = torch.where(new_BT, time_T, 0).cummax(1).values
        opens_BT = ((time_T - start_BT) % self.window == 0) | ~mask_BT.cpu()
        key_T = torch.rand(t, generator=torch.Generator().manual_seed(self.seed))
        return (opens_BT.cumsum(1) + key_T.double()).argsort(1).to(device)

    def __call__(self, x_BTD: Tensor, context: SequenceContext | None = None) -> SAEOutput:
        order = self.permutation(context, x_BTD.shape[:2], x_BTD.device)
        back = order.argsort(1)
        out = self.sae(_take(x_BTD, order), context)
        return out._replace(z=_take(out.z, back), x_hat=_take(out.x_hat, back))

    def encode(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        return self(x_BTD, context).z

    def decode(self, z_BTF: Tensor) -> Tensor:
        return self.sae.decode(z_BTF)


def _take(a_BTX: Tensor, order_BT: Tensor) -> Tensor:
    return a_BTX.gather(1, order_BT[..., None].expand(-1, -1, a_BTX.shape[-1]))
