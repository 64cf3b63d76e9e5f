r"""The recurrent parts of the ``lstm`` variant: pieces of documents, memory, sparse gate.

A *piece* is the run of valid tokens of one document inside one sequence. State starts at zero in
each piece and passes over masked tokens unchanged, so every piece can be run beside every other.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tsae.saes.base import DOCUMENT, SAE, SequenceContext, Stream


class Pieces(NamedTuple):
    """The n valid tokens of a batch in reading order, and how they are packed.

    ``rows_n``: their index among the N = B * T tokens; ``position_n``: place inside the piece;
    ``order_n``: reading order -> packed order (first tokens of all pieces, then second …, longest
    piece first); ``sizes``: pieces still running at each position, on the CPU.
    """

    rows_n: Tensor
    position_n: Tensor
    order_n: Tensor
    sizes: Tensor


def pieces_of(context: SequenceContext) -> Pieces:
    """Cut the valid tokens of a filled context into pieces at document starts."""
    rows_n = context.mask_BT.flatten().nonzero()[:, 0]
    document_n = (context.boundary_BT >= DOCUMENT).flatten().cumsum(0)[rows_n]
    _, piece_n, length_P = document_n.unique_consecutive(return_inverse=True, return_counts=True)
    start_P = length_P.cumsum(0) - length_P
    position_n = torch.arange(len(rows_n), device=rows_n.device) - start_P[piece_n]
    rank_P = torch.empty_like(length_P)
    by_length = length_P.argsort(descending=True, stable=True)
    rank_P[by_length] = torch.arange(len(length_P), device=rows_n.device)
    order_n = (position_n * max(len(length_P), 1) + rank_P[piece_n]).argsort()
    return Pieces(rows_n, position_n, order_n, torch.bincount(position_n).cpu())


def run_lstm(lstm: nn.LSTM, x_nD: Tensor, pieces: Pieces, tbptt: int | None = None) -> Tensor:
    """h [n, H] of every valid token, all pieces in one call per ``tbptt`` tokens.

    With ``tbptt`` the state is detached every so many tokens of a piece: same values, shorter
    gradients. Packing needs no padding: a step runs the pieces that reach it and no other.
    """
    out = x_nD.new_empty(len(x_nD), lstm.hidden_size)
    if len(x_nD) == 0:
        return out
    packed = x_nD[pieces.order_n]
    parts, state, done = [], None, 0
    for sizes in pieces.sizes.split(tbptt or len(pieces.sizes)):
        n, first = int(sizes.sum()), int(sizes[0])
        if state is not None:
            state = tuple(s[:, :first].detach().contiguous() for s in state)
        y, state = lstm(PackedSequence(packed[done : done + n], sizes), state)
        parts.append(y.data)
        done += n
    h = torch.cat(parts)
    back = torch.empty_like(pieces.order_n)
    back[pieces.order_n] = torch.arange(len(h), device=h.device)
    return h[back]


class FeatureMemory(nn.Module):
    """Attention over the projected static codes of the last ``window`` valid tokens of a document.

    ``c[t] = s[t] P``,  ``m[t] = sum_j a_j c[t-j]``,  ``a = softmax_j(c[t] Q . c[t-j] / sqrt(r) +
    b_j)`` over j = 1 … window and an empty slot of score 0, so that it may attend to nothing.
    P [F, r], Q [r, r], b [window].
    """

    def __init__(self, n_latents: int, rank: int, window: int, d_in: int):
        super().__init__()
        self.window = window
        # |s| is about sqrt(d), so the projections start with entries of about 1.
        self.P = nn.Parameter(torch.randn(n_latents, rank) / d_in**0.5)
        self.Q = nn.Parameter(torch.randn(rank, rank) / rank**0.5)
        self.lag_bias = nn.Parameter(torch.zeros(window))

    def weights(self, c_nR: Tensor, past_nWR: Tensor, lag_nW: Tensor, held_nW: Tensor) -> Tensor:
        """Attention [n, W] over the slots; ``lag_nW`` 1 … window, ``held_nW`` False where empty."""
        scores = torch.einsum("nr,nwr->nw", c_nR @ self.Q, past_nWR) / c_nR.shape[1] ** 0.5
        scores = (scores + self.lag_bias[lag_nW - 1]).masked_fill(~held_nW, float("-inf"))
        return nn.functional.pad(scores, (0, 1)).softmax(-1)[:, :-1]

    def read(self, c_nR: Tensor, past_nWR: Tensor, lag_nW: Tensor, held_nW: Tensor) -> Tensor:
        """m [n, r] for the current c and the slots of the past."""
        return torch.einsum("nw,nwr->nr", self.weights(c_nR, past_nWR, lag_nW, held_nW), past_nWR)

    def forward(self, c_nR: Tensor, position_n: Tensor) -> Tensor:
        """m [n, r] of all valid tokens, given their place inside their piece."""
        w = self.window
        past = nn.functional.pad(c_nR, (0, 0, w, 0)).unfold(0, w, 1)[:-1].transpose(1, 2)
        lag = torch.arange(w, 0, -1, device=c_nR.device).expand(len(c_nR), w)
        return self.read(c_nR, past, lag, position_n[:, None] >= lag)


class HardConcrete(nn.Module):
    """Gates in [0, 1] that can be exactly 0 or 1 (Louizos et al. 2018, arXiv 1712.01312).

    Training: ``s = sigmoid((log u - log(1-u) + log_alpha) / beta)``, u uniform, one draw a call.
    Evaluation: ``s = sigmoid(log_alpha)``. Both: ``gate = clamp(s (zeta - gamma) + gamma, 0, 1)``.
    """

    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    speed = 20.0

    def __init__(self, n: int, start: float = 2.0):
        super().__init__()
        # Adam moves a weight by about lr a step; a gate that could close only after log_alpha has
        # gone from 2 to -2.4 in such steps would never do so in a run.
        self.slow = nn.Parameter(torch.full((n,), start / self.speed))

    @property
    def log_alpha(self) -> Tensor:
        """``speed`` times the stored parameter."""
        return self.speed * self.slow

    def forward(self) -> Tensor:
        """The gates [n]."""
        logit = self.log_alpha
        if self.training:
            u = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
            logit = (u.log() - (1 - u).log() + logit) / self.beta
        return (torch.sigmoid(logit) * (self.zeta - self.gamma) + self.gamma).clamp(0.0, 1.0)

    def open_probability(self) -> Tensor:
        """P(gate > 0) [n] = sigmoid(log_alpha - beta log(-gamma / zeta)); its sum is the L0."""
        shift = self.beta * torch.tensor(-self.gamma / self.zeta).log()
        return torch.sigmoid(self.log_alpha - shift.to(self.log_alpha.device))


class Recurrence(nn.Module):
    """Everything temporal about the ``lstm`` variant; what is absent (size 0) has no parameters."""

    def __init__(self, d: int, F: int, hidden: int, window: int, rank: int, decoder: bool):
        super().__init__()
        self.lstm = nn.LSTM(d, hidden, batch_first=True) if hidden else None
        self.memory = FeatureMemory(F, rank, window, d) if window else None
        width = hidden + (rank if window else 0)
        self.W = nn.Parameter(torch.randn(width, F) / width**0.5)  # W_h above W_m
        self.rho = nn.Parameter(torch.zeros(F))
        self.gate = HardConcrete(F)
        if decoder:
            self.W_out = nn.Parameter(torch.zeros(hidden, d))
            self.out_gate = nn.Linear(hidden, 1)

    def weight(self) -> Tensor:
        """[W_h; W_m] with column i scaled by rho_i gate_i."""
        return self.W * (self.rho * self.gate())

    def predicted(self, before_NH: Tensor) -> Tensor:
        """The decoder's recurrent part ``sigmoid(h u + c) h W_out`` [N, d], from h[t-1]."""
        return torch.sigmoid(self.out_gate(before_NH)) * (before_NH @ self.W_out)


class RecurrentStream(Stream):
    """One token after another: h, c, and a circular buffer of projected codes for each text."""

    def __init__(self, sae: SAE, batch_size: int):
        super().__init__(sae, batch_size)
        cfg, empty = sae.cfg, sae.b_dec
        self.h_BH = empty.new_zeros(batch_size, cfg.hidden)
        self.c_BH = torch.zeros_like(self.h_BH)
        self.memory_BWR = empty.new_zeros(batch_size, cfg.memory, cfg.rank)
        self.seen_B = torch.zeros(batch_size, dtype=torch.int64, device=empty.device)
        self.started = False

    @torch.no_grad()
    def step(
        self, x_BD: Tensor, boundary_B: Tensor | None = None, mask_B: Tensor | None = None
    ) -> Tensor:
        sae, recurrent, w = self.sae, self.sae.recurrent, self.sae.cfg.memory
        every = torch.ones(self.batch_size, dtype=torch.bool, device=x_BD.device)
        mask_B = every if mask_B is None else mask_B
        new_B = ~every if boundary_B is None else boundary_B >= DOCUMENT
        keep_B1 = (~new_B if self.started else ~every)[:, None]
        self.started = True
        self.h_BH *= keep_B1
        self.c_BH *= keep_B1
        self.seen_B *= keep_B1[:, 0]
        x = torch.where(mask_B[:, None], x_BD - sae.b_dec, 0.0)
        parts = []
        if recurrent.lstm is not None:
            h, (_, c) = recurrent.lstm(x[:, None], (self.h_BH[None], self.c_BH[None]))
            self.h_BH = torch.where(mask_B[:, None], h[:, 0], self.h_BH)
            self.c_BH = torch.where(mask_B[:, None], c[0], self.c_BH)
            parts.append(self.h_BH)
        if recurrent.memory is not None:
            c_BR = sae.projected(x, mask_B)
            slots = torch.arange(w, device=x.device)
            lag_BW = (self.seen_B[:, None] - 1 - slots) % w + 1
            held_BW = lag_BW <= self.seen_B[:, None]
            parts.append(recurrent.memory.read(c_BR, self.memory_BWR, lag_BW, held_BW))
            rows = mask_B.nonzero()[:, 0]
            self.memory_BWR[rows, self.seen_B[rows] % w] = c_BR[rows]
        self.seen_B += mask_B
        pre = x @ sae.W_enc + sae.b_enc + torch.cat(parts, 1) @ recurrent.weight()
        return sae.act(pre, mask_B)
