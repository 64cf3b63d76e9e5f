"""Nulls: what smoothing alone, or a bag of tokens, would give.

Each wraps an SAE and looks like one (``encode``, ``decode``, call, ``cfg``, ``groups``, ``name``).
A temporal variant has to beat both, or its gain is smoothing or aggregation.
"""

from typing import Any

import torch
from torch import Tensor

from lab.measures.reading import Tokens, pieces
from lab.measures.truth.recovery import SCALES, Recovery

DECAYS = (0.5, 0.8, 0.9)


def rank_mask(z_BTF: Tensor, l0_BT: Tensor) -> Tensor:
    """Keep the ``l0_BT`` largest codes of each token (ties: lowest id), zero the rest."""
    width = int(l0_BT.max()) if l0_BT.numel() else 0
    if width == 0:
        return torch.zeros_like(z_BTF)
    value, latent = z_BTF.topk(width, dim=-1)
    keep = torch.arange(width, device=z_BTF.device) < l0_BT[..., None]
    return torch.zeros_like(z_BTF).scatter(-1, latent, value * keep)


class EmaNull:
    r"""The parent's codes filtered by an exponential moving average; nothing is learned.

    m[t] = δ m[t−1] + (1 − δ) z[t], with m = 0 before a document's first token (boundary level 3);
    masked tokens leave m as it is. Then m[t] is cut to its l largest entries, l being the number
    of latents the parent has active at t: L0 matches the parent's at every token. δ = 0 is the
    parent. Causal, since z[t] is.

    Raises ValueError unless 0 ≤ decay < 1.
    """

    def __init__(self, sae: Any, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; allowed are 0 ≤ decay < 1")
        self.sae, self.decay = sae, decay
        self.cfg, self.groups, self.name = sae.cfg, sae.groups, f"ema({sae.name})"
        self.meta = {**sae.meta, "ema_decay": decay}

    def filter(self, z_BTF: Tensor, context: Any = None) -> Tensor:
        """The parent's codes → filtered and re-sparsified codes of the same shape."""
        b, t, _ = z_BTF.shape
        mask_BT = boundary_BT = None
        if context is not None:
            mask_BT, boundary_BT = context.mask_BT, context.boundary_BT
        keep_BT = torch.full((b, t), self.decay, dtype=z_BTF.dtype, device=z_BTF.device)
        add_BT = torch.full_like(keep_BT, 1 - self.decay)
        if mask_BT is not None:
            keep_BT = torch.where(mask_BT.bool(), keep_BT, 1.0)
            add_BT = add_BT * mask_BT
        if boundary_BT is not None:
            keep_BT = torch.where(boundary_BT >= 3, 0.0, keep_BT)
        m_BTF = torch.empty_like(z_BTF)
        m_BF = torch.zeros_like(z_BTF[:, 0])
        for i in range(t):
            m_BF = keep_BT[:, i, None] * m_BF + add_BT[:, i, None] * z_BTF[:, i]
            m_BTF[:, i] = m_BF
        return rank_mask(m_BTF, (z_BTF != 0).sum(-1))

    def encode(self, x_BTD: Tensor, context: Any = None) -> Tensor:
        return self.filter(self.sae.encode(x_BTD, context), context)

    def decode(self, z_BTF: Tensor) -> Tensor:
        return self.sae.decode(z_BTF)

    def __call__(self, x_BTD: Tensor, context: Any = None) -> Any:
        out = self.sae(x_BTD, context)
        z = self.filter(out.z, context)
        return out._replace(z=z, x_hat=sum(out.beside.values(), self.sae.decode(z)))


class ShuffledNull:
    """The parent on tokens whose order within a window is lost.

    Each piece (valid tokens of one document, see :class:`lab.measures.tokens.Tokens`) is cut into
    windows of ``window`` tokens, the last one shorter. x is permuted inside each window, encoded,
    and codes and reconstructions are put back in place: a token keeps its own content, and sees a
    context with the same tokens in another order. A static SAE is left unchanged. The permutation
    depends on ``seed`` and the position alone.

    Raises ValueError when window < 1.
    """

    def __init__(self, sae: Any, window: int = 8, seed: int = 0):
        if window < 1:
            raise ValueError(f"window is {window}; allowed are whole numbers from 1")
        self.sae, self.window, self.seed = sae, window, seed
        self.cfg, self.groups, self.name = sae.cfg, sae.groups, f"shuffled({sae.name})"
        self.meta = {**sae.meta, "shuffle_window": window, "shuffle_seed": seed}

    def permutation(self, context: Any, shape: torch.Size, device: Any) -> Tensor:
        """[B, T] positions: entry t is the token that is moved to t."""
        b, t = shape
        mask_BT = boundary_BT = None
        if context is not None:
            mask_BT, boundary_BT = context.mask_BT, context.boundary_BT
        mask_BT = torch.ones(shape, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
        boundary_BT = torch.zeros(shape) if boundary_BT is None else boundary_BT
        piece_BT = pieces(mask_BT, boundary_BT).cpu()
        time_T = torch.arange(t)
        new_BT = torch.ones(shape, dtype=torch.bool)
        new_BT[:, 1:] = piece_BT[:, 1:] != piece_BT[:, :-1]
        start_BT = torch.where(new_BT, time_T, 0).cummax(1).values
        opens_BT = ((time_T - start_BT) % self.window == 0) | ~mask_BT.cpu()
        key_T = torch.rand(t, generator=torch.Generator().manual_seed(self.seed))
        return (opens_BT.cumsum(1) + key_T.double()).argsort(1).to(device)

    def __call__(self, x_BTD: Tensor, context: Any = None) -> Any:
        order = self.permutation(context, x_BTD.shape[:2], x_BTD.device)
        back = order.argsort(1)
        out = self.sae(_take(x_BTD, order), context)
        return out._replace(z=_take(out.z, back), x_hat=_take(out.x_hat, back))

    def encode(self, x_BTD: Tensor, context: Any = None) -> Tensor:
        order = self.permutation(context, x_BTD.shape[:2], x_BTD.device)
        return _take(self.sae.encode(_take(x_BTD, order), context), order.argsort(1))

    def decode(self, z_BTF: Tensor) -> Tensor:
        return self.sae.decode(z_BTF)


def _take(a_BTX: Tensor, order_BT: Tensor) -> Tensor:
    return a_BTX.gather(1, order_BT[..., None].expand(-1, -1, a_BTX.shape[-1]))


@torch.no_grad()
def best_ema(
    sae: Any,
    store: Any,
    *,
    decays: tuple[float, ...] = DECAYS,
    limit_tokens: int = 60_000,
    batch_size: int = 16,
    device: str = "cpu",
) -> tuple[EmaNull, dict[float, float]]:
    """The strongest EMA null: the decay with the best recovery on training documents.

    For each decay, latents are chosen on half of the documents of the train split (even id // 2,
    since a world may give its splits the even and the odd ids) and scored on the other half (mean
    F1 over the three scales). Test documents play no part. Returns the null
    and the score of every decay.
    """
    recoveries = {decay: Recovery(store.label_specs, max_length=store.seq_len) for decay in decays}
    nulls = {decay: EmaNull(sae, decay) for decay in decays}
    for even in (True, False):
        seen = 0
        for batch in store.batches("train", batch_size):
            batch = batch.to(device)
            seen += int(batch.context.mask_BT.sum())
            half = (batch.doc_BT // 2 % 2 == 0) == even
            z_BTF = sae.encode(batch.x_BTD, batch.context)
            for decay, null in nulls.items():
                t = Tokens.of(batch, null.filter(z_BTF, batch.context), batch.x_BTD)
                t = t.where(half.reshape(-1)[batch.context.mask_BT.reshape(-1).bool()])
                recoveries[decay].select(t) if even else recoveries[decay].update(t)
            if seen >= limit_tokens:
                break
    score = {decay: mean_f1(recovery.rows()) for decay, recovery in recoveries.items()}
    return nulls[max(decays, key=lambda decay: score[decay])], score


def mean_f1(rows: list[dict[str, Any]]) -> float:
    """Mean of ``recovery_f1`` over the scales present."""
    values = [r["value"] for r in rows if r["metric"] == "recovery_f1" and r["group"] in SCALES]
    return sum(values) / len(values) if values else float("nan")
