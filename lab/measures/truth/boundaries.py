"""Do codes, or a variant's own gate, change where the text does."""

import math
from typing import Any

import torch
from torch import Tensor

from lab.measures.reading import Reading, Tokens, row


@torch.no_grad()
def learned_boundaries(sae: Any, reading: Reading) -> list[dict[str, Any]]:
    """``boundary_f1``, group ``learned``: a variant's learned boundaries b_t as the score.

    For variants whose config has ``gate="learned"`` (``sae.closed`` gives b [B, T] in [0, 1]);
    no row for any other.
    """
    if getattr(sae.cfg, "gate", None) != "learned" or not hasattr(sae, "closed"):
        return []
    parts, n_pieces = [], 0
    for batch in reading.batches("test"):
        closed_BT = sae.closed(sae.centred(batch.x_BTD, batch.context), batch.context)
        t = Tokens.of(batch, closed_BT[..., None], batch.x_BTD)
        parts.append((t.z_NF[:, 0].cpu(), t.boundary_N.cpu(), t.piece_N.cpu() + n_pieces))
        n_pieces += int(t.piece_N[-1]) + 1
    score_N, boundary_N, piece_N = map(torch.cat, zip(*parts, strict=True))
    score_N[piece_N.diff(prepend=piece_N[:1] - 1) > 0] = -1.0  # the context is cut there anyway
    return [row("boundary_f1", "learned", *boundary_f1(score_N, boundary_N, piece_N))]


def boundary_f1(
    score_N: Tensor, boundary_N: Tensor, piece_N: Tensor, tolerance: int = 1
) -> tuple[float, int]:
    """F1 of score peaks against true boundaries, within ± ``tolerance`` tokens.

    A true boundary is a sentence or section start (level 1 or 2) that is not a piece's first token.
    A peak is a local maximum of the score (score < 0: undefined there); of the peaks the highest K
    are taken, K being the number of true boundaries, so that no threshold has to be tuned. Peaks
    and boundaries of one piece are matched one to one, in order (optimal on a line);
    F1 = 2 · matches / (peaks + boundaries). Returns F1 (NaN without boundaries) and their number.
    """
    same = piece_N.diff(prepend=piece_N[:1] - 1) == 0
    true = (same & (boundary_N > 0) & (boundary_N < 3)).nonzero().squeeze(1).tolist()
    if not true:
        return math.nan, 0
    before = torch.where(same, score_N.roll(1), -math.inf)
    after = torch.where(same.roll(-1), score_N.roll(-1), -math.inf)
    peak = ((score_N > before) & (score_N >= after) & (score_N >= 0)).nonzero().squeeze(1)
    order = score_N[peak].argsort(descending=True, stable=True)[: len(true)]
    found, piece = peak[order].sort().values.tolist(), piece_N.tolist()
    i = j = matches = 0
    while i < len(found) and j < len(true):
        if abs(found[i] - true[j]) <= tolerance and piece[found[i]] == piece[true[j]]:
            matches, i, j = matches + 1, i + 1, j + 1
        elif found[i] < true[j]:
            i += 1
        else:
            j += 1
    return 2 * matches / (len(found) + len(true)), len(true)
