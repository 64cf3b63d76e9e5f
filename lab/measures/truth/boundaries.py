"""Do codes, or a variant's own gate, change where the text does."""

import math
from typing import Any

import torch
from torch import Tensor

from lab.measures.reading import Reading, pieces, row


@torch.no_grad()
def learned_boundaries(sae: Any, reading: Reading) -> list[dict[str, Any]]:
    """``boundary_f1``, group ``learned``: a variant's learned boundaries b_t as the score.

    For variants whose config has ``gate="learned"`` (``sae.closed`` gives b [B, T] in [0, 1]);
    no row for any other.
    """
    if getattr(sae.cfg, "gate", None) != "learned" or not hasattr(sae, "closed"):
        return []
    scores, boundaries, piece, n_pieces = [], [], [], 0
    for batch in reading.batches("test"):
        mask_BT, boundary_BT = batch.context.mask_BT.bool(), batch.context.boundary_BT
        closed_BT = sae.closed(sae.centred(batch.x_BTD, batch.context), batch.context)
        piece_N = pieces(mask_BT, boundary_BT, batch.doc_BT)[mask_BT].cpu() + n_pieces
        scores.append(closed_BT[mask_BT].cpu())
        boundaries.append(boundary_BT[mask_BT].long().cpu())
        piece.append(piece_N)
        n_pieces = int(piece_N[-1]) + 1
    score_N, piece_N = torch.cat(scores), torch.cat(piece)
    first = torch.ones_like(piece_N, dtype=torch.bool)
    first[1:] = piece_N[1:] != piece_N[:-1]
    score_N[first] = -1.0  # the context is cut there whatever the gate says
    return [row("boundary_f1", "learned", *boundary_f1(score_N, torch.cat(boundaries), piece_N))]


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
    same = torch.zeros(len(piece_N), dtype=torch.bool)
    same[1:] = piece_N[1:] == piece_N[:-1]
    true = (same & (boundary_N > 0) & (boundary_N < 3)).nonzero().squeeze(1).tolist()
    if not true:
        return math.nan, 0
    low = torch.full_like(score_N[:1], -math.inf)
    before = torch.where(same, torch.cat([low, score_N[:-1]]), -math.inf)
    after = torch.where(same.roll(-1), torch.cat([score_N[1:], low]), -math.inf)
    peak = ((score_N > before) & (score_N >= after) & (score_N >= 0)).nonzero().squeeze(1)
    order = score_N[peak].argsort(descending=True, stable=True)[: len(true)]
    found = peak[order].sort().values.tolist()
    piece = piece_N.tolist()
    i = j = matches = 0
    while i < len(found) and j < len(true):
        if abs(found[i] - true[j]) <= tolerance and piece[found[i]] == piece[true[j]]:
            matches, i, j = matches + 1, i + 1, j + 1
        elif found[i] < true[j]:
            i += 1
        else:
            j += 1
    return 2 * matches / (len(found) + len(true)), len(true)
