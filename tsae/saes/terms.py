"""Terms of the loss that several dictionaries have: sparsity, AuxK for the dead, births."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tsae.saes.encoding import Encoding
from tsae.sequences import DOCUMENT, FilledContext
from tsae.training import distributed

if TYPE_CHECKING:
    from tsae.saes.base import SAE


def sparsity(
    sae: "SAE",
    name: str,
    act: Any,
    z_NF: Tensor,
    read_NF: Tensor,
    enc: Encoding,
    k: int,
    weight: Tensor,
) -> Tensor:
    """``weight`` times mean L1 / d (relu) or L0 / k (jumprelu) of codes ``z`` that ``act``, of that
    ``name``, made of ``read``; the weight rises with the warm-up, and ``match_l0`` then steers it to an
    L0 of k."""
    cfg = sae.cfg
    warm = min(1.0, sae.progress / cfg.sparsity_warmup) if cfg.sparsity_warmup else 1.0
    now = weight.clone() * warm
    if name == "relu":
        penalty = z_NF.sum() / enc.n / cfg.d_in
    else:
        penalty = act.l0(read_NF, enc.mask_N) / k
    if sae.training and cfg.match_l0 and warm == 1:
        with torch.no_grad():
            l0 = distributed.mean((z_NF > 0).count_nonzero() / enc.n, enc.mask_N.sum())
            weight.mul_((l0 / k).log().clamp(-1, 1).mul(0.02).exp())
    return now * penalty


def auxk(
    sae: "SAE",
    pre_NX: Tensor,
    W_XD: Tensor,
    error_ND: Tensor,
    mask_N: Tensor,
    link: Callable[[Tensor], Tensor],
) -> Tensor:
    """AuxK (Gao et al. 2024): the k_aux strongest dead latents reconstruct the error.

    ``aux * |e - e_hat|^2 / |e|^2`` with k_aux = d/2 at most. ``pre`` and ``W``: pre-activations and
    decoder rows of the dead; ``link`` makes codes of the former.
    """
    n_aux = min(max(sae.cfg.d_in // 2, 1), pre_NX.shape[1])
    values, cols = pre_NX.topk(n_aux, dim=1)
    z_NX = torch.zeros_like(pre_NX).scatter(1, cols, link(values))
    missed = (error_ND - z_NX @ W_XD) * mask_N[:, None]
    energy = distributed.pooled(error_ND.square().sum(), mask_N.sum())
    ratio = missed.square().sum() / energy.clamp_min(1e-8)
    return sae.cfg.aux * ratio.nan_to_num(0.0)


def births(enc: Encoding) -> Tensor:
    """``mean_t sum_i relu(z_i[t] - z_i[t-1]) / d``; t - 1 is the valid token before in the document,
    whose first token is left out."""
    now, before = successive(enc.context)
    z_NF = enc.z_NF
    risen = (z_NF[now] - z_NF[before]).relu().sum()
    return risen / (enc.n * enc.target.shape[1])


def successive(context: FilledContext) -> tuple[Tensor, Tensor]:
    """The rows of the valid tokens that follow another in their document, and of those before."""
    rows_n = context.mask_BT.flatten().nonzero()[:, 0]
    document_n = (context.boundary_BT >= DOCUMENT).flatten().cumsum(0)[rows_n]
    follows_n = document_n[1:] == document_n[:-1]
    return rows_n[1:][follows_n], rows_n[:-1][follows_n]


@torch.no_grad()
def count_idle(idle_F: Tensor, fired_F: Tensor, n_tokens: int) -> None:
    """Add the batch to each latent's tokens since it last fired."""
    fired_F = distributed.anywhere(fired_F)
    idle_F.add_(distributed.count(n_tokens)).masked_fill_(fired_F, 0)
