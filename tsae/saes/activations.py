r"""What turns pre-activations into codes: ``relu``, ``topk``, ``batchtopk``, ``jumprelu``.

Each is a module with ``forward(pre_NF, mask_N) -> z_NF`` (dense) and, where the code is sparse
by construction, ``select(pre_NF, mask_N)`` naming the active entries for the sparse kernels. A
token outside the mask has the code zero. ``pre`` is ReLU'd by every activation: codes are >= 0.
``spare_N`` [N] is how many entries more than its own a token may keep, where entries are counted.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tsae.kernels.selection import largest, positions
from tsae.kernels.sparse import Selection, rows_to_crow
from tsae.training import distributed

if TYPE_CHECKING:
    from tsae.saes.config import SAEConfig

NAMES = ("relu", "topk", "batchtopk", "jumprelu")


class ReLU(nn.Module):
    """``z = max(pre, 0)``; sparsity comes from the L1 term of the loss (Bricken et al. 2023)."""

    def forward(self, pre_NF: Tensor, mask_N: Tensor, spare_N: Tensor | None = None) -> Tensor:
        return pre_NF.clamp_min(0.0) * mask_N[:, None]


class Counting(nn.Module):
    """What keeps a number of latents: ``k``, and ``k_training`` in its place while training, where
    a schedule has set that."""

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        self.k_training: int | None = None

    @property
    def k_now(self) -> int:
        """The number that counts in the present mode."""
        return self.k_training or self.k if self.training else self.k


class TopK(Counting):
    """``z = relu(pre)`` on the ``k`` largest of each token, 0 elsewhere (Gao et al. 2024)."""

    def forward(self, pre_NF: Tensor, mask_N: Tensor, spare_N: Tensor | None = None) -> Tensor:
        cols = largest(pre_NF, min(self.k_now, pre_NF.shape[1]))
        values = pre_NF.gather(1, cols).clamp_min(0.0) * mask_N[:, None]
        z_NF = torch.zeros_like(pre_NF).scatter(1, cols, values)
        if spare_N is None:
            return z_NF
        rows, cols = self.beyond(pre_NF, mask_N, spare_N)
        return z_NF.index_put((rows, cols), pre_NF[rows, cols].clamp_min(0.0))

    def select(self, pre_NF: Tensor, mask_N: Tensor, spare_N: Tensor | None = None) -> Selection:
        """The ``k`` largest entries of every valid row, columns ascending."""
        rows, k = mask_N.nonzero()[:, 0], min(self.k_now, pre_NF.shape[1])
        cols, counts_N = largest(pre_NF, k)[rows].flatten(), mask_N.long() * k
        rows = rows.repeat_interleave(k)
        if spare_N is not None:
            more = self.beyond(pre_NF, mask_N, spare_N)
            rows, cols = (torch.cat(both) for both in zip((rows, cols), more, strict=True))
            order = (rows * pre_NF.shape[1] + cols).argsort()
            rows, cols = rows[order], cols[order]
            counts_N = counts_N + torch.bincount(more[0], minlength=len(pre_NF))
        return rows, cols, rows_to_crow(counts_N)

    def beyond(self, pre_NF: Tensor, mask_N: Tensor, spare_N: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of each valid token's ``spare_N`` largest entries after the first k."""
        rows = ((spare_N > 0) & mask_N).nonzero()[:, 0]
        width = int(spare_N[rows].max()) if rows.numel() else 0
        k, F = min(self.k_now, pre_NF.shape[1]), pre_NF.shape[1]
        cols_RS = pre_NF.detach()[rows].topk(min(k + width, F), dim=1).indices[:, k:]
        kept = torch.arange(cols_RS.shape[1], device=rows.device) < spare_N[rows, None]
        return rows.repeat_interleave(kept.sum(1)), cols_RS[kept]


def valid_above(pre_NF: Tensor, mask_N: Tensor, bound: Tensor | float) -> tuple[Tensor, Tensor]:
    """Flat positions, ascending, of the valid tokens' entries above ``bound``; their values."""
    flat = pre_NF.detach().reshape(-1)
    found = positions(flat > bound)
    if not mask_N.all():
        found = found[mask_N[found // pre_NF.shape[1]]]
    return found, flat[found]


def candidates(
    pre_NF: Tensor, mask_N: Tensor, keep: int, stride: int = 61
) -> tuple[Tensor, Tensor]:
    """The entries among which the ``keep`` largest positive ones are, as :func:`valid_above` gives them.

    From one entry in ``stride`` a bound is guessed that 1.5 keep of all exceed; where no more than
    ``keep`` do, all positive entries are candidates. So few have to be ordered, and the cut is
    exact.
    """
    sample, rank = pre_NF.detach().reshape(-1)[::stride].contiguous(), int(1.5 * keep / stride) + 1
    if rank < len(sample):
        bound = sample.kthvalue(len(sample) - rank).values.clamp_min(0.0)
        found = valid_above(pre_NF, mask_N, bound)
        if len(found[0]) > keep:
            return found
    return valid_above(pre_NF, mask_N, 0.0)


class BatchTopK(Counting):
    """The ``k * n`` largest of a batch of ``n`` tokens (Bussmann et al. 2024, 2412.06410).

    Inference must not couple tokens, so ``eval`` mode keeps ``pre > threshold``, where the
    threshold is the EMA (rate ``ema``) of the smallest value that training kept; before any
    training it is -1, and ``eval`` mode keeps the ``k`` largest of each token.
    """

    threshold: Tensor

    def __init__(self, k: int, ema: float = 0.99):
        super().__init__(k)
        self.ema = ema
        self.register_buffer("threshold", torch.tensor(-1.0))

    @property
    def untrained(self) -> bool:
        """Whether it is to encode as at inference before training has set the threshold."""
        return not self.training and bool(self.threshold < 0)

    def cut(self, pre_NF: Tensor, mask_N: Tensor, spare_N: Tensor | None = None) -> Tensor:
        """The value above which entries are kept; in training it also moves the threshold."""
        if not self.training:
            return self.threshold.clamp_min(0.0)
        keep = self.keep(mask_N, spare_N)
        return self.cut_among(candidates(pre_NF, mask_N, keep)[1], keep)

    def keep(self, mask_N: Tensor, spare_N: Tensor | None = None) -> int:
        """How many entries the whole batch, ranks together, keeps."""
        n = self.k_now * int(mask_N.sum())
        return distributed.count(n if spare_N is None else n + int(spare_N[mask_N].sum()))

    @torch.no_grad()
    def cut_among(self, values: Tensor, keep: int) -> Tensor:
        """The largest of positive ``values`` but ``keep``, or 0; it also moves the threshold.

        Under data parallelism the values of all ranks together are cut.
        """
        values = distributed.gathered(values)
        if keep == 0 or len(values) <= keep:
            cut = values.new_zeros(())
        else:
            cut = values.kthvalue(len(values) - keep).values
        first = self.threshold < 0
        moved = self.ema * self.threshold + (1.0 - self.ema) * cut.float()
        self.threshold.copy_(torch.where(first, cut.float(), moved))
        return cut

    def forward(self, pre_NF: Tensor, mask_N: Tensor, spare_N: Tensor | None = None) -> Tensor:
        if self.untrained:
            return TopK(self.k)(pre_NF, mask_N)
        keep = (pre_NF > self.cut(pre_NF, mask_N, spare_N)) & mask_N[:, None]
        return torch.where(keep, pre_NF, 0.0)

    def select(self, pre_NF: Tensor, mask_N: Tensor, spare_N: Tensor | None = None) -> Selection:
        """Entries above the cut, in row-major order."""
        if self.untrained:
            return TopK(self.k).select(pre_NF, mask_N)
        if self.training:
            keep = self.keep(mask_N, spare_N)
            flat, values = candidates(pre_NF, mask_N, keep)
            flat = flat[values > self.cut_among(values, keep)]
        else:
            flat, _ = valid_above(pre_NF, mask_N, self.cut(pre_NF, mask_N))
        rows, cols = flat // pre_NF.shape[1], flat % pre_NF.shape[1]
        return rows, cols, rows_to_crow(torch.bincount(rows, minlength=len(pre_NF)))


class _Step(torch.autograd.Function):
    """Heaviside step with the rectangle estimator for the threshold's gradient."""

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2).to(pre.dtype)
        return None, -(near * grad).sum(0) / ctx.bandwidth, None


class JumpReLU(nn.Module):
    """``z = pre * 1[pre > theta]`` with a learned theta per latent (Rajamanoharan et al. 2024).

    theta = exp(log_threshold). The step's pseudo-derivative is a rectangle of width
    ``bandwidth``; sparsity comes from the L0 term of the loss (:meth:`l0`).
    """

    def __init__(self, n: int, bandwidth: float = 0.1, start: float = 0.1):
        super().__init__()
        self.bandwidth = bandwidth
        self.log_threshold = nn.Parameter(torch.full((n,), float(torch.tensor(start).log())))

    def step(self, pre_NF: Tensor) -> Tensor:
        """``1[relu(pre) > theta]`` [N, F], differentiable in theta alone."""
        return _Step.apply(pre_NF.clamp_min(0.0), self.log_threshold.exp(), self.bandwidth)

    def forward(self, pre_NF: Tensor, mask_N: Tensor, spare_N: Tensor | None = None) -> Tensor:
        on = self.step(pre_NF)
        # The published estimator weighs the threshold's gradient by theta, not by pre.
        through_theta = self.log_threshold.exp().detach() * (on - on.detach())
        return (pre_NF.clamp_min(0.0) * on.detach() + through_theta) * mask_N[:, None]

    def l0(self, pre_NF: Tensor, mask_N: Tensor) -> Tensor:
        """Mean number of active latents per valid token, with the estimator's gradient."""
        return (self.step(pre_NF) * mask_N[:, None]).sum() / mask_N.sum().clamp_min(1)


def make(name: str, k: int, n_latents: int, cfg: "SAEConfig") -> nn.Module:
    """The activation ``name`` of ``n_latents`` latents, its thresholds as ``cfg`` says; raises
    ``ValueError`` naming the valid ones."""
    if name == "relu":
        return ReLU()
    if name == "topk":
        return TopK(k)
    if name == "batchtopk":
        return BatchTopK(k, cfg.threshold_ema)
    if name == "jumprelu":
        return JumpReLU(n_latents, cfg.bandwidth, cfg.threshold_start)
    raise ValueError(f"act={name!r} is unknown; choose one of {', '.join(NAMES)}.")
