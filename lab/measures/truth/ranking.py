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
def score_column(values_A, token_A, class_NL, shift, n_C, out_4C):  # pragma: no cover
    """AP, AUROC, best F1 and its threshold (halfway to the next value) of one latent, into ``out_4C``.

    values_A: its values above 0 in falling order, at the tokens token_A; class_NL: each token's
    classes by label (numbered over all labels; −1 none), read ``shift`` tokens later in a circle;
    n_C: tokens of each class.
    """
    C, A, (n, L) = len(n_C), len(values_A), class_NL.shape
    tp_C, sum_C, rank_C = np.zeros(C), np.zeros(C), np.zeros(C)
    for c in range(C):
        out_4C[2, c], out_4C[3, c] = 2 * n_C[c] / (n + n_C[c]), 0.0
    i = 0
    while i < A:
        j = i + 1
        while j < A and values_A[j] == values_A[i]:
            j += 1
        for a in range(i, j):
            t = (token_A[a] + shift) % n
            for label in range(L):
                if class_NL[t, label] >= 0:
                    tp_C[class_NL[t, label]] += 1
        for a in range(i, j):
            t = (token_A[a] + shift) % n
            for label in range(L):
                c = class_NL[t, label]
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
def score_columns(starts_F, values_A, token_A, class_NL, shift, n_C, out_F4C):  # pragma: no cover
    """:func:`score_column` of every latent; latent f has the entries starts_F[f] … starts_F[f+1]."""
    for f in range(len(starts_F) - 1):
        part = slice(starts_F[f], starts_F[f + 1])
        score_column(values_A[part], token_A[part], class_NL, shift, n_C, out_F4C[f])


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
    class_N1 = np.where(y_N, 0, -1)[:, None].astype(np.int16)
    score_column(values_N[order], order, class_N1, 0, np.array([float(y_N.sum())]), out)
    return out[:, 0]


def influences(values_N: np.ndarray, y_N: np.ndarray, threshold: float) -> tuple:
    """AP, AUROC and F1 (predicted: value ≥ threshold) [3], and each token's influence [3, N].

    NaN where no token, or every one, is of the class.
    """
    n, m = len(y_N), int(y_N.sum())
    out_3N = np.zeros((3, n))
    if not 0 < m < n:
        return np.full(3, np.nan), out_3N
    order_N = np.argsort(-values_N)
    ranked_N, y_A = values_N[order_N], y_N[order_N]
    # Of each group of equal values: the tokens down to it, those of the class, and those in it.
    r_G = np.append(np.flatnonzero(np.diff(ranked_N)) + 1, n)
    tp_G = np.cumsum(y_A)[r_G - 1]
    size_G, here_G = np.diff(r_G, prepend=0), np.diff(tp_G, prepend=0)
    of_group = lambda value_G: np.repeat(value_G, size_G)  # noqa: E731
    ap = (here_G * tp_G / r_G).sum() / m
    later_y_G, later_r_G = (
        np.cumsum(part[::-1])[::-1] for part in (here_G / r_G, here_G * tp_G / r_G**2)
    )
    own_A = np.where(y_A, of_group(tp_G / r_G + later_y_G) - ap, 0.0)
    out_3N[AP, order_N] = (own_A - of_group(later_r_G)) / m
    # The share of the others below a token of the class, or of the class above one of the others.
    wins_G = 1 - (r_G - tp_G - (size_G - here_G) / 2) / (n - m)
    value_A = np.where(y_A, of_group(wins_G), of_group((tp_G - here_G / 2) / m))
    auroc = value_A[y_A].sum() / m
    out_3N[AUROC, order_N] = (value_A - auroc) / np.where(y_A, m, n - m)
    predicted_N = values_N >= threshold
    size = predicted_N.sum() + m
    f1 = 2 * (predicted_N & y_N).sum() / size
    out_3N[F1] = (2.0 * (predicted_N & y_N) - f1 * (predicted_N + y_N.astype(float))) / size
    return np.array([ap, auroc, f1]), out_3N
