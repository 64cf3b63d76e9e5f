r"""The recurrent parts of the ``lstm`` variant: state, feature memory, sparse gate, prediction.

State starts at zero in each document and passes over masked tokens unchanged, so the *pieces* of a
batch, which are the valid tokens of one document inside one sequence, run side by side.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tsae.kernels.sparse import Codes
from tsae.saes.encoding import State
from tsae.saes.terms import successive
from tsae.sequences import DOCUMENT, FilledContext
from tsae.training import distributed

if TYPE_CHECKING:
    from tsae.saes.lstm import LSTMConfig

BLOCK = 48
"""Tokens whose memory is read in one product."""


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


def pieces_of(context: FilledContext) -> Pieces:
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


def run_lstm(lstm: nn.LSTM, x_nD: Tensor, pieces: Pieces) -> Tensor:
    """h [n, H] of every valid token, all pieces side by side: a step runs those that reach it."""
    if len(x_nD) == 0:
        return x_nD.new_empty(0, lstm.hidden_size)
    packed, _ = lstm(PackedSequence(x_nD[pieces.order_n], pieces.sizes))
    back = torch.empty_like(pieces.order_n)
    back[pieces.order_n] = torch.arange(len(back), device=back.device)
    return packed.data[back]


class FeatureMemory(nn.Module):
    """Attention over the projected static codes of the last ``window`` valid tokens of a document.

    ``c[t] = s[t] P``,  ``m[t] = sum_j a_j c[t-j]``,  ``a = softmax_j(c[t] Q . c[t-j] / sqrt(r) +
    b_j)`` over j = 1 … window and an empty slot of score 0, so that it may attend to nothing.
    P [F, r], Q [r, r], b [window]. Of a token's static codes the ``k`` largest count.
    """

    def __init__(self, n_latents: int, rank: int, window: int, d_in: int, k: int):
        super().__init__()
        self.window = window
        self.k = min(k, n_latents)
        # |s| is about sqrt(d), so the projections start with entries of about 1.
        self.P = nn.Parameter(torch.randn(n_latents, rank) / d_in**0.5)
        self.Q = nn.Parameter(torch.randn(rank, rank) / rank**0.5)
        self.lag_bias = nn.Parameter(torch.zeros(window))

    def projected(self, pre_NF: Tensor, mask_N: Tensor) -> Tensor:
        """``c = s P`` [N, r], s the ``k`` largest static codes of each token.

        Only P learns by it: through s the encoder would be asked to serve later tokens.
        """
        values, cols = pre_NF.detach().topk(self.k, dim=1, sorted=False)
        weights = values.clamp_min(0.0) * mask_N[:, None]
        return nn.functional.embedding_bag(cols, self.P, mode="sum", per_sample_weights=weights)

    def weights(self, scores: Tensor, lag: Tensor, held: Tensor) -> Tensor:
        """Attention over slots (last axis); ``lag`` 1 … window, ``held`` False where empty."""
        scores = scores / self.Q.shape[0] ** 0.5 + self.lag_bias[lag - 1]
        scores = nn.functional.pad(scores.masked_fill(~held, float("-inf")), (0, 1))
        return scores.softmax(-1)[..., :-1]

    def read(self, c_nR: Tensor, past_nWR: Tensor, lag_nW: Tensor, held_nW: Tensor) -> Tensor:
        """m [n, r] for the current c and the slots of the past."""
        scores_nW = torch.einsum("nr,nwr->nw", c_nR @ self.Q, past_nWR)
        return torch.einsum("nw,nwr->nr", self.weights(scores_nW, lag_nW, held_nW), past_nWR)

    def forward(self, c_nR: Tensor, position_n: Tensor) -> Tensor:
        """m [n, r] of all valid tokens, given their place inside their piece.

        Runs over blocks of S tokens, each with the ``window`` tokens before it: K = window + S.
        """
        n, w, S = len(c_nR), self.window, max(self.window, BLOCK)
        fill = -n % S if n else S
        keys_MKR = nn.functional.pad(c_nR, (0, 0, w, fill)).unfold(0, w + S, S).transpose(1, 2)
        now_MSR = nn.functional.pad(c_nR @ self.Q, (0, 0, 0, fill)).unflatten(0, (-1, S))
        place = torch.arange(w + S, device=c_nR.device)
        lag_SK = place[w:, None] - place
        position_MS = nn.functional.pad(position_n, (0, fill)).unflatten(0, (-1, S))
        held_MSK = (lag_SK > 0) & (lag_SK <= w) & (lag_SK <= position_MS[..., None])
        scores_MSK = now_MSR @ keys_MKR.transpose(1, 2)
        a_MSK = self.weights(scores_MSK, lag_SK.clamp(1, w), held_MSK)
        return (a_MSK @ keys_MKR).flatten(0, 1)[:n]


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

    def __init__(self, cfg: "LSTMConfig"):
        super().__init__()
        d, F, hidden, rank = cfg.d_in, cfg.d_sae, cfg.hidden, cfg.rank
        self.hidden, self.window, self.negatives = hidden, cfg.memory, cfg.negatives
        self.lstm = nn.LSTM(d, hidden, batch_first=True) if hidden else None
        self.memory = FeatureMemory(F, rank, cfg.memory, d, cfg.memory_k) if cfg.memory else None
        width = hidden + (rank if cfg.memory else 0)
        self.W = nn.Parameter(torch.randn(width, F) / width**0.5)  # W_h above W_m
        self.rho = nn.Parameter(torch.zeros(F) if cfg.bridge else torch.ones(F))
        self.gate = HardConcrete(F) if cfg.gated else None
        if cfg.predict > 0:
            self.W_next = nn.Parameter(torch.zeros(width, F))
            self.b_next = nn.Parameter(torch.zeros(F))
        if cfg.decoder == "lstm":
            self.W_out = nn.Parameter(torch.zeros(hidden, d))
            self.out_gate = nn.Linear(hidden, 1)

    def weight(self) -> Tensor:
        """[W_h; W_m] with column i scaled by rho_i gate_i."""
        return self.W * (self.rho if self.gate is None else self.rho * self.gate())

    @torch.no_grad()
    def openness(self) -> dict[str, Tensor]:
        """``gates_open`` = mean_i P(gate_i > 0) (1 without gates), ``rho`` = mean_i |rho_i|."""
        gates = torch.ones(()) if self.gate is None else self.gate.open_probability().mean()
        return {"gates_open": gates, "rho": self.rho.abs().mean()}

    def predicted(self, before_NH: Tensor) -> Tensor:
        """The decoder's recurrent part ``sigmoid(h u + c) h W_out`` [N, d], from h[t-1]."""
        return torch.sigmoid(self.out_gate(before_NH)) * (before_NH @ self.W_out)

    def surprise(self, u_NS: Tensor, codes: Codes | Tensor, context: FilledContext) -> Tensor:
        """``-log softmax_i(u[t-1] W_next + b_next)``, the mean over the latents i that are active at a
        valid token t after another: the cross-entropy in nats of the next active set.

        More than ``negatives`` latents are summed in the softmax through as many drawn ones.
        """
        if isinstance(codes, Tensor):
            rows, cols = (codes > 0).nonzero(as_tuple=True)
        else:
            on = codes.values > 0
            rows, cols = codes.rows[on], codes.cols[on]
        now, before = successive(context)
        place_N = torch.full((codes.shape[0],), -1, device=rows.device)
        place_N[now] = torch.arange(len(now), device=rows.device)
        place = place_N[rows]
        place, cols = place[place >= 0], cols[place >= 0]
        n = context.mask_BT.sum()
        each = distributed.pooled(torch.tensor(float(len(place)), device=n.device), n).clamp_min(
            1.0
        )
        u_PS, F = u_NS[before], self.W_next.shape[1]
        if F <= self.negatives:
            logits_PF = torch.addmm(self.b_next, u_PS, self.W_next)
            return (logits_PF.logsumexp(1)[place] - logits_PF[place, cols]).sum() / each
        drawn = torch.randperm(F)[: self.negatives].to(rows.device)
        rest_P = torch.addmm(self.b_next[drawn], u_PS, self.W_next[:, drawn]).logsumexp(1)
        rest_P = rest_P + math.log(F / self.negatives)
        mine = (u_PS[place] * self.W_next.t()[cols]).sum(1) + self.b_next[cols]
        return (torch.logaddexp(rest_P[place], mine) - mine).sum() / each

    def states(
        self, x_ND: Tensor, c_NR: Tensor | None, context: FilledContext
    ) -> tuple[Tensor, Tensor]:
        """[h; m] [N, H + r], whichever of the two there are, 0 at invalid tokens; and h of the
        token before [N, H], 0 where a document starts."""
        pieces, parts = pieces_of(context), []
        if self.lstm is not None:
            parts.append(run_lstm(self.lstm, x_ND[pieces.rows_n], pieces))
        if self.memory is not None:
            assert c_NR is not None
            parts.append(self.memory(c_NR[pieces.rows_n], pieces.position_n))
        u_nS = torch.cat(parts, 1).to(x_ND.dtype)
        h = u_nS[:, : self.hidden]
        before = torch.cat([torch.zeros_like(h[:1]), h[:-1]]) * (pieces.position_n > 0)[:, None]
        u_NS, before_NH = (
            x_ND.new_zeros(len(x_ND), part.shape[1]).index_copy(0, pieces.rows_n, part)
            for part in (u_nS, before)
        )
        return u_NS, before_NH

    def advance(
        self, x_BD: Tensor, c_BR: Tensor | None, context: FilledContext, state: State
    ) -> tuple[Tensor, Tensor]:
        """:meth:`states` of one token of each text; ``state`` is h, c, and a circular buffer of
        projected codes with the number of tokens that it has seen."""
        B, mask_B, w = len(x_BD), context.mask_BT[:, 0], self.window
        if not state:
            state["h"], state["c"] = (x_BD.new_zeros(B, self.hidden) for _ in range(2))
            state["seen"] = torch.zeros(B, dtype=torch.int64, device=x_BD.device)
            if c_BR is not None:
                state["memory"] = c_BR.new_zeros(B, w, c_BR.shape[1])
        for name in ("h", "c", "seen"):
            state[name] *= (context.boundary_BT < DOCUMENT).view(B, *[1] * (state[name].ndim - 1))
        before_BH, parts = state["h"].clone(), []
        if self.lstm is not None:
            h, (_, c) = self.lstm(x_BD[:, None], (state["h"][None], state["c"][None]))
            state["h"] = torch.where(mask_B[:, None], h[:, 0], state["h"])
            state["c"] = torch.where(mask_B[:, None], c[0], state["c"])
            parts.append(state["h"])
        seen_B = state["seen"]
        if self.memory is not None:
            assert c_BR is not None
            slots = torch.arange(w, device=x_BD.device)
            lag_BW = (seen_B[:, None] - 1 - slots) % w + 1
            held_BW = lag_BW <= seen_B[:, None]
            parts.append(self.memory.read(c_BR, state["memory"], lag_BW, held_BW))
            rows = mask_B.nonzero()[:, 0]
            state["memory"][rows, seen_B[rows] % w] = c_BR[rows]
        state["seen"] = seen_B + mask_B
        return torch.cat(parts, 1), before_BH
