"""By position: what a dictionary keeps early and late in a sequence."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lab.measures.nulls import EmaNull, ShuffledNull
from lab.measures.tokens import Measured, Tokens, row
from tsae.saes.config import require

HALVES = ("first", "second")


def measure(
    saes: Mapping[str, Any],
    store: Any,
    world: Any,
    *,
    limit_tokens: int,
    selection_tokens: int,
    batch_size: int,
    seed: int,
    device: str,
    progress: bool,
    bins: int = 16,
    first_share: float = 0.5,
) -> dict[str, Measured]:
    r"""Reconstruction, sparsity and change by position in the sequence; nulls are left out.

    Positions 0 … T − 1 are cut into ``bins`` of near equal length, group ``p=first-last``. Over the
    valid test tokens of a bin, with x̄ the mean of all tokens evaluated (one for all bins):

    - ``position_fve`` = 1 − Σ|x − x̂|² / Σ|x − x̄|², ``position_l0`` = mean |{i: z_i ≠ 0}|
    - ``position_change`` = mean of ‖z[t] − z[t−1]‖₁ / |x_t − x_{t−1}| over the tokens whose
      predecessor is in their document
    - ``position_gap_fve`` (group all) = FVE of the positions from ``first_share`` T on − FVE of
      those before: the gap of a dictionary trained on positions below ``first_share`` T is what
      it loses beyond them, but for how much harder they are for any dictionary

    Document rows: ``position_fvu``, groups ``half=first`` and ``half=second`` (num = Σ|x − x̂|²,
    den = Σ|x − x̄|²), both for every document. Only sums inside the test split; no latent is chosen.
    Raises ValueError for ``bins`` outside 2 … T or ``first_share`` outside (0, 1).
    """
    length = store.seq_len
    require(2 <= bins <= length, "bins", bins, f"2 to {length}")
    require(0 < first_share < 1, "first_share", first_share, "above 0 and below 1")
    mean_D = mean_of(store, limit_tokens, batch_size, device)
    found = {}
    for name, sae in tqdm(saes.items(), desc="positions", disable=not progress):
        if isinstance(sae, EmaNull | ShuffledNull):
            continue
        parts = []
        for t, position_N in read(store, limit_tokens, batch_size, device, sae):
            parts.append(sums(t, position_N, mean_D, bins, length, first_share))
        keys = ["doc", "bin", "half"]
        table = pd.concat(parts, ignore_index=True).groupby(keys, as_index=False).sum()
        found[name] = Measured(rows_of(table, bins, length), halves(table))
    return found


def read(
    store: Any, limit_tokens: int, batch_size: int, device: str, sae: Any = None
) -> Iterator[tuple[Tokens, Tensor]]:
    """Test tokens with codes (``sae`` None: x alone, in place of both) and position [N]."""
    seen = 0
    for batch in store.batches("test", batch_size):
        batch = batch.to(device)
        z, x_hat = batch.x_BTD, batch.x_BTD
        if sae is not None:
            out = sae(batch.x_BTD, batch.context)
            z, x_hat = out.z, out.x_hat
        mask_BT = batch.context.mask_BT.bool()
        position_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device).expand_as(mask_BT)
        yield Tokens.of(batch, z, x_hat), position_BT[mask_BT]
        seen += int(mask_BT.sum())
        if seen >= limit_tokens:
            return


def mean_of(store: Any, limit_tokens: int, batch_size: int, device: str) -> Tensor:
    """x̄ [D] float64 of the tokens that :func:`read` gives. Raises ValueError without any."""
    total, n = torch.zeros((), dtype=torch.float64), 0
    for t, _ in read(store, limit_tokens, batch_size, device):
        total, n = total + t.x_ND.sum(0, dtype=torch.float64), n + len(t)
    if n == 0:
        raise ValueError("no valid token was evaluated; ask for more tokens")
    return total / n


def sums(
    t: Tokens, position_N: Tensor, mean_D: Tensor, bins: int, length: int, first_share: float
) -> pd.DataFrame:
    """n, sse, sst, l0, change and pairs by doc, bin and half (0 first, 1 second)."""
    x_ND = t.x_ND.double()
    linked = torch.cat([t.linked(1).new_zeros(1), t.linked(1)])[: len(t)]
    step_N = (t.x_ND - t.x_ND.roll(1, 0)).norm(dim=1)
    moved = linked & (step_N > 0)
    change_N = (t.z_NF - t.z_NF.roll(1, 0)).abs().sum(1) / step_N.clamp_min(1e-30)
    columns = {
        "doc": t.doc_N,
        "bin": position_N * bins // length,
        "half": (position_N >= round(first_share * length)).long(),
        "n": torch.ones_like(position_N),
        "sse": (x_ND - t.x_hat_ND.double()).square().sum(1),
        "sst": (x_ND - mean_D).square().sum(1),
        "l0": (t.z_NF != 0).sum(1),
        "change": torch.where(moved, change_N, 0.0).double(),
        "pairs": moved.long(),
    }
    frame = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    return frame.groupby(["doc", "bin", "half"], as_index=False).sum()


def rows_of(table: pd.DataFrame, bins: int, length: int) -> list[dict[str, Any]]:
    """The rows of :func:`measure` from the sums."""
    rows = []
    for i, here in table.drop(columns=["doc", "half"]).groupby("bin").sum().iterrows():
        # The first position p with p bins // length = i, and the last.
        first, last = -(-i * length // bins), -(-(i + 1) * length // bins) - 1
        group, n = f"p={first}-{last}", here["n"]
        rows.append(row("position_fve", group, 1 - here["sse"] / here["sst"], n))
        rows.append(row("position_l0", group, here["l0"] / n, n))
        if here["pairs"]:
            change = here["change"] / here["pairs"]
            rows.append(row("position_change", group, change, here["pairs"]))
    half = table.groupby("half")[["n", "sse", "sst"]].sum()
    if len(half) == len(HALVES):
        fve = 1 - half["sse"] / half["sst"]
        rows.append(row("position_gap_fve", "all", fve[1] - fve[0], half["n"].sum()))
    return rows


def halves(table: pd.DataFrame) -> pd.DataFrame:
    """Document rows; a document without tokens in a half has zeros there."""
    docs = sorted(table["doc"].unique())
    frames = []
    for half, name in enumerate(HALVES):
        here = table[table["half"] == half].groupby("doc")[["sse", "sst"]].sum()
        here = here.reindex(docs, fill_value=0.0).rename(columns={"sse": "num", "sst": "den"})
        frames.append(here.reset_index().assign(metric="position_fvu", group=f"half={name}"))
    return pd.concat(frames, ignore_index=True)[["doc", "metric", "group", "num", "den"]]
