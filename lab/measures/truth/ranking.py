r"""How well a number that is 0 at most tokens ranks a class: AP, AUROC and F1, exactly.

Tokens in falling order of a value v, tokens of equal value together (all that are 0 last); n tokens,
m of them of the class, r_i tokens and tp_i of the class down to the group of token i:

    AP    = 1/m Σ_{i of the class} tp_i / r_i                    (a constant has AP = m / n)
    AUROC = 1 − (Σ_{i of the class} midrank_i − m (m + 1) / 2) / (m (n − m))
    F1    = 2 tp / (r + m) at a threshold (all tokens predicted: 2p / (1 + p), p = m / n)

The same numbers as ``sklearn.metrics``. The influence of a token is the derivative of the value by
the token's weight; its sum over a document is what the bootstrap over documents draws.
"""

import numpy as np

from tsae.kernels.compiled import compiled

METRICS = ("ap", "auroc", "f1")
AP, AUROC, F1 = range(3)


@compiled
def score_column(values_A, class_AL, n_C, n, out_4C):  # pragma: no cover
    """AP, AUROC, best F1 and its threshold (halfway to the next value) of one latent, into ``out_4C``.

    values_A: its values above 0 in falling order; class_AL: the classes there by label (numbered
    over all labels; −1 none); n_C: tokens of each class; n: tokens.
    """
    C, A, L = len(n_C), len(values_A), class_AL.shape[1]
    tp_C, sum_C, rank_C = np.zeros(C), np.zeros(C), np.zeros(C)
    for c in range(C):
        out_4C[2, c], out_4C[3, c] = 2 * n_C[c] / (n + n_C[c]), 0.0
    i = 0
    while i < A:
        j = i + 1
        while j < A and values_A[j] == values_A[i]:
            j += 1
        for a in range(i, j):
            for label in range(L):
                if class_AL[a, label] >= 0:
                    tp_C[class_AL[a, label]] += 1
        for a in range(i, j):
            for label in range(L):
                c = class_AL[a, label]
                if c >= 0:
                    sum_C[c] += tp_C[c] / j
                    rank_C[c] += (i + 1 + j) / 2
                    f1 = 2 * tp_C[c] / (j + n_C[c])
                    if f1 > out_4C[2, c]:
                        below = values_A[j] if j < A else 0.0
                        out_4C[2, c], out_4C[3, c] = f1, (values_A[i] + below) / 2
        i = j
    for c in range(C):
        m = n_C[c]
        missed = m - tp_C[c]
        rank = rank_C[c] + missed * (A + 1 + n) / 2
        out_4C[0, c] = (sum_C[c] + missed * m / n) / max(m, 1)
        out_4C[1, c] = 1 - (rank - m * (m + 1) / 2) / max(m * (n - m), 1)


@compiled
def score_columns(starts_F, values_A, class_AL, n_C, n, out_F4C):  # pragma: no cover
    """:func:`score_column` of every latent; latent f has the entries starts_F[f] … starts_F[f+1]."""
    for f in range(len(starts_F) - 1):
        part = slice(starts_F[f], starts_F[f + 1])
        score_column(values_A[part], class_AL[part], n_C, n, out_F4C[f])


@compiled
def moving_average(values_A, token_A, first_N, decay, out_N):  # pragma: no cover
    """EMA of one latent within its piece: m[t] = Σ_s δ^(t−s) z[s] / Σ_s δ^(t−s), s ≤ t.

    values_A at the tokens token_A (ascending), 0 elsewhere; first_N: where a piece begins.
    """
    a, m, weight = 0, 0.0, 0.0
    for t in range(len(first_N)):
        if first_N[t]:
            m, weight = 0.0, 0.0
        m, weight = decay * m, decay * weight + 1
        if a < len(token_A) and token_A[a] == t:
            m, a = m + values_A[a], a + 1
        out_N[t] = m / weight


def single(values_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """AP, AUROC, best F1 and its threshold of any values for one class."""
    order, out = np.argsort(-values_N), np.zeros((4, 1))
    class_N1 = np.where(y_N, 0, -1)[order, None].astype(np.int16)
    score_column(values_N[order], class_N1, np.array([float(y_N.sum())]), len(y_N), out)
    return out[:, 0]


@compiled
def _influences(order_N, values_N, y_N, out_2N):  # pragma: no cover
    """Influence of every token on AP and on AUROC, into ``out_2N``; returns both values."""
    n, m = len(order_N), 0.0
    for t in range(n):
        m += y_N[t]
    # per tie group: its end r, tokens of the class down to it, and how many are in it
    i, tp, ap, area = 0, 0.0, 0.0, 0.0
    end_N, tp_N = np.zeros(n), np.zeros(n)
    while i < n:
        j, here = i, 0.0
        while j < n and values_N[order_N[j]] == values_N[order_N[i]]:
            here += y_N[order_N[j]]
            j += 1
        above = i - tp  # tokens of other classes ranked strictly above
        others = j - i - here
        for a in range(i, j):
            t = order_N[a]
            end_N[a], tp_N[a] = j, tp + here
            if y_N[t]:  # share of the others below it
                out_2N[1, t] = 1 - (above + others / 2) / max(n - m, 1)
                area += out_2N[1, t]
            else:  # share of the class above it
                out_2N[1, t] = (tp + here / 2) / max(m, 1)
        ap += here * (tp + here) / j
        tp += here
        i = j
    ap, auroc = ap / m, area / m
    for t in range(n):
        size = m if y_N[t] else max(n - m, 1)
        out_2N[1, t] = (out_2N[1, t] - auroc) / size
    # AP: of a token at place j, all of the class at or after its group change tp and r
    later_y, later_r = 0.0, 0.0
    i = n
    while i > 0:
        j = i
        while i > 0 and end_N[i - 1] == j:
            i -= 1
        here = 0.0
        for a in range(i, j):
            here += y_N[order_N[a]]
        later_y += here / j
        later_r += here * tp_N[j - 1] / (j * j)
        for a in range(i, j):
            t = order_N[a]
            own = tp_N[a] / j + later_y - ap if y_N[t] else 0.0
            out_2N[0, t] = (own - later_r) / m
    return ap, auroc


def influences(values_N: np.ndarray, y_N: np.ndarray, threshold: float) -> tuple:
    """AP, AUROC and F1 (predicted: value ≥ threshold) [3], and each token's influence [3, N].

    NaN where no token, or every one, is of the class.
    """
    out_3N = np.zeros((3, len(y_N)))
    predicted_N, m = values_N >= threshold, int(y_N.sum())
    if not 0 < m < len(y_N):
        return np.full(3, np.nan), out_3N
    order_N = np.argsort(-values_N)
    ap, auroc = _influences(order_N, values_N, y_N.astype(np.float64), out_3N[:2])
    size = predicted_N.sum() + m
    f1 = 2 * (predicted_N & y_N).sum() / size
    out_3N[F1] = (2.0 * (predicted_N & y_N) - f1 * (predicted_N + y_N.astype(float))) / size
    return np.array([ap, auroc, f1]), out_3N
