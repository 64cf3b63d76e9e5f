r"""The tracker's update of one lag, row by row, compiled for the CPU.

For every source j, over its occurrences (t, slot) and the active latents i at the later token,

    sum[i] = Σ trunc(2^19 R),    n[j→i] ← 2^-19 sum[i] + decay_j n[j→i]

and the S largest stay. Sums are of whole numbers, so their order does not matter and the result is
the same, bit for bit, as that of ``TemporalCorrelationTracker.follow`` in plain torch. Occurrences
are brought into rows by a counting sort; a row's sums live in one array of F numbers, cleared by the
list of what was touched. Source: this project.
"""

import numpy as np

from tsae.kernels.compiled import compiled

UNIT = np.float32(2**19)
"""R, below 16, is counted in units of 2^-19."""
SHARE = 2.0**-19
MOST = np.int64(2**23 - 1)
LAST = np.int64(2**20 - 1)
"""Above every id: a key holds an entry's value and, below it, LAST - id."""
TINY = np.finfo(np.float32).tiny


@compiled
def rows_of(past_ids_NM, past_NM, n_latents):
    """Where each source's occurrences begin, [F + 1], and they themselves (n M + slot) in order."""
    begin_F = np.zeros(n_latents + 1, np.int64)
    ids_P, values_P = past_ids_NM.ravel(), past_NM.ravel()
    for p in range(len(ids_P)):
        if values_P[p] != 0:
            begin_F[ids_P[p] + 1] += 1
    begin_F = begin_F.cumsum()
    at_F = begin_F[:-1].copy()
    order_P = np.empty(begin_F[-1], np.int64)
    for p in range(len(ids_P)):
        if values_P[p] != 0:
            order_P[at_F[ids_P[p]]] = p
            at_F[ids_P[p]] += 1
    return begin_F, order_P


@compiled
def least_of_largest(keys_N, kept):
    """The ``kept``-th largest of distinct keys (Hoare's selection); the keys are moved about."""
    low, high, at = 0, len(keys_N) - 1, kept - 1
    while low < high:
        pivot = keys_N[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while keys_N[i] > pivot:
                i += 1
            while keys_N[j] < pivot:
                j -= 1
            if i <= j:
                keys_N[i], keys_N[j] = keys_N[j], keys_N[i]
                i += 1
                j -= 1
        if at <= j:
            high = j
        elif at >= i:
            low = i
        else:
            break
    return keys_N[at]


@compiled
def sum_events(R_PM, order_O, now_ids_NM, sums_F, touched):
    """Add up one source's occurrences; returns how many targets were touched, each named once."""
    n_touched, M = 0, now_ids_NM.shape[1]
    for p in order_O:
        t = p // M
        for a in range(M):
            if R_PM[p, a] > 0:
                i, fixed = now_ids_NM[t, a], min(np.int64(R_PM[p, a] * UNIT), MOST)
                if sums_F[i] == 0 and fixed != 0:
                    touched[n_touched] = i
                    n_touched += 1
                sums_F[i] += fixed
    return n_touched


@compiled
def keep_largest(ids_N, values_N, n_held, keys_N, ids_S, values_S):
    """Put the S largest entries first to last by id; the first ``n_held`` ids ascend already."""
    n, least, bits_N = len(ids_N), np.int64(-1), values_N.view(np.int32)
    if n > len(ids_S):
        for u in range(n):
            keys_N[u] = (np.int64(bits_N[u]) << 20) | (LAST - ids_N[u])
        least = least_of_largest(keys_N[:n], len(ids_S))
    m = 0
    for u in range(n):
        key = (np.int64(bits_N[u]) << 20) | (LAST - ids_N[u])
        if key < least:
            continue
        v = m
        if u >= n_held:  # insertion
            while v > 0 and ids_S[v - 1] > ids_N[u]:
                ids_S[v], values_S[v] = ids_S[v - 1], values_S[v - 1]
                v -= 1
        ids_S[v], values_S[v] = ids_N[u], values_N[u]
        m += 1
    values_S[m:] = 0


@compiled
def update_rows(
    R_PM, past_ids_NM, past_NM, now_ids_NM, decay_F,
    successors_FS, count_FS, seen_F, updates,
):  # fmt: skip
    """Move one lag's n, in place, by the relations ``R_PM`` of n M past slots with M present ones.

    Past slots whose code is 0 do not count; for present ones R has to be 0. The largest entries
    stay, among equals those of the lowest ids.
    """
    n_latents, S = count_FS.shape
    begin_F, order_P = rows_of(past_ids_NM, past_NM, n_latents)
    sums_F, touched = np.zeros(n_latents, np.int64), np.empty(n_latents, np.uint32)
    ids, values = np.empty(n_latents + S, np.int32), np.empty(n_latents + S, np.float32)
    keys = np.empty(n_latents + S, np.int64)
    for j in range(n_latents):
        order_O = order_P[begin_F[j] : begin_F[j + 1]]
        if len(order_O) == 0:
            continue
        n_touched, n = sum_events(R_PM, order_O, now_ids_NM, sums_F, touched), 0
        # In a full row, what is below the least held entry cannot stay.
        least = max(count_FS[j].min() * decay_F[j], TINY)
        for s in range(S):
            held = count_FS[j, s] * decay_F[j]
            if held > 0:
                i = np.uint32(successors_FS[j, s])
                value = np.float32(sums_F[i] * SHARE) + held
                sums_F[i] = 0
                if value >= least:
                    ids[n], values[n] = i, value
                    n += 1
        n_held = n
        for u in range(n_touched):
            value = np.float32(sums_F[touched[u]] * SHARE)
            sums_F[touched[u]] = 0
            if value >= least:
                ids[n], values[n] = touched[u], value
                n += 1
        keep_largest(ids[:n], values[:n], n_held, keys, successors_FS[j], count_FS[j])
        seen_F[j] = updates
