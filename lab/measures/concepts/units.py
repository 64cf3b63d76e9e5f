"""Units of text with mean-pooled vectors: the documents, sections and tokens that probes read."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.measures.reading import Encoder, Reading, Tokens
from tsae.sequences import SCALES, SECTION


class Units(NamedTuple):
    """U units in reading order, float32: the means of x and z over the tokens of each.

    A document is cut where a sequence ends; a section ends at boundary level 2 or higher; a token
    is itself. ``labels``: class per unit by label of this scale, that of its first token.
    """

    x_UD: np.ndarray
    z_UF: np.ndarray
    doc_U: np.ndarray
    labels: dict[str, np.ndarray]


def unit_ids(t: Tokens, scale: str) -> Tensor:
    """[N] 0, 1, 2, …: the unit of ``scale`` (document, section, token) that each token is in."""
    if scale == "token":
        return torch.arange(len(t), device=t.piece_N.device)
    opens_N = torch.ones_like(t.piece_N, dtype=torch.bool)
    opens_N[1:] = t.piece_N[1:] != t.piece_N[:-1]
    if scale == "section":
        opens_N |= t.boundary_N >= SECTION
    return opens_N.long().cumsum(0) - 1


def pooled(a_ND: Tensor, unit_N: Tensor, n_units: int) -> Tensor:
    """[U, D] mean of the rows of each unit."""
    sums = torch.zeros(n_units, a_ND.shape[1], device=a_ND.device).index_add_(0, unit_N, a_ND)
    return sums / torch.bincount(unit_N, minlength=n_units)[:, None]


def read(
    sae: Encoder, reading: Reading, split: str, scales: tuple[str, ...] = SCALES, most: int = 20_000
) -> dict[str, Units]:
    """Units by scale; of the tokens themselves about ``most`` are kept, evenly."""
    every = max(1, reading.limit(split) // most)
    specs = reading.store.label_specs
    parts: dict[str, list[Units]] = {scale: [] for scale in scales}
    for t in reading.tokens(sae, split):
        for scale in scales if len(t) else ():
            unit_N = unit_ids(t, scale)
            n = int(unit_N[-1]) + 1
            first_U = torch.searchsorted(unit_N, torch.arange(n, device=unit_N.device))
            if scale == "token":
                first_U = first_U[::every]
                x, z = t.x_ND[first_U], t.z_NF[first_U]
            else:
                x, z = pooled(t.x_ND.float(), unit_N, n), pooled(t.z_NF.float(), unit_N, n)
            x_UD, z_UF, doc_U = (a.cpu().numpy() for a in (x, z, t.doc_N[first_U]))
            mine = [name for name, spec in specs.items() if spec.scale == scale]
            labels = {name: t.labels[name][first_U].cpu().numpy() for name in mine}
            parts[scale].append(Units(x_UD, z_UF, doc_U, labels))
    return {scale: joined(batches) for scale, batches in parts.items() if batches}


def joined(parts: list[Units]) -> Units:
    """Units of several batches as one."""
    x_UD, z_UF, doc_U = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:3])
    labels = {name: np.concatenate([p.labels[name] for p in parts]) for name in parts[0].labels}
    return Units(x_UD, z_UF, doc_U, labels)
