"""Texts read as codes, and which latents belong to what is to be forgotten."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsae.saes.base import SAE
from tsae.saes.config import require
from tsae.sequences import FilledContext


class Read(NamedTuple):
    """What an edit sees: x [B, T, d] in the store's units, its codes [B, T, F], the context."""

    x_BTD: Tensor
    z_BTF: Tensor
    context: FilledContext

    def rows(self, keep_B: Tensor) -> "Read":
        """Some of the sequences."""
        mask_BT, boundary_BT = self.context.mask_BT[keep_B], self.context.boundary_BT[keep_B]
        return Read(self.x_BTD[keep_B], self.z_BTF[keep_B], FilledContext(mask_BT, boundary_BT))


class Text(NamedTuple):
    """Whole sequences of which some tokens count.

    x_BTD in the store's units; keep_BT bool: the tokens of this text. The sequence may hold others,
    which a sequence encoder has to see. tokens_BT: ids, where weights are trained on them.
    """

    x_BTD: Tensor
    context: FilledContext
    keep_BT: Tensor
    tokens_BT: Tensor | None = None


class Coded(NamedTuple):
    """A text read once: x, its codes as a sparse tensor, the context, and which tokens count."""

    x_BTD: Tensor
    z_BTF: Tensor
    context: FilledContext
    keep_BT: Tensor

    def read(self) -> Read:
        """The text as an edit would see it."""
        return Read(self.x_BTD, self.z_BTF.to_dense(), self.context)

    def kept(self, latents: Tensor | slice = slice(None)) -> Tensor:
        """The codes [N, K] of the tokens that count."""
        return self.z_BTF.to_dense()[self.keep_BT][:, latents]


@torch.no_grad()
def coded(sae: SAE, texts: Iterable[Text]) -> list[Coded]:
    """Texts as codes. Raises ValueError when no token counts."""
    out = []
    for text in texts:
        z_BTF = sae.encode(text.x_BTD, text.context).to_sparse()
        out.append(Coded(text.x_BTD, z_BTF, text.context.filled(text.x_BTD), text.keep_BT))
    require(any(text.keep_BT.any() for text in out), "tokens", 0, "at least 1; the text is empty")
    return out


def stored(
    store: Any,
    split: str,
    inside: Mapping[str, Iterable[int]] | None = None,
    outside: Mapping[str, Iterable[int]] | None = None,
    *,
    limit_tokens: int,
    batch_size: int = 16,
    device: str = "cpu",
) -> Iterator[Text]:
    """The tokens of ``split`` that are of the given classes of each label ``inside``, and of other
    classes than the given ones of each label ``outside``.

    Sequences come in the store's order until ``limit_tokens`` tokens were kept; those without any
    are skipped. A token to which a label does not apply (−1) is neither inside nor outside.
    """
    wanted = [(*given, True) for given in (inside or {}).items()]
    wanted += [(*given, False) for given in (outside or {}).items()]
    kept = 0
    for batch in store.batches(split, batch_size):
        batch = batch.to(device)
        keep_BT = batch.context.mask_BT.clone()
        for name, classes, is_in in wanted:
            label_BT, ids = batch.labels[name].long(), torch.tensor(list(classes), device=device)
            keep_BT &= (label_BT >= 0) & (torch.isin(label_BT, ids) == is_in)
        rows = keep_BT.any(1)
        if rows.any():
            context = FilledContext(*(part_BT[rows] for part_BT in batch.context))
            yield Text(batch.x_BTD[rows], context, keep_BT[rows], batch.tokens_BT[rows].long())
        kept += int(keep_BT.sum())
        if kept >= limit_tokens:
            return


def frequency(texts: Sequence[Coded]) -> Tensor:
    """On what share of the tokens that count each latent fires, float64 [F]."""
    fires_F = sum((text.kept() > 0).sum(0).double() for text in texts)
    return torch.as_tensor(fires_F) / sum(int(text.keep_BT.sum()) for text in texts)


def exceeded_at_most(values_N: Tensor, share: float) -> Tensor:
    """Along dim 0, the smallest of the values that at most a share ``share`` of them exceeds."""
    rank = math.floor(share * len(values_N) + 1e-9)
    return values_N.sort(0, descending=True).values[rank]


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
        keep_F &= torch.isin(torch.arange(len(keep_F), device=keep_F.device), within)
    order = forget_F.argsort(descending=True, stable=True)
    return order[keep_F[order]]


def random_control(
    latents: Tensor | Iterable[int], frequency_F: Tensor, seed: int = 0, candidates: int = 8
) -> Tensor:
    """As many latents as ``latents``, drawn at random among others of like firing frequency.

    In a random order each chosen latent is replaced by one of the ``candidates`` still free latents
    whose log frequency lies nearest to its own, all equally likely; neither chosen nor silent ones
    are drawn. Raises ValueError when too few latents fire.
    """
    chosen = torch.as_tensor(latents, dtype=torch.long).flatten().cpu()
    log_F = frequency_F.detach().double().cpu().clamp_min(1e-12).log()
    free = frequency_F.detach().cpu() > 0
    free[chosen] = False
    if int(free.sum()) < len(chosen):
        raise ValueError(
            f"{int(free.sum())} other latents fire; a control of {len(chosen)} needs that many."
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty_like(chosen)
    for i in torch.randperm(len(chosen), generator=generator).tolist():
        ids = free.nonzero()[:, 0]
        near = ids[(log_F[ids] - log_F[chosen[i]]).abs().argsort(stable=True)[:candidates]]
        drawn[i] = near[torch.randint(len(near), (1,), generator=generator)]
        free[drawn[i]] = False
    return drawn
