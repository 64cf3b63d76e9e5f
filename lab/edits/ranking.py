"""Which latents belong to what is to be forgotten: firing frequencies on two texts."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsae.saes.base import SAE, FilledContext, require


class Text(NamedTuple):
    """Whole sequences of which some tokens count.

    x_BTD in the store's units; keep_BT bool: the tokens of this text. The sequence may hold others,
    which a sequence encoder has to see.
    """

    x_BTD: Tensor
    context: FilledContext
    keep_BT: Tensor


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
        yield Text(batch.x_BTD[rows], context, keep_BT[rows])
        kept += int(keep_BT.sum())
        if limit_tokens is not None and kept >= limit_tokens:
            return


class Frequency(NamedTuple):
    """``share_F`` float64: on what share of ``n`` tokens each latent fires."""

    share_F: Tensor
    n: int


@torch.no_grad()
def frequency(sae: SAE, batches: Iterable[Any]) -> Frequency:
    """Firing frequency of every latent over the tokens that count.

    ``batches``: :class:`Text` or the store's ``Batch`` (whose valid tokens all count). Raises
    ValueError when no token counts.
    """
    fires_F = torch.zeros(sae.cfg.d_sae, dtype=torch.float64, device=sae.W_dec.device)
    n = 0
    for batch in batches:
        keep_BT = getattr(batch, "keep_BT", batch.context.mask_BT)
        fires_F += (sae.encode(batch.x_BTD, batch.context)[keep_BT] > 0).sum(0)
        n += int(keep_BT.sum())
    require(n > 0, "tokens", n, "at least 1; the text to measure firing frequencies on is empty")
    return Frequency(fires_F / n, n)


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


def rank(
    sae: SAE,
    forget_batches: Iterable[Any],
    retain_batches: Iterable[Any],
    retain_threshold: float = 0.01,
    group: str | None = None,
) -> Tensor:
    """Latents of the forget text, strongest first: :func:`select` on measured frequencies.

    ``group``: rank only ``sae.groups[group]``, which asks whether that group alone holds the
    knowledge. Raises ValueError on an unknown group, naming the SAE's. Source: SAEBench
    ``unlearning`` (retain thresholds 0.001 and 0.01).
    """
    within = None
    if group is not None:
        groups = sae.groups
        require(group in groups, "group", group, f"one of {', '.join(groups)}")
        within = groups[group]
    forget_F = frequency(sae, forget_batches).share_F
    retain_F = frequency(sae, retain_batches).share_F
    return select(forget_F, retain_F, retain_threshold, within)
