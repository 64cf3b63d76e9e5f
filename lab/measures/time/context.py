r"""Codes of the same token when the text before it is cut, against the whole sequence.

For a context c every sequence is cut into blocks of 2c tokens, one beginning every c tokens; model
and SAE read BOS and the block alone, and the tokens of its second half, which have between c and
2c − 1 tokens before them, are compared with their codes in the whole sequence. So every valid token
with c or more before it is compared once. The residual is made anew by the model: a static SAE
changes too, as far as its input does.

``context_jaccard`` = |A_c ∩ A| / |A_c ∪ A| of the active sets, ``context_cosine`` = cos(z_c, z);
group ``context=c``; means over tokens, n of them. Codes that are empty in both count as equal.
Document rows of ``context_jaccard``. Each residual is computed once for all dictionaries.
"""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds import World
from tsae import models
from tsae.sequences import FilledContext
from tsae.store.reading import Batch

METRICS = ("context_jaccard", "context_cosine")


@register("context", together=True, nulls=True, needs=("model",))
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World,
    *,
    contexts: Sequence[int] = (4, 8, 16, 32),
) -> dict[str, Measured]:
    """The module's measures on ``sizes.sequences`` test sequences; contexts of which two do not
    fit a sequence are left out."""
    model, store = world.model(reading.device), reading.store
    used = [c for c in contexts if 2 * c < store.seq_len]
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in saes}
    left = reading.sizes.sequences
    for batch in reading.batches("test", 2**62):
        rows = slice(0, left)
        tokens_BT, doc_BT = batch.tokens_BT[rows].long(), batch.doc_BT[rows]
        mask_BT, boundary_BT = batch.context.mask_BT[rows], batch.context.boundary_BT[rows]
        context = FilledContext(mask_BT, boundary_BT)
        x_BTD = models.residual(model, tokens_BT, store.layer).float() * store.scale
        whole = {name: sae.encode(x_BTD, context) for name, sae in saes.items()}
        for c in used:
            for place_J, block in blocks(tokens_BT, context, c):
                x_BJD = models.residual(model, block.tokens_BT, store.layer).float() * store.scale
                late_J = slice(1 + c, None)
                keep_BJ = context.mask_BT[:, place_J[late_J]].bool()
                for name, sae in saes.items():
                    a = sae.encode(x_BJD, block.context)[:, late_J][keep_BJ]
                    b = whole[name][:, place_J[late_J]][keep_BJ]
                    table = {"doc": doc_BT[:, place_J[late_J]][keep_BJ].cpu().numpy(), "den": 1.0}
                    table |= {METRICS[0]: jaccard(a, b).cpu().numpy()}
                    table |= {METRICS[1]: cosine(a, b).cpu().numpy()}
                    frame = pd.DataFrame(table).groupby("doc", as_index=False).sum()
                    parts[name].append(frame.assign(group=f"context={c}"))
        left -= len(tokens_BT)
        if left <= 0:
            break
    found = {}
    for name, frames in parts.items():
        table = pd.concat(frames).groupby(["group", "doc"], as_index=False).sum()
        sums = table.groupby("group").sum()
        values = {m: [(g, s[m] / s["den"], s["den"]) for g, s in sums.iterrows()] for m in METRICS}
        rows_ = [row(m, *value) for m, part in values.items() for value in part]
        documents = table[["doc", "group", "den"]].assign(num=table[METRICS[0]], metric=METRICS[0])
        found[name] = Measured(rows_, documents)
    return found


def blocks(tokens_BT: Tensor, context: FilledContext, c: int) -> Iterator[tuple[Tensor, Batch]]:
    """Positions [J] in the sequence and the block at them: BOS, then up to 2c tokens."""
    length = tokens_BT.shape[1]
    for start in range(1, length - c, c):
        place_J = torch.tensor([0, *range(start, min(start + 2 * c, length))])
        level_BJ = context.boundary_BT[:, place_J].clone()
        level_BJ[:, :2] = 3
        cut = FilledContext(context.mask_BT[:, place_J], level_BJ)
        tokens_BJ = tokens_BT[:, place_J]
        yield place_J, Batch(tokens_BJ, tokens_BJ, tokens_BJ, cut, {})


def jaccard(a_NF: Tensor, b_NF: Tensor) -> Tensor:
    """[N] |A ∩ B| / |A ∪ B| of the active sets; 1 when both are empty."""
    both, either = (a_NF > 0) & (b_NF > 0), (a_NF > 0) | (b_NF > 0)
    union = either.sum(-1).double()
    return torch.where(union > 0, both.sum(-1) / union.clamp(min=1), 1.0)


def cosine(a_NF: Tensor, b_NF: Tensor) -> Tensor:
    """[N] cosine; 1 when both are zero, 0 when one is."""
    a, b = a_NF.double(), b_NF.double()
    norm_a, norm_b = a.norm(dim=-1), b.norm(dim=-1)
    empty = (norm_a == 0) & (norm_b == 0)
    return torch.where(empty, 1.0, (a * b).sum(-1) / (norm_a * norm_b).clamp(min=1e-30))
