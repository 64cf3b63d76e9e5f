"""The valid tokens of a batch, flattened, with where time may not be crossed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, SupportsFloat, SupportsInt

import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """N valid tokens in reading order, cut into *pieces* that time does not cross.

    A piece is a run of consecutive valid tokens of one document inside one sequence; a new one
    starts at a sequence's first valid token, at boundary level 3, where the document changes, and
    after a masked token. Every temporal statistic looks at token pairs inside one piece only.

    x_ND: residuals; x_hat_ND: reconstructions; z_NF: codes; piece_N: 0, 1, 2, … ascending;
    boundary_N: level that starts at the token; doc_N: global document id; labels: class per token.
    """

    x_ND: Tensor
    x_hat_ND: Tensor
    z_NF: Tensor
    piece_N: Tensor
    boundary_N: Tensor
    doc_N: Tensor
    labels: dict[str, Tensor]

    @classmethod
    def of(cls, batch: Any, z_BTF: Tensor, x_hat_BTD: Tensor) -> "Tokens":
        """Flatten a store batch and its codes; masked positions are dropped.

        Raises ValueError when the codes hold NaN or infinity at a valid token.
        """
        mask_BT = batch.context.mask_BT.bool()
        piece_BT = pieces(mask_BT, batch.context.boundary_BT, batch.doc_BT)
        keep = mask_BT.reshape(-1).nonzero().squeeze(1)
        z_NF = z_BTF.reshape(-1, z_BTF.shape[-1])[keep]
        if not torch.isfinite(z_NF).all():
            raise ValueError("codes hold NaN or infinity; the SAE diverged, train it again")
        return cls(
            x_ND=batch.x_BTD.reshape(-1, batch.x_BTD.shape[-1])[keep],
            x_hat_ND=x_hat_BTD.reshape(-1, x_hat_BTD.shape[-1])[keep],
            z_NF=z_NF,
            piece_N=torch.unique_consecutive(piece_BT.reshape(-1)[keep], return_inverse=True)[1],
            boundary_N=batch.context.boundary_BT.reshape(-1)[keep].long(),
            doc_N=batch.doc_BT.reshape(-1)[keep].long(),
            labels={k: v.reshape(-1)[keep].long() for k, v in batch.labels.items()},
        )

    def __len__(self) -> int:
        return len(self.piece_N)

    def where(self, keep_N: Tensor) -> "Tokens":
        """The tokens where ``keep_N`` is True; use it to keep whole documents."""
        return Tokens(
            self.x_ND[keep_N],
            self.x_hat_ND[keep_N],
            self.z_NF[keep_N],
            self.piece_N[keep_N],
            self.boundary_N[keep_N],
            self.doc_N[keep_N],
            {name: label_N[keep_N] for name, label_N in self.labels.items()},
        )

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

    def matched(self, generator: torch.Generator) -> "Tokens":
        """The frequency-matched null: each latent's activity shifted circularly by its own offset.

        Each latent keeps its values, frequency and (but for the seams) its run lengths; what ties
        it to boundaries, labels and other latents is lost.
        """
        n, f = self.z_NF.shape
        offset_F = torch.randint(n, (f,), generator=generator).to(self.z_NF.device)
        row_NF = (torch.arange(n, device=self.z_NF.device)[:, None] + offset_F) % n
        return replace(self, z_NF=self.z_NF.gather(0, row_NF))


def pieces(mask_BT: Tensor, boundary_BT: Tensor, doc_BT: Tensor | None = None) -> Tensor:
    """[B, T] piece number, ascending over the batch; see :class:`Tokens` for what a piece is."""
    new_BT = boundary_BT >= 3
    new_BT[:, 0] = True
    new_BT[:, 1:] |= mask_BT[:, 1:] != mask_BT[:, :-1]
    if doc_BT is not None:
        new_BT[:, 1:] |= doc_BT[:, 1:] != doc_BT[:, :-1]
    return new_BT.reshape(-1).cumsum(0).reshape(new_BT.shape) - 1


def latent_groups(sae: Any, n_latents: int, device: str | torch.device) -> dict[str, Tensor]:
    """The SAE's latent ids by group, with "all" always there and first."""
    groups = {"all": torch.arange(n_latents, device=device)}
    for name, latents in sae.groups.items():
        groups.setdefault(name, latents.to(device))
    return groups


def row(metric: str, group: str, value: SupportsFloat, n: SupportsInt) -> dict[str, Any]:
    """One row of the tidy results table; ``n`` is how many cases the value rests on."""
    return {"metric": metric, "group": group, "value": float(value), "n": int(n)}


class Measured(NamedTuple):
    """What a family of :data:`lab.measures.extras.EXTRAS` found for one SAE."""

    rows: list[dict[str, Any]]
    """Rows of metric, group, value, n."""
    documents: pd.DataFrame | None = None
    """Rows of doc, metric, group, num, den, for the paired bootstrap."""
    tables: dict[str, pd.DataFrame] | None = None
    """Further tidy tables by name, for figures: edges, matrices, curves."""


def encoded(
    sae: Any, store: Any, split: str, limit_tokens: int, batch_size: int, device: str
) -> Iterator[Tokens]:
    """Batches of a split as flattened tokens with codes, until ``limit_tokens`` valid ones."""
    seen = 0
    for batch in store.batches(split, batch_size):
        batch = batch.to(device)
        out = sae(batch.x_BTD, batch.context)
        tokens = Tokens.of(batch, out.z, out.x_hat)
        yield tokens
        seen += len(tokens)
        if seen >= limit_tokens:
            return
