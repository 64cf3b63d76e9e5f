r"""The running log-lift between latents, sparse and of fixed size.

An update reads a batch of tokens and ages all that was counted before by 1 − α:

    n_ℓ[j→i] ← (1 − α) n_ℓ[j→i] + Σ_t R_ij[t, ℓ]        n_ℓ[j], n[i], N: occurrences, likewise
    C_ℓ[j→i] = L if L > τ else 0,    L = log (n_ℓ[j→i] + κ) / (e + κ),    e = n_ℓ[j] n[i] / N

n_ℓ[j] are the tokens at which j is active and whose ℓ-th successor lies in the same document. e is
what the rates of j and i alone give (the null), and R, 1 where W has learned nothing, weighs each
pair by its learned lift; κ = 4 keeps rare pairs near 0. Of each row j the S successors of largest n are
kept. Rows whose j did not occur are not touched: (1 − α)^age is applied when they are next read.
Source: this project.
"""

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tsae.tracking.active import Active, Lagged, history
from tsae.tracking.quantise import remembered
from tsae.tracking.relation import Relation

FRACTION = 23
"""Bits of R in a sorted word."""
UNIT = 2.0**19
"""R, below 16, is counted in units of 2^-19, so that sums are exact and unordered."""
SHRINK = 4.0
"""κ."""
LARGEST = 2**19
"""Most latents whose pair key fits beside R in 63 bits."""
BLOCK = 4096
"""Occurrences of sources that are merged at a time."""
TINY = torch.finfo(torch.float32).tiny


def sort_words(words: Tensor) -> Tensor:
    """Ascending int64 words. NumPy's vectorised sort is four times as fast as torch's on a CPU."""
    if words.device.type == "cpu":
        return torch.from_numpy(np.sort(words.numpy()))
    return words.sort().values


def positions(mask: Tensor) -> Tensor:
    """Where a flat mask is True; NumPy is the faster one here too."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero()[:, 0]


def places(rows: Tensor, n_rows: int) -> Tensor:
    """The place of each element within its row, for ascending ``rows``."""
    begin = pad(torch.bincount(rows, minlength=n_rows).cumsum(0), (1, 0))
    return torch.arange(len(rows), device=rows.device) - begin.index_select(0, rows)


def starts_of(groups: Tensor) -> Tensor:
    """Mask of the first element of each run of equal values."""
    first = torch.ones(len(groups), dtype=torch.bool, device=groups.device)
    torch.ne(groups[1:], groups[:-1], out=first[1:])
    return first


class TemporalCorrelationTracker(nn.Module):
    """n of the module's equations: [window, F, S] ids and counts, and each row's last update.

    ``relation``: R and what learns it. Rows hold ids in ascending order; count 0 marks an empty
    place. All of it is in the state dict, with sizes that never change. Raises ``ValueError``.
    """

    successors_LFS: Tensor
    count_LFS: Tensor
    seen_LF: Tensor
    sources_LF: Tensor
    fired_F: Tensor
    summed_F: Tensor
    tokens: Tensor
    updates: Tensor

    def __init__(
        self,
        n_latents: int,
        window: int = 4,
        rank: int = 64,
        alpha: float = 0.005,
        tau: float = 0.1,
        successors: int = 64,
        bits: int = 32,
        spread: float = 0.1,
    ):
        super().__init__()
        if n_latents > LARGEST:
            raise ValueError(
                f"n_latents={n_latents} is not allowed; n_latents must be at most {LARGEST}."
            )
        self.n_latents, self.window, self.bits = n_latents, window, bits
        self.width = max(1, (n_latents - 1).bit_length())
        self.alpha, self.tau = alpha, tau
        self.relation = Relation(n_latents, window, rank, spread)
        shape = (window, n_latents, min(successors, n_latents))
        self.register_buffer("successors_LFS", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("count_LFS", torch.zeros(shape))
        self.register_buffer("seen_LF", torch.zeros(shape[:2], dtype=torch.int32))
        self.register_buffer("sources_LF", torch.zeros(shape[:2]))
        self.register_buffer("fired_F", torch.zeros(n_latents))
        self.register_buffer("summed_F", torch.zeros(n_latents))
        self.register_buffer("tokens", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of everything held between updates, U, s and V included."""
        return sum(t.nbytes for t in (*self.parameters(), *self.buffers()))

    @property
    def order_bits(self) -> int:
        """Highest bits of a value that decide which entries of a row stay."""
        return min(31, 62 - 2 * self.width)

    # ---- update ---------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, active: Active, document_N: Tensor) -> None:
        """Read N consecutive tokens; ``document_N`` numbers the document of each."""
        self.updates += 1
        for held in (self.sources_LF, self.fired_F, self.summed_F, self.tokens):
            held *= 1 - self.alpha
        fires_NM = (active.values_NM > 0).to(self.fired_F)
        self.fired_F.index_add_(0, active.ids_NM.flatten(), fires_NM.flatten())
        self.summed_F.index_add_(0, active.ids_NM.flatten(), active.values_NM.flatten())
        self.tokens += len(document_N)
        if self.count_LFS.device.type == "cpu":
            self.follow_compiled(active, document_N)
            return
        for lagged in history(active, document_N, self.window, self.bits):
            self.follow(lagged)

    def usual(self, active: Active) -> Active:
        """Codes over the mean code of their latent where it was active, z̄."""
        mean_F = self.summed_F / self.fired_F.clamp_min(TINY)
        return active._replace(values_NM=active.values_NM / mean_F.clamp_min(1e-6)[active.ids_NM])

    def past(self, active: Active) -> Active:
        """:meth:`usual` codes as they are remembered."""
        return self.usual(active._replace(values_NM=remembered(active.values_NM, self.bits)))

    def follow_compiled(self, active: Active, document_N: Tensor) -> None:
        """:meth:`follow` over all lags by a compiled loop, several times as fast.

        The same bits, but for exp of the last few pairs of a tensor, which torch rounds otherwise.
        """
        from tsae.kernels.correlation import update_rows  # Numba is slow to import

        N, M = active.ids_NM.shape
        kept_NM = self.past(active).values_NM
        pairs = self.relation.gathered(active)
        now_ids_NM = active.ids_NM.to(torch.uint32).numpy()
        out_NMM = active.values_NM.new_empty(N, M, M)
        for level in range(min(self.window, N - 1)):
            lag = level + 1
            # Pairs of two documents keep their places, so that nothing is copied, but count as 0.
            linked_N = document_N[lag:] == document_N[:-lag]
            past_NM = kept_NM[:-lag] * linked_N[:, None]
            R_PM = self.relation.at_lag(lag, past_NM, active.values_NM[lag:], pairs, out_NMM)
            fires_P = (past_NM > 0).flatten().to(self.fired_F)
            self.sources_LF[level].index_add_(0, active.ids_NM[:-lag].flatten(), fires_P)
            update_rows(
                R_PM.flatten(0, 1).numpy(), active.ids_NM[:-lag].numpy(), past_NM.numpy(),
                now_ids_NM[lag:], self.decay(level).numpy(), 31 - self.order_bits,
                self.successors_LFS[level].numpy(), self.count_LFS[level].numpy(),
                self.seen_LF[level].numpy(), int(self.updates),
            )  # fmt: skip

    def follow(self, lagged: Lagged) -> None:
        """Move one lag's n by its pairs of tokens, in plain torch on any device."""
        now, past = lagged.now, self.usual(lagged.past)
        R_PM = self.relation(past, now, lagged.lag).flatten(0, 1)
        fired = past.values_NM.flatten().nonzero()[:, 0]
        source, order = past.ids_NM.flatten()[fired].sort(stable=True)
        fired = fired[order]
        token = fired // past.ids_NM.shape[1]
        count_F = torch.bincount(source, minlength=self.n_latents)
        self.sources_LF[lagged.lag - 1] += count_F
        end_F = count_F.cumsum(0)
        # Blocks of rows with about BLOCK occurrences: what is sorted stays in the cache.
        low, done = 0, 0
        while done < len(source):
            high = int(torch.searchsorted(end_F, min(done + BLOCK, len(source)))) + 1
            stop = int(end_F[high - 1])
            R = R_PM.index_select(0, fired[done:stop])
            fixed = (R * UNIT).to(torch.int64).clamp_(max=2**FRACTION - 1)
            word = now.ids_NM.index_select(0, token[done:stop])
            word = word.add_(((source[done:stop] - low) << self.width)[:, None])
            word = (word << (FRACTION + 1)).bitwise_or_(fixed)
            self.merge(lagged.lag - 1, low, high, word.flatten(), count_F[low:high])
            low, done = high, stop

    def merge(self, level: int, low: int, high: int, words: Tensor, count_B: Tensor) -> None:
        """Add events to rows low … high-1 of one lag's n.

        ``words``: row - low, target, a bit 0 and R, from high bits to low; ``count_B``: n_j.
        """
        S, n_rows = self.count_LFS.shape[2], high - low
        ids_BS = self.successors_LFS[level, low:high]
        touched_B = count_B > 0
        decayed_BS = self.count_LFS[level, low:high] * self.decay(level, low, high)[:, None]
        held_e = positions(((decayed_BS > 0) & touched_B[:, None]).flatten())
        # A held entry joins the sort as a mark above all values of R. Both lists ascend by key, so
        # the n-th mark belongs to the n-th held entry and no look-up is needed.
        key_e = ((held_e // S) << self.width) | ids_BS.flatten().index_select(0, held_e)
        words = sort_words(torch.cat([words, (key_e << (FRACTION + 1)) | (1 << FRACTION)]))
        keys = words >> (FRACTION + 1)
        first = starts_of(keys)
        begin = positions(first)
        mark_e = positions((words & (1 << FRACTION)) != 0)
        total = (words & (2**FRACTION - 1)).cumsum(0)
        end = torch.cat([begin[1:], begin.new_tensor([len(words)])]) - 1
        sum_u = torch.diff(total.index_select(0, end), prepend=total.new_zeros(1))
        key_u = keys.index_select(0, begin)
        row_u = key_u >> self.width
        value_u = (sum_u / UNIT).float()
        group_e = first.cumsum(0).index_select(0, mark_e) - 1
        value_u.index_add_(0, group_e, decayed_BS.flatten().index_select(0, held_e))
        # In a full row, what is below the least held entry cannot stay.
        least_B = decayed_BS.amin(1).clamp_min(TINY)
        enters = positions(value_u >= least_B.index_select(0, row_u))
        key_u, value_u = key_u.index_select(0, enters), value_u.index_select(0, enters)
        keep = self.largest(key_u >> self.width, value_u, n_rows, S)
        key_u, value_u = key_u.index_select(0, keep), value_u.index_select(0, keep)
        row_u = key_u >> self.width
        place = (row_u + low) * S + places(row_u, n_rows)
        rows = positions(touched_B) + low
        self.count_LFS[level].index_fill_(0, rows, 0.0)
        self.count_LFS[level].view(-1)[place] = value_u
        self.successors_LFS[level].view(-1)[place] = (key_u & (2**self.width - 1)).int()
        self.seen_LF[level, rows] = self.updates.int()

    def largest(self, row_u: Tensor, value_u: Tensor, n_rows: int, S: int) -> Tensor:
        """Positions of the S largest entries > 0 of each row (ties: the first ones), ascending.

        ``row_u`` ascends. Row, value and place share a word, so above 65536 latents values are
        ordered by their highest bits alone.
        """
        place_u = places(row_u, n_rows)
        bits = self.order_bits
        order_u = (value_u.view(torch.int32).long() >> (31 - bits)) ^ (2**bits - 1)
        words = sort_words((((row_u << bits) | order_u) << self.width) | place_u)
        # Sorted or not, rows come in the same order, so a word's place is now its rank.
        words = words.index_select(0, positions(place_u < S))
        begin_B = pad(torch.bincount(row_u, minlength=n_rows).cumsum(0), (1, 0))
        start = begin_B.index_select(0, words >> (bits + self.width))
        return sort_words(start + (words & (2**self.width - 1)))

    # ---- reading --------------------------------------------------------------------------

    def decay(self, level: int, low: int = 0, high: int | None = None) -> Tensor:
        """(1 − α)^age of rows low … high-1 of one lag, by default of all."""
        age_F = (self.updates - self.seen_LF[level, low:high]).double()
        return torch.pow(1.0 - self.alpha, age_F).float()

    @torch.no_grad()
    def strengths(self, level: int, rows: Tensor | None = None) -> Tensor:
        """C [n, S] of ``rows`` (by default all) of one lag, beside ``successors_LFS``."""
        rows = torch.arange(self.n_latents, device=self.fired_F.device) if rows is None else rows
        count_NS = self.count_LFS[level, rows] * self.decay(level)[rows, None]
        rate_F = self.fired_F / self.tokens.clamp_min(1.0)
        chance_NS = (
            self.sources_LF[level, rows, None] * rate_F[self.successors_LFS[level, rows].long()]
        )
        lift_NS = ((count_NS + SHRINK) / (chance_NS + SHRINK)).log_()
        return lift_NS * ((lift_NS > self.tau) & (count_NS > 0))

    @torch.no_grad()
    def add_prior(self, out_NF: Tensor, rows_n: Tensor, past: Active, lag: int) -> None:
        """``out[rows] += Σ_j C_ℓ[j→·] z_j`` for the past codes z of n tokens, in place."""
        level, F = lag - 1, self.n_latents
        fired = past.values_NM > 0
        row, ids = rows_n[fired.nonzero()[:, 0]], past.ids_NM[fired]
        used, at = ids.unique(return_inverse=True)
        place = self.successors_LFS[level, ids].long() + (row * F)[:, None]
        weighted = self.strengths(level, used)[at] * past.values_NM[fired][:, None]
        out_NF.view(-1).index_add_(0, place.view(-1), weighted.view(-1))

    @torch.no_grad()
    def matrix(self, lag: int) -> scipy.sparse.csr_array:
        """C_ℓ as a sparse [F, F] array: row j, column i."""
        level, F = lag - 1, self.n_latents
        C_FS = self.strengths(level)
        row, slot = C_FS.nonzero(as_tuple=True)
        column = self.successors_LFS[level, row, slot].cpu().numpy()
        data = C_FS[row, slot].cpu().numpy()
        return scipy.sparse.csr_array((data, (row.cpu().numpy(), column)), shape=(F, F))
