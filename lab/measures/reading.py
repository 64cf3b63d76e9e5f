"""Reading: one store, read once for every family that asks, and what a family hands back.

What varies from family to family is how many tokens it wants and of which split; which tokens
those are, and each dictionary's codes of them, is settled here, so that all families see the same.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, SupportsFloat, SupportsInt

import pandas as pd
import torch
from torch import Tensor

from tsae.saes.base import SAEOutput
from tsae.saes.config import require
from tsae.sequences import SPLITS, SequenceContext
from tsae.store import ActivationStore
from tsae.store.reading import Batch

OWN, EMA, AVERAGE = "own", "ema", "average"
"""Three readings of a dictionary: its code, its code through an EMA, the averaged residual encoded."""


class Encoder(Protocol):
    """What is measured: a trained SAE, or a null that wraps one."""

    name: str
    cfg: Any
    meta: dict[str, Any]

    @property
    def groups(self) -> dict[str, Tensor]:
        """Latent ids by group."""

    def encode(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        """Codes [B, T, F]."""

    def decode(self, z_BTF: Tensor) -> Tensor:
        """Reconstructions [B, T, D]."""

    def __call__(self, x_BTD: Tensor, context: SequenceContext | None = None) -> SAEOutput:
        """Reconstructions, codes and a variant's extras."""


@dataclass(frozen=True)
class Sizes:
    """How much is read. Tokens are valid ones, taken in whole batches from a split's start."""

    test: int = 100_000
    """Tokens of the test split."""
    choose: int = 60_000
    """Tokens on which latents, thresholds, decays and settings are chosen."""
    splice: int = 30_000
    """Test tokens that the language model reads with each reconstruction in place."""
    sequences: int = 64
    """Test sequences that are read again with their context cut."""
    batch: int = 16
    """Sequences of a batch."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(isinstance(value, int) and value > 0, name, value, "a whole number above 0")


@dataclass(frozen=True)
class Tokens:
    """N valid tokens in reading order, cut into *pieces* that time does not cross.

    A piece is a run of consecutive valid tokens of one document inside one sequence; a new one
    starts at a sequence's first valid token, at boundary level 3, where the document changes, and
    after a masked token. Every temporal statistic looks at token pairs inside one piece only.

    x_ND: residuals; x_hat_ND: reconstructions; z_NF: codes; piece_N: 0, 1, 2, … ascending;
    boundary_N: level that starts at the token; doc_N: global document id; id_N: the token's id;
    position_N: its position in the sequence; labels: class per token.
    """

    x_ND: Tensor
    x_hat_ND: Tensor
    z_NF: Tensor
    piece_N: Tensor
    boundary_N: Tensor
    doc_N: Tensor
    id_N: Tensor
    position_N: Tensor
    labels: dict[str, Tensor]

    @classmethod
    def of(cls, batch: Batch, z_BTF: Tensor, x_hat_BTD: Tensor) -> "Tokens":
        """Flatten a store batch and its codes; masked positions are dropped.

        Raises ValueError when the codes hold NaN or infinity at a valid token.
        """
        mask_BT = batch.context.mask_BT.bool()
        keep = mask_BT.reshape(-1).nonzero().squeeze(1)
        z_NF = z_BTF.reshape(-1, z_BTF.shape[-1])[keep]
        if not z_NF.sum().isfinite():
            raise ValueError("codes hold NaN or infinity; the SAE diverged, train it again")
        return cls.unread(batch, z_NF, x_hat_BTD.reshape(-1, x_hat_BTD.shape[-1])[keep])

    @classmethod
    def unread(cls, batch: Batch, z_NF: Tensor, x_hat_ND: Tensor) -> "Tokens":
        """The valid tokens of a batch, with codes and reconstructions that are flat already."""
        mask_BT = batch.context.mask_BT.bool()
        piece_BT = pieces(mask_BT, batch.context.boundary_BT, batch.doc_BT)
        position_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device).expand_as(mask_BT)
        return cls(
            x_ND=batch.x_BTD[mask_BT],
            x_hat_ND=x_hat_ND,
            z_NF=z_NF,
            piece_N=torch.unique_consecutive(piece_BT[mask_BT], return_inverse=True)[1],
            boundary_N=batch.context.boundary_BT[mask_BT].long(),
            doc_N=batch.doc_BT[mask_BT].long(),
            id_N=batch.tokens_BT[mask_BT].long(),
            position_N=position_BT[mask_BT],
            labels={k: v[mask_BT].long() for k, v in batch.labels.items()},
        )

    def __len__(self) -> int:
        return len(self.piece_N)

    def linked(self, lag: int) -> Tensor:
        """[N − lag] bool: tokens t and t − lag lie in one piece (row t − lag of the result)."""
        return self.piece_N[lag:] == self.piece_N[: len(self) - lag]

    def shuffled(self, generator: torch.Generator) -> "Tokens":
        """The null of order: tokens (x, x̂, z, together) permuted inside their piece.

        Boundaries and labels stay where they were, so what is left is what the mix of tokens in
        the window alone would give.
        """
        key_N = torch.rand(len(self), generator=generator, dtype=torch.float64)
        order = torch.argsort(self.piece_N.double() + key_N.to(self.piece_N.device))
        return replace(
            self, x_ND=self.x_ND[order], x_hat_ND=self.x_hat_ND[order], z_NF=self.z_NF[order]
        )


def pieces(mask_BT: Tensor, boundary_BT: Tensor, doc_BT: Tensor | None = None) -> Tensor:
    """[B, T] piece number, ascending over the batch; see :class:`Tokens` for what a piece is."""
    new_BT = boundary_BT >= 3
    new_BT[:, 0] = True
    new_BT[:, 1:] |= mask_BT[:, 1:] != mask_BT[:, :-1]
    if doc_BT is not None:
        new_BT[:, 1:] |= doc_BT[:, 1:] != doc_BT[:, :-1]
    return new_BT.reshape(-1).cumsum(0).reshape(new_BT.shape) - 1


class Kept(NamedTuple):
    """The codes of one batch as they are kept: values [n], places [n] in N × F, and x̂ [N, D]."""

    values: Tensor
    places: Tensor
    shape: tuple[int, int]
    x_hat_ND: Tensor

    def dense(self) -> Tensor:
        """z [N, F]."""
        z = self.values.new_zeros(self.shape[0] * self.shape[1])
        return z.index_copy_(0, self.places, self.values).view(self.shape)


class Reading:
    """The tokens of a store and the codes of the dictionaries that families ask for.

    A dictionary encodes a split once; its codes are kept, sparse, while they fit in ``memory_mb``
    (MiB, all dictionaries together), and encoded anew for each family where they do not: the
    numbers are the same. ``choices`` is the split on which choices are made: validation, or train
    for a store that has none. Raises ValueError for ``memory_mb`` below 0.
    """

    def __init__(
        self,
        store: ActivationStore,
        sizes: Sizes | None = None,
        *,
        seed: int = 0,
        device: str = "cpu",
        memory_mb: float = 1024,
        progress: bool = True,
    ):
        require(memory_mb >= 0, "memory_mb", memory_mb, "0 or more")
        self.store, self.sizes = store, sizes or Sizes()
        self.seed, self.device, self.progress = seed, device, progress
        has = "validation" in SPLITS and store.n_sequences("validation") > 0
        self.choices = "validation" if has else "train"
        self.shared: dict[Any, Any] = {}
        """What families compute of the store alone, once for all dictionaries."""
        self._left = memory_mb * 2**20
        self._kept: dict[tuple[int, str], tuple[Encoder, list[Kept]]] = {}

    def limit(self, split: str) -> int:
        """Tokens that are read of a split where a family says nothing else."""
        return self.sizes.test if split == "test" else self.sizes.choose

    def batches(self, split: str, limit: int | None = None) -> Iterator[Batch]:
        """Whole batches until ``limit`` valid tokens."""
        limit, seen = self.limit(split) if limit is None else limit, 0
        for batch in self.store.batches(split, self.sizes.batch):
            yield batch.to(self.device)
            seen += int(batch.context.mask_BT.sum())
            if seen >= limit:
                return

    @torch.no_grad()
    def tokens(self, sae: Encoder, split: str, limit: int | None = None) -> Iterator[Tokens]:
        """Batches as flattened tokens with codes, until ``limit`` valid ones."""
        kept = self._kept.get((id(sae), split), (sae, []))[1]
        new: list[Kept] = []
        for i, batch in enumerate(self.batches(split, limit)):
            if i < len(kept):
                yield Tokens.unread(batch, kept[i].dense(), kept[i].x_hat_ND)
                continue
            out = sae(batch.x_BTD, batch.context)
            tokens = Tokens.of(batch, out.z, out.x_hat)
            if len(new) == i - len(kept):
                new += self._keep(tokens)
            yield tokens
        if new:
            self._kept[id(sae), split] = sae, [*kept, *new]

    def _keep(self, tokens: Tokens) -> list[Kept]:
        """The batch in a list, or an empty one when it does not fit."""
        z_N = tokens.z_NF.reshape(-1)
        places = z_N.nonzero().squeeze(1)
        n, f = tokens.z_NF.shape
        made = Kept(z_N[places], places, (n, f), tokens.x_hat_ND)
        size = sum(part.nbytes for part in (made.values, made.places, made.x_hat_ND))
        if size > self._left:
            return []
        self._left -= size
        return [made]

    def forget(self, sae: Encoder) -> None:
        """Drop what is kept of one dictionary."""
        for key in [key for key in self._kept if key[0] == id(sae)]:
            for part in self._kept.pop(key)[1]:
                self._left += part.values.nbytes + part.places.nbytes + part.x_hat_ND.nbytes


def latent_groups(sae: Encoder, n_latents: int, device: str | torch.device) -> dict[str, Tensor]:
    """The SAE's latent ids by group, with "all" always there and first."""
    groups = {"all": torch.arange(n_latents, device=device)}
    for name, latents in sae.groups.items():
        groups.setdefault(name, latents.to(device))
    return groups


def row(
    metric: str, group: str, value: SupportsFloat, n: SupportsInt, reading: str = OWN
) -> dict[str, Any]:
    """One row of the tidy results table; ``n`` is how many cases the value rests on."""
    value, n = float(value), int(n)
    return {"reading": reading, "metric": metric, "group": group, "value": value, "n": n}


class Measured(NamedTuple):
    """What a family says of one dictionary."""

    rows: list[dict[str, Any]]
    """Rows of reading, metric, group, value, n."""
    documents: pd.DataFrame | None = None
    """Rows of doc, metric, group, num, den (and reading, by default own) for the bootstrap: a
    metric's value is Σ num / Σ den over the documents."""
    tables: dict[str, pd.DataFrame] | None = None
    """Further tidy tables by name, for figures: edges, matrices, curves."""


Measure = Callable[..., Mapping[str, Measured]]
"""``measure(saes, reading, world, **options) -> {name: Measured}``."""
