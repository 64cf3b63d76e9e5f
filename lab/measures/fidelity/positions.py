"""By position: what a dictionary keeps early and late in a sequence."""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, Tokens, row
from lab.worlds import World
from tsae.saes.config import require

HALVES = ("first", "second")


@register("positions")
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None, *, bins: int = 16
) -> dict[str, Measured]:
    r"""Reconstruction by position in the sequence.

    Positions 0 … T − 1 are cut into ``bins`` of near equal length, group ``p=first-last``. Over the
    valid test tokens of a bin, with x̄ the mean of all tokens evaluated (one for all bins):
    ``position_fve`` = 1 − Σ|x − x̂|² / Σ|x − x̄|². ``position_gap_fve`` (group all) = FVE of the
    second half of positions − FVE of the first: the gap of a dictionary trained on the first half is
    what it loses beyond it, but for how much harder those positions are for any dictionary.

    Document rows: ``position_fvu``, groups ``half=first`` and ``half=second`` (num = Σ|x − x̂|²,
    den = Σ|x − x̄|²), both for every document. Only sums inside the test split; no latent is chosen.
    Raises ValueError for ``bins`` outside 2 … T.
    """
    length = reading.store.seq_len
    require(2 <= bins <= length, "bins", bins, f"2 to {length}")
    mean_D = mean_of(reading)
    found = {}
    for name, sae in saes.items():
        table = pd.concat(sums(t, mean_D, bins, length) for t in reading.tokens(sae, "test"))
        table = table.groupby(["doc", "bin", "half"], as_index=False).sum()
        rows = []
        for i, (n, sse, sst) in table.groupby("bin")[["n", "sse", "sst"]].sum().iterrows():
            # The first position p with p bins // length = i, and the last.
            first, last = -(-i * length // bins), -(-(i + 1) * length // bins) - 1
            rows.append(row("position_fve", f"p={first}-{last}", 1 - sse / sst, n))
        half = table.groupby("half")[["n", "sse", "sst"]].sum()
        if len(half) == len(HALVES):
            fve = 1 - half["sse"] / half["sst"]
            gap = fve["second"] - fve["first"]
            rows.append(row("position_gap_fve", "all", gap, half["n"].sum()))
        found[name] = Measured(rows, halves(table))
    return found


def mean_of(reading: Reading) -> Tensor:
    """x̄ [D] float64 of the valid test tokens. Raises ValueError without any."""
    total, n = torch.zeros((), dtype=torch.float64), 0
    for batch in reading.batches("test"):
        x_ND = batch.x_BTD[batch.context.mask_BT.bool()]
        total, n = total + x_ND.sum(0, dtype=torch.float64), n + len(x_ND)
    if n == 0:
        raise ValueError("no valid token was evaluated; ask for more tokens")
    return total / n


def sums(t: Tokens, mean_D: Tensor, bins: int, length: int) -> pd.DataFrame:
    """n, sse and sst by doc, bin and half."""
    x_ND = t.x_ND.double()
    columns = {
        "doc": t.doc_N,
        "bin": t.position_N * bins // length,
        "half": (t.position_N >= round(length / 2)).long(),
        "n": torch.ones_like(t.position_N),
        "sse": (x_ND - t.x_hat_ND.double()).square().sum(1),
        "sst": (x_ND - mean_D).square().sum(1),
    }
    frame = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    frame["half"] = frame["half"].map(dict(enumerate(HALVES)))
    return frame.groupby(["doc", "bin", "half"], as_index=False).sum()


def halves(table: pd.DataFrame) -> pd.DataFrame:
    """Document rows; a document without tokens in a half has zeros there."""
    index = pd.MultiIndex.from_product(
        [sorted(table["doc"].unique()), HALVES], names=["doc", "half"]
    )
    frame = table.groupby(["doc", "half"])[["sse", "sst"]].sum().reindex(index, fill_value=0.0)
    frame = frame.rename(columns={"sse": "num", "sst": "den"}).reset_index()
    return frame.assign(metric="position_fvu", group="half=" + frame.pop("half"))
