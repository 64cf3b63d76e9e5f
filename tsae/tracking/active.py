"""The active latents of each token in M slots, and those of the token ``lag`` positions before."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.kernels.sparse import Codes
from tsae.tracking.quantise import remembered


class Active(NamedTuple):
    """Codes of N tokens in M slots: ``ids_NM`` int64, ``values_NM``; value 0: an empty slot.

    Within a token no latent has two slots that are not empty.
    """

    ids_NM: Tensor
    values_NM: Tensor


class Lagged(NamedTuple):
    """n pairs of tokens ``lag`` positions apart in one document: the later rows, both codes."""

    lag: int
    rows_n: Tensor
    now: Active
    past: Active


@torch.no_grad()
def strongest(codes: Codes | Tensor, m: int) -> Active:
    """The ``m`` largest codes of each token in falling order, from sparse or dense [N, F] codes."""
    m = min(m, codes.shape[1])
    if not isinstance(codes, Codes):
        values, ids = codes.detach().topk(m, dim=1)
        return Active(ids, values)
    counts_N = codes.crow.diff()
    width = max(int(counts_N.max()), m) if len(counts_N) else m
    slot = torch.arange(len(codes.rows), device=codes.rows.device) - codes.crow[codes.rows]
    ids = codes.cols.new_zeros(codes.shape[0], width)
    values = codes.values.new_zeros(codes.shape[0], width)
    ids[codes.rows, slot] = codes.cols
    values[codes.rows, slot] = codes.values.detach()
    values, chosen = values.topk(m, dim=1)
    return Active(ids.gather(1, chosen), values)


def history(active: Active, document_N: Tensor, window: int, bits: int = 32) -> Iterator[Lagged]:
    """For each lag 1 … ``window``, all pairs of tokens inside one document.

    ``document_N`` numbers documents of consecutive rows; past codes are as ``bits`` remember them.
    """
    ids, values = active
    kept = remembered(values, bits)
    for lag in range(1, min(window, len(ids) - 1) + 1):
        rows = (document_N[lag:] == document_N[:-lag]).nonzero()[:, 0] + lag
        then = rows - lag
        yield Lagged(lag, rows, Active(ids[rows], values[rows]), Active(ids[then], kept[then]))
