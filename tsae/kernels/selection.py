r"""The largest entries of each row, entries above a bound, entries by column: compiled for the CPU.

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
BLOCK = 4096
"""Entries that are looked at before the positions among them are written."""
MARGIN = 0.93
"""Share of the last row's least entry from which entries are looked at in the next."""


@compiled
def place_flagged(flag_F, eight_W, hit_W, first, place_N, m):
    """Writes ``first`` plus the position of every byte of ``flag_F`` that is 1, ascending, from place
    ``m`` on; returns the place behind the last.

    ``eight_W``: the bytes by words of eight, few of which are not 0. Positions are written always
    and kept by counting, since a branch would be guessed wrong.
    """
    hits = 0
    for w in range(len(eight_W)):
        hit_W[hits] = w
        hits += eight_W[w] != 0
    for h in range(hits):
        for i in range(8 * hit_W[h], 8 * hit_W[h] + 8):
            place_N[m] = first + i
            m += flag_F[i]
    return m


@compiled
def not_below(row_F, bound, flag_F, eight_W, hit_W, kept_F):
    """Positions of the entries that are not below ``bound`` (NaN among them), and their number.

    ``flag_F`` bytes, a multiple of eight and 0 beyond the row; ``eight_W`` the same by words.
    """
    for i in range(len(row_F)):
        flag_F[i] = not row_F[i] < bound
    return place_flagged(flag_F, eight_W, hit_W, 0, kept_F, 0)


@compiled
def largest_of_rows(x_NF, start, stop, cols_NK):
    """Columns ascending, counted from ``start``, of the K largest entries of ``x[n, start:stop]``.

    Returns the rows in which there is no such set: ties for the last place, or NaN. The last of
    the K in one row says where to look in the next, and only what is found there is ordered.
    """
    N, K = cols_NK.shape
    heap_K = np.empty(K, x_NF.dtype)  # the K largest so far, the least of them first
    flag_F = np.zeros((stop - start + 7) // 8 * 8, np.uint8)
    eight_W = flag_F.view(np.uint64)
    hit_W, kept_F = np.empty(len(eight_W), np.int64), np.empty(len(flag_F), np.int64)
    undecided = []
    guess = -np.inf
    for n in range(N):
        row_F = x_NF[n, start:stop]
        m = not_below(row_F, np.float32(guess), flag_F, eight_W, hit_W, kept_F)
        while m < K:
            guess = guess * 0.8 if 0.1 < guess < np.inf else -np.inf
            m = not_below(row_F, np.float32(guess), flag_F, eight_W, hit_W, kept_F)
        heap_K[:] = -np.inf
        for j in range(m):
            value = row_F[kept_F[j]]
            if value > heap_K[0]:
                at, child = 0, 1
                while child < K:
                    if child + 1 < K and heap_K[child + 1] < heap_K[child]:
                        child += 1
                    if heap_K[child] >= value:
                        break
                    heap_K[at] = heap_K[child]
                    at, child = child, 2 * child + 1
                heap_K[at] = value
        least, found = heap_K[0], 0
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


def is_compiled_for(x: Tensor) -> bool:
    """Whether the compiled loops read ``x``, and are faster than torch's parallel ones."""
    fits = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
    few = torch.get_num_threads() <= MOST_THREADS
    return fits and few and not torch.compiler.is_compiling()


def largest(x_NF: Tensor, k: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Columns [N, k] of the ``k`` largest entries of ``x[:, start:stop]`` in each row, ascending
    and counted from ``start``."""
    x_NF, stop = x_NF.detach(), x_NF.shape[1] if stop is None else stop
    if not is_compiled_for(x_NF):
        return plain_largest(x_NF, k, start, stop)
    cols_NK = torch.empty(len(x_NF), k, dtype=torch.int64)
    undecided = largest_of_rows(x_NF.numpy(), start, stop, cols_NK.numpy())
    if undecided:
        cols_NK[undecided] = plain_largest(x_NF[undecided], k, start, stop)
    return cols_NK


def plain_largest(x_NF: Tensor, k: int, start: int, stop: int) -> Tensor:
    """:func:`largest` by ``topk``: the reference."""
    return x_NF[:, start:stop].topk(k, dim=1, sorted=False).indices.sort(1).values


@compiled
def place_above(x_N, bound, place_N):
    """Writes the positions of the entries above ``bound``, ascending; returns their number."""
    flag_B = np.zeros(BLOCK, np.uint8)
    eight_W, hit_W = flag_B.view(np.uint64), np.empty(BLOCK // 8, np.int64)
    m = 0
    for start in range(0, len(x_N), BLOCK):
        part = x_N[start : start + BLOCK]
        for i in range(len(part)):
            flag_B[i] = part[i] > bound
        flag_B[len(part) :] = 0
        m = place_flagged(flag_B, eight_W, hit_W, start, place_N, m)
    return m


def above(x_N: Tensor, bound: Tensor | float) -> Tensor:
    """Positions, ascending, of the entries of ``x`` above ``bound``; few entries should be."""
    if not is_compiled_for(x_N):
        return (x_N > bound).nonzero()[:, 0]
    place_N = torch.empty(len(x_N) + 1, dtype=torch.int64)  # what is not written costs no memory
    return place_N[: place_above(x_N.numpy(), np.float32(float(bound)), place_N.numpy())].clone()


@compiled
def count_and_place(cols, begin_F, order):
    """Counting sort: where each column's entries begin, and the entries in that order."""
    for col in cols:
        begin_F[col + 1] += 1
    for f in range(1, len(begin_F)):
        begin_F[f] += begin_F[f - 1]
    at_F = begin_F[:-1].copy()
    for i in range(len(cols)):
        order[at_F[cols[i]]] = i
        at_F[cols[i]] += 1


def by_column(cols: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """Entries in the order of their columns, entries of one column as they came, and offsets
    [n_latents + 1] of the columns in it."""
    order, begin_F = torch.empty_like(cols), torch.zeros(n_latents + 1, dtype=torch.int64)
    count_and_place(cols.numpy(), begin_F.numpy(), order.numpy())
    return order, begin_F
