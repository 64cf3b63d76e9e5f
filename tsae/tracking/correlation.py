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

import scipy.sparse
import torch
from torch import Tensor, nn

from tsae.tracking.active import Active, Lagged, history
from tsae.tracking.quantise import remembered
from tsae.tracking.relation import Relation

UNIT = 2.0**19
"""R, at most 16, is counted in units of 2^-19, so that sums are exact and unordered."""
MOST_COUNTED = 2**23 - 1
SHRINK = 4.0
"""κ."""
LARGEST = 2**20
"""Most latents: the compiled update orders a row by a value's 31 bits and an id's 20."""
TINY = torch.finfo(torch.float32).tiny


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

        kept_NM, ids_NM, now_NM = self.past(active).values_NM, active.ids_NM, active.values_NM
        now_ids_NM = ids_NM.to(torch.uint32).numpy()
        V_NMR, U_NMR = (W[ids_NM] for W in (self.relation.V_FR, self.relation.U_FR))
        for lag in range(1, min(self.window, len(ids_NM) - 1) + 1):
            level = lag - 1
            # Pairs of two documents keep their places, so that nothing is copied, but count as 0.
            linked_N = document_N[lag:] == document_N[:-lag]
            past_NM = kept_NM[:-lag] * linked_N[:, None]
            R = self.relation.related(V_NMR[:-lag], past_NM, U_NMR[lag:], now_NM[lag:], lag)
            fires_P = (past_NM > 0).flatten().to(self.fired_F)
            self.sources_LF[level].index_add_(0, ids_NM[:-lag].flatten(), fires_P)
            update_rows(
                R.flatten(0, 1).numpy(), ids_NM[:-lag].numpy(), past_NM.numpy(),
                now_ids_NM[lag:], self.decay(level).numpy(),
                self.successors_LFS[level].numpy(), self.count_LFS[level].numpy(),
                self.seen_LF[level].numpy(), int(self.updates),
            )  # fmt: skip

    def follow(self, lagged: Lagged) -> None:
        """Move one lag's n by its pairs of tokens, in plain torch on any device."""
        level, F, S = lagged.lag - 1, self.n_latents, self.count_LFS.shape[2]
        past = self.usual(lagged.past)
        fired = past.values_NM > 0
        source, token = past.ids_NM[fired], fired.nonzero()[:, 0]
        self.sources_LF[level] += torch.bincount(source, minlength=F)
        rows = source.unique()
        held_RS = self.count_LFS[level, rows] * self.decay(level)[rows, None]
        held_keys = (rows[:, None] * F + self.successors_LFS[level, rows])[held_RS > 0]
        event_keys = (source[:, None] * F + lagged.now.ids_NM[token]).flatten()
        key, at = torch.cat([event_keys, held_keys]).unique(return_inverse=True)
        R_PM = self.relation(past, lagged.now, lagged.lag)[fired]
        counted = (R_PM * UNIT).long().clamp_(max=MOST_COUNTED).flatten()
        total = torch.zeros_like(key).index_add_(0, at[: len(counted)], counted)
        value = (total / UNIT).float().index_add_(0, at[len(counted) :], held_RS[held_RS > 0])
        # The S largest of each row, the lowest ids among equals: keys ascend by row, then by id.
        key, value = key[value >= TINY], value[value >= TINY]
        order = value.argsort(descending=True, stable=True)
        order = order[(key[order] // F).argsort(stable=True)]
        size_F = torch.bincount(key // F, minlength=F)
        begin_F = size_F.cumsum(0) - size_F
        place = torch.arange(len(key), device=key.device) - begin_F[key[order] // F]
        kept = order[place < S].sort().values
        key, value = key[kept], value[kept]
        size_F = size_F.clamp_max(S)
        place = torch.arange(len(key), device=key.device) - (size_F.cumsum(0) - size_F)[key // F]
        self.count_LFS[level, rows] = 0.0
        self.count_LFS[level, key // F, place] = value
        self.successors_LFS[level, key // F, place] = (key % F).int()
        self.seen_LF[level, rows] = self.updates.int()

    # ---- reading --------------------------------------------------------------------------

    def decay(self, level: int) -> Tensor:
        """(1 − α)^age of the rows of one lag."""
        age_F = (self.updates - self.seen_LF[level]).double()
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
