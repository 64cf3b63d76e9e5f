r"""Codes of the same token when the text before it is cut, against the whole sequence.

For a context c every sequence is cut into blocks of 2c tokens, one beginning every c tokens; model
and SAE read BOS and the block alone, and the tokens of its second half, which have between c and
2c − 1 tokens before them, are compared with their codes in the whole sequence. So every valid token
with c or more before it is compared once. The residual is made anew by the model: a static SAE
changes too, as far as its input does.

``context_jaccard`` = |A_c ∩ A| / |A_c ∪ A| of the active sets; group ``context=c``; mean over
tokens, n of them. Codes that are empty in both count as equal. Document rows of it. Each residual
is computed once for all dictionaries.
"""

from collections.abc import Iterator, Mapping

import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds import World
from tsae import models
from tsae.sequences import FilledContext

CONTEXTS = (4, 8, 16, 32)


@register("context", together=True, nulls=True, needs=("model",))
@torch.no_grad()
def measure(saes: Mapping[str, Encoder], reading: Reading, world: World) -> dict[str, Measured]:
    """The module's measure on ``sizes.sequences`` test sequences; contexts of which two do not fit
    a sequence are left out."""
    model, store = world.model(reading.device), reading.store
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in saes}
    left = reading.sizes.sequences
    for batch in reading.batches("test", 2**62):
        rows = slice(0, left)
        tokens_BT, doc_BT = batch.tokens_BT[rows].long(), batch.doc_BT[rows]
        mask_BT, level_BT = batch.context.mask_BT[rows], batch.context.boundary_BT[rows]
        x_BTD = models.residual(model, tokens_BT, store.layer).float() * store.scale
        whole = {
            name: s.encode(x_BTD, FilledContext(mask_BT, level_BT)) for name, s in saes.items()
        }
        for c in (c for c in CONTEXTS if 2 * c < store.seq_len):
            for place_KJ in blocks(store.seq_len, c):
                tokens_MJ, mask_MJ, level_MJ = (
                    part_BT[:, place_KJ].flatten(0, 1) for part_BT in (tokens_BT, mask_BT, level_BT)
                )
                level_MJ[:, :2] = 3
                x_MJD = models.residual(model, tokens_MJ, store.layer).float() * store.scale
                late_KJ = place_KJ[:, 1 + c :]
                keep_BKJ = mask_BT[:, late_KJ].bool()
                doc = doc_BT[:, late_KJ][keep_BKJ].cpu().numpy()
                for name, sae in saes.items():
                    z_MJF = sae.encode(x_MJD, FilledContext(mask_MJ, level_MJ))[:, 1 + c :]
                    cut = z_MJF.unflatten(0, (-1, len(place_KJ)))[keep_BKJ]
                    same = jaccard(cut, whole[name][:, late_KJ][keep_BKJ]).cpu().numpy()
                    frame = pd.DataFrame({"doc": doc, "num": same, "den": 1.0})
                    frame = frame.groupby("doc", as_index=False).sum()
                    parts[name].append(frame.assign(group=f"context={c}"))
        left -= len(tokens_BT)
        if left <= 0:
            break
    found = {}
    for name, frames in parts.items():
        table = pd.concat(frames).groupby(["group", "doc"], as_index=False).sum()
        sums = table.groupby("group")[["num", "den"]].sum()
        rows_ = [row("context_jaccard", s.Index, s.num / s.den, s.den) for s in sums.itertuples()]
        found[name] = Measured(rows_, table.assign(metric="context_jaccard"))
    return found


def blocks(length: int, c: int) -> Iterator[Tensor]:
    """Positions [K, J] of K blocks: BOS, then 2c tokens, or at a sequence's end fewer."""
    place_KJ = torch.arange(1, length - c, c)[:, None] + torch.arange(-1, 2 * c)
    place_KJ[:, 0] = 0
    yield place_KJ[place_KJ[:, -1] < length]
    for place_J in place_KJ[place_KJ[:, -1] >= length]:
        yield place_J[place_J < length][None]


def jaccard(a_NF: Tensor, b_NF: Tensor) -> Tensor:
    """[N] |A ∩ B| / |A ∪ B| of the active sets; 1 when both are empty."""
    both, either = (a_NF > 0) & (b_NF > 0), (a_NF > 0) | (b_NF > 0)
    union = either.sum(-1).double()
    return torch.where(union > 0, both.sum(-1) / union.clamp(min=1), 1.0)
