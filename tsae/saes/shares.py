"""Activations in which every block of latents has its own share of k."""

from typing import Any

import torch
from torch import Tensor, nn

from tsae.kernels.selection import largest
from tsae.kernels.sparse import Selection, rows_to_crow
from tsae.saes.activations import BatchTopK


class ReservedTopK(nn.Module):
    """TopK in which each block of latents has its own share of k, and lends what it cannot use.

    A block first keeps its ``ks[g]`` largest positive entries. Slots that blocks leave unused, for
    want of positive entries, go to the largest entries left in any block. So a token has
    ``min(sum(ks), its positive entries)`` active latents, as under ``TopK``, and no block
    gets less than its share while it could use it.
    """

    def __init__(self, ks: list[int], sizes: list[int]):
        super().__init__()
        self.ks = ks
        self.sizes = sizes

    @torch.no_grad()
    def columns(self, pre_NF: Tensor) -> Tensor:
        """The chosen latents of every row [N, sum(ks)], in no order."""
        cols, start = [], 0
        for k, n in zip(self.ks, self.sizes, strict=True):
            cols.append(largest(pre_NF, min(k, n), start, start + n) + start)
            start += n
        cols_NK = torch.cat(cols, 1)
        missing = sum(self.ks) - cols_NK.shape[1]  # blocks smaller than their share
        unused_NK = nn.functional.pad(pre_NF.gather(1, cols_NK), (0, missing)) <= 0
        cols_NK = nn.functional.pad(cols_NK, (0, missing))
        short = unused_NK.any(1).nonzero()[:, 0]
        if short.numel() == 0:
            return cols_NK
        unused_RK, own_RK, rest_RF = unused_NK[short], cols_NK[short], pre_NF[short]
        row, slot = (~unused_RK).nonzero(as_tuple=True)
        rest_RF[row, own_RK[row, slot]] = float("-inf")
        lent = rest_RF.topk(int(unused_RK.sum(1).max()), dim=1).indices
        order_RK = (unused_RK.cumsum(1) - 1).clamp_min(0)
        cols_NK[short] = torch.where(unused_RK, lent.gather(1, order_RK), own_RK)
        return cols_NK

    def forward(self, pre_NF: Tensor, mask_N: Tensor) -> Tensor:
        cols_NK = self.columns(pre_NF)
        values = pre_NF.gather(1, cols_NK).clamp_min(0.0) * mask_N[:, None]
        return torch.zeros_like(pre_NF).scatter(1, cols_NK, values)

    def select(self, pre_NF: Tensor, mask_N: Tensor) -> Selection:
        """The chosen entries of every valid row, columns ascending."""
        rows = mask_N.nonzero()[:, 0]
        cols_NK = self.columns(pre_NF)[rows].sort(-1).values
        k = cols_NK.shape[1]
        return rows.repeat_interleave(k), cols_NK.flatten(), rows_to_crow(mask_N.long() * k)


class CappedTopK(BatchTopK):
    """The ``k * n`` largest of a batch of ``n`` tokens, of which a token has ``most`` at most.

    As of :class:`BatchTopK`, inference goes by a threshold, and so does not couple tokens.
    """

    def __init__(self, k: int, most: int, ema: float):
        super().__init__(k, ema)
        self.most = most

    def capped(self, pre_NF: Tensor) -> Tensor:
        """``pre`` with all but the ``most`` largest of each token out of reach."""
        cols = largest(pre_NF, self.most)
        far_NF = torch.full_like(pre_NF, float("-inf"))
        return far_NF.scatter(1, cols, pre_NF.gather(1, cols))

    def forward(self, pre_NF: Tensor, mask_N: Tensor, spare_N: Tensor | None = None) -> Tensor:
        return super().forward(self.capped(pre_NF), mask_N, spare_N)

    def select(self, pre_NF: Tensor, mask_N: Tensor, spare_N: Tensor | None = None) -> Selection:
        return super().select(self.capped(pre_NF), mask_N, spare_N)


class Grouped(nn.Module):
    """One activation for each block of latents, so that no block is starved of its share of k."""

    parts: Any

    def __init__(self, parts: list[nn.Module], sizes: list[int]):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.sizes = sizes

    def forward(self, pre_NF: Tensor, mask_N: Tensor) -> Tensor:
        blocks = pre_NF.split(self.sizes, dim=1)
        return torch.cat([a(p, mask_N) for a, p in zip(self.parts, blocks, strict=True)], dim=1)

    def select(self, pre_NF: Tensor, mask_N: Tensor) -> Selection:
        """The union of the blocks' selections, row-major."""
        rows, cols, start = [], [], 0
        blocks = pre_NF.split(self.sizes, dim=1)
        for part, block in zip(self.parts, blocks, strict=True):
            r, c, _ = part.select(block, mask_N)
            rows.append(r)
            cols.append(c + start)
            start += block.shape[1]
        all_rows, all_cols = torch.cat(rows), torch.cat(cols)
        order = torch.argsort(all_rows, stable=True)
        all_rows = all_rows[order]
        counts = torch.bincount(all_rows, minlength=len(pre_NF))
        return all_rows, all_cols[order], rows_to_crow(counts)

    def l0(self, pre_NF: Tensor, mask_N: Tensor) -> Tensor:
        """Sum of the blocks' mean L0 (``jumprelu`` alone has one)."""
        blocks = pre_NF.split(self.sizes, dim=1)
        pairs = zip(self.parts, blocks, strict=True)
        return torch.stack([a.l0(p, mask_N) for a, p in pairs]).sum()
