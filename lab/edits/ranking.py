"""Which latents belong to what is to be forgotten: firing frequencies on two texts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab.edits.evidence import Coded
from tsae.saes.config import require
from tsae.sequences import FilledContext


class Text(NamedTuple):
    """Whole sequences of which some tokens count.

    x_BTD in the store's units; keep_BT bool: the tokens of this text. The sequence may hold others,
    which a sequence encoder has to see. tokens_BT: ids, where weights are trained on them.
    """

    x_BTD: Tensor
    context: FilledContext
    keep_BT: Tensor
    tokens_BT: Tensor | None = None


def labelled(
    store: Any,
    split: str,
    label: str,
    classes: Iterable[int],
    *,
    inside: bool = True,
    also: Mapping[str, Iterable[int]] | None = None,
    limit_tokens: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
) -> Iterator[Text]:
    """The tokens of ``split`` whose ``label`` is one of ``classes`` (``inside``), or another class.

    ``also``: further labels and the classes of which a token has to be. Sequences come in the
    store's order until ``limit_tokens`` tokens were kept; those without any
    are skipped. Tokens to which the label does not apply (−1) belong to neither.
    """
    wanted = torch.tensor(sorted(classes), device=device)
    kept = 0
    for batch in store.batches(split, batch_size):
        batch = batch.to(device)
        label_BT = batch.labels[label].long()
        keep_BT = (torch.isin(label_BT, wanted) == inside) & (label_BT >= 0) & batch.context.mask_BT
        for name, chosen in (also or {}).items():
            allowed = torch.tensor(sorted(chosen), device=device)
            keep_BT &= torch.isin(batch.labels[name].long(), allowed)
        rows = keep_BT.any(1)
        if not rows.any():
            continue
        context = FilledContext(*(part[rows] for part in batch.context))
        tokens_BT = batch.tokens_BT[rows].long()
        yield Text(batch.x_BTD[rows], context, keep_BT[rows], tokens_BT)
        kept += int(keep_BT.sum())
        if limit_tokens is not None and kept >= limit_tokens:
            return


def frequency(texts: Sequence[Coded]) -> Tensor:
    """On what share of the tokens that count each latent fires, float64 [F]."""
    fires_F = sum((text.kept() > 0).sum(0).double() for text in texts)
    n = sum(int(text.keep_BT.sum()) for text in texts)
    return torch.as_tensor(fires_F) / n


def select(
    forget_F: Tensor, retain_F: Tensor, retain_threshold: float, within: Tensor | None = None
) -> Tensor:
    """Latent ids by falling frequency on the forget text (ties: lower id first).

    Kept are those with frequency above 0 on the forget text and at most ``retain_threshold`` on the
    retain text, and, if given, among the ids ``within``. May be empty.
    """
    require(0 <= retain_threshold <= 1, "retain_threshold", retain_threshold, "in [0, 1]")
    keep_F = (forget_F > 0) & (retain_F <= retain_threshold)
    if within is not None:
        inside_F = torch.zeros_like(keep_F)
        inside_F[within.to(keep_F.device)] = True
        keep_F &= inside_F
    order = forget_F.argsort(descending=True, stable=True)
    return order[keep_F[order]]
