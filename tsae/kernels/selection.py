r"""The largest entries of each row, entries above a bound, entries by column: quick on the CPU.

All equal plain torch to the bit: :func:`largest` names what ``topk`` names, and a row in which
several entries tie for the last place is left to ``topk`` itself, whose choice among them is its
own; :func:`by_column` is a stable sort.
"""

import numpy as np
import torch
from torch import Tensor

from tsae.kernels.compiled import compiled

MOST_THREADS = 3
"""Threads beyond which torch's own parallel ``topk`` is as fast as one compiled loop."""
MARGIN = 0.93
"""Share of the last row's least entry from which entries are looked at in the next."""


@compiled
def not_below(row_F, bound, kept_F):
    """Writes the positions of the entries that are not below ``bound``, NaN among them; returns
    their number. Positions are written always, since a branch would be guessed wrong."""
    m = 0
    for i in range(len(row_F)):
        kept_F[m] = i
        m += not row_F[i] < bound
    return m


@compiled
def largest_of_rows(x_NF, start, stop, cols_NK):
    """Columns ascending, counted from ``start``, of the K largest entries of ``x[n, start:stop]``.

    Returns the rows in which there is no such set: ties for the last place, or NaN. The last of
    the K in one row says where to look in the next, and only what is found there is ordered.
    """
    N, K = cols_NK.shape
    kept_F = np.empty(stop - start + 1, np.int64)
    undecided = []
    guess = -np.inf
    for n in range(N):
        row_F = x_NF[n, start:stop]
        m = not_below(row_F, np.float32(guess), kept_F)
        while m < K:
            guess = guess * 0.8 if 0.1 < guess < np.inf else -np.inf
            m = not_below(row_F, np.float32(guess), kept_F)
        least, found = np.partition(row_F[kept_F[:m]], m - K)[m - K], 0
        for j in range(m):
            value = row_F[kept_F[j]]
            if value >= least:
                if found < K:
                    cols_NK[n, found] = kept_F[j]
                found += 1
            elif not value < least:
                found += K + 1  # NaN, the largest of all to topk
        if found != K:
            undecided.append(n)
        guess = MARGIN * least
    return undecided


def largest(x_NF: Tensor, k: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Columns [N, k] of the ``k`` largest entries of ``x[:, start:stop]`` in each row, ascending
    and counted from ``start``."""
    x_NF, stop = x_NF.detach(), x_NF.shape[1] if stop is None else stop
    fits = x_NF.dtype == torch.float32 and x_NF.device.type == "cpu" and x_NF.is_contiguous()
    if not fits or torch.get_num_threads() > MOST_THREADS or torch.compiler.is_compiling():
        return plain_largest(x_NF, k, start, stop)
    cols_NK = torch.empty(len(x_NF), k, dtype=torch.int64)
    undecided = largest_of_rows(x_NF.numpy(), start, stop, cols_NK.numpy())
    if undecided:
        cols_NK[undecided] = plain_largest(x_NF[undecided], k, start, stop)
    return cols_NK


def plain_largest(x_NF: Tensor, k: int, start: int, stop: int) -> Tensor:
    """:func:`largest` by ``topk``: the reference."""
    return x_NF[:, start:stop].topk(k, dim=1, sorted=False).indices.sort(1).values


def positions(mask: Tensor) -> Tensor:
    """Where a flat mask is True, ascending; NumPy is three times as fast as torch on a CPU."""
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero()[:, 0]


@compiled
def count_and_place(cols, begin_F, order):
    """Counting sort: where each column's entries begin, and the entries in that order."""
    for col in cols:
        begin_F[col + 1] += 1
    begin_F[:] = begin_F.cumsum()
    at_F = begin_F[:-1].copy()
    for i in range(len(cols)):
        order[at_F[cols[i]]] = i
        at_F[cols[i]] += 1


def by_column(cols: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """Entries in the order of their columns, entries of one column as they came, and offsets
    [n_latents + 1] of the columns in it."""
    if cols.device.type != "cpu":
        begin_F = torch.bincount(cols, minlength=n_latents).cumsum(0)
        return cols.argsort(stable=True), torch.nn.functional.pad(begin_F, (1, 0))
    order, begin_F = torch.empty_like(cols), torch.zeros(n_latents + 1, dtype=torch.int64)
    count_and_place(cols.numpy(), begin_F.numpy(), order.numpy())
    return order, begin_F
