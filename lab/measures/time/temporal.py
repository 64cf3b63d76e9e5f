r"""How codes change from one token to the next, and where, by latent group.

All over token pairs inside one piece (see :class:`lab.measures.reading.Tokens`), so nothing
crosses a document or a masked token. Group "all" and each group of the SAE.

- ``smoothness`` (lower is smoother): per piece, mean over the latents active in it of
  max_t |z_i[t] − z_i[t−1]| / |x_t − x_{t−1}|; mean over pieces (Bhalla et al. 2025,
  arXiv 2511.05541, whose unit is the sequence; here one document's part of it). It scales with a
  latent's magnitude, hence ``smoothness_normalised``, the same of z_i / s.d.(z_i).
- ``tss`` = [mean cos(z[t], z[t−1]) inside a sentence − across a sentence or section boundary] minus
  the same for shuffled tokens (``tss_null``). Pairs with an empty code are left out.
- ``half_life``, ``mean_dwell`` (tokens, Kaplan–Meier, runs of a group pooled; inf when under half of
  the runs end within the window), ``births_per_100`` tokens after a first one; of all latents
  ``reactivation_gap`` (mean tokens of silence between two stays in one piece) and ``returns`` (share
  of births of latents that were active before in the piece)
- ``boundary_f1``: :func:`lab.measures.truth.boundaries.boundary_f1`, score = ‖z[t] − z[t−1]‖₁

``smoothness_null`` and ``tss_null``: of tokens shuffled inside their piece. Document rows: both
smoothnesses (num = Σ over pieces, den = pieces), and ``tss`` (num = value · share of pairs +
influence, den = share of pairs). Table ``dwell``: group, dwell, count, censored.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.fidelity.core import spreads
from lab.measures.reading import Encoder, Measured, Reading, Tokens, latent_groups, row
from lab.measures.time.lifecycle import LifecycleTracker
from lab.measures.truth.boundaries import boundary_f1, learned_boundaries
from lab.worlds import World

SMOOTHNESS = ("smoothness", "smoothness_normalised")
COSINES = pd.MultiIndex.from_product([["cos", "n"], [False, True]])


@register("temporal", nulls=True)
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None
) -> dict[str, Measured]:
    """The module's measures over the test tokens."""
    found = {}
    for name, sae in saes.items():
        groups = latent_groups(sae, sae.cfg.d_sae, reading.device)
        spread_F = spreads(sae, reading)[1]
        own, null = (Temporal(groups, reading.store.seq_len, spread_F) for _ in range(2))
        generator = torch.Generator().manual_seed(reading.seed)
        for t in reading.tokens(sae, "test"):
            own.update(t)
            null.update(t.shuffled(generator), whole=False)
        rows, documents = own.measured(null)
        rows += learned_boundaries(sae, reading)
        dwell = [own.life.table(latents).assign(group=group) for group, latents in groups.items()]
        found[name] = Measured(rows, documents, {"dwell": pd.concat(dwell, ignore_index=True)})
    return found


class Temporal:
    """The module's sums over one order of the tokens. ``spread_F``: each latent's s.d. (1 if None)."""

    def __init__(
        self, groups: Mapping[str, Tensor], max_length: int, spread_F: Tensor | None = None
    ):
        self.groups, latents = dict(groups), groups["all"]
        self.spread_F = torch.ones(len(latents)) if spread_F is None else spread_F
        self.life = LifecycleTracker(len(latents), max_length, latents.device)
        self.pieces: dict[str, list[pd.DataFrame]] = {name: [] for name in self.groups}
        self.cosines: dict[str, list[pd.DataFrame]] = {name: [] for name in self.groups}
        self.changes: dict[str, list[Tensor]] = {name: [] for name in self.groups}
        self.boundaries: list[Tensor] = []
        self.piece: list[Tensor] = []
        self.n_pieces = 0

    def update(self, t: Tokens, whole: bool = True) -> None:
        """Take in more tokens; if not ``whole``, without stays and boundaries."""
        if len(t) < 2:
            return
        linked = t.linked(1)
        change_NF = (t.z_NF[1:] - t.z_NF[:-1]).abs_()
        self._smoothness(t, change_NF, linked)
        for name, latents in self.groups.items():
            at = slice(None) if name == "all" else latents
            self._cosine(name, t.z_NF[:, at], t, linked)
            if whole:
                size_N = torch.where(linked, change_NF[:, at].sum(1), -1.0)
                self.changes[name].append(torch.nn.functional.pad(size_N, (1, 0), value=-1.0).cpu())
        if whole:
            self.boundaries.append(t.boundary_N.cpu())
            self.piece.append(t.piece_N.cpu() + self.n_pieces)
            self.n_pieces += int(t.piece_N[-1]) + 1
            self.life.update(t.z_NF > 0, t.piece_N)

    def _cosine(self, name: str, z_NG: Tensor, t: Tokens, linked: Tensor) -> None:
        dot, norm = (z_NG[1:] * z_NG[:-1]).sum(1).double(), z_NG.norm(dim=1).double()
        product = norm[1:] * norm[:-1]
        at = linked & (product > 0)
        columns = {"doc": t.doc_N[1:][at], "across": t.boundary_N[1:][at] > 0}
        columns |= {"cos": dot[at] / product[at], "n": torch.ones_like(dot[at])}
        frame = pd.DataFrame({key: value.cpu().numpy() for key, value in columns.items()})
        self.cosines[name].append(frame.groupby(["doc", "across"], as_index=False).sum())

    def _smoothness(self, t: Tokens, change_NF: Tensor, linked: Tensor) -> None:
        step_N = (t.x_ND[1:] - t.x_ND[:-1]).norm(dim=1)
        share_N = torch.where(linked & (step_N > 0), 1 / step_N.clamp(min=1e-30), 0.0)
        length = torch.bincount(t.piece_N)
        # the ratio of token t belongs to t's piece; a piece's first token has none (0)
        ratio_NF = torch.nn.functional.pad(change_NF * share_N[:, None], (0, 0, 1, 0))
        top_PF = torch.segment_reduce(ratio_NF, "max", lengths=length, axis=0)
        active_PF = torch.segment_reduce(t.z_NF, "max", lengths=length, axis=0) > 0
        active_PF &= (length > 1)[:, None]
        scaled_PF = top_PF / self.spread_F.to(top_PF).clamp(min=1e-12)
        doc_P = t.doc_N[length.cumsum(0) - length]
        for name, latents in self.groups.items():
            active = active_PF[:, latents]
            count_P = active.sum(1)
            some = count_P > 0
            frame = pd.DataFrame({"doc": doc_P[some].cpu().numpy(), "den": 1.0})
            for metric, value_PF in zip(SMOOTHNESS, (top_PF, scaled_PF), strict=True):
                mean_P = (value_PF[:, latents] * active).double().sum(1)[some] / count_P[some]
                frame[metric] = mean_P.cpu().numpy()
            self.pieces[name].append(frame.groupby("doc", as_index=False).sum())

    # ---- results ----------------------------------------------------------------------------

    def measured(self, null: "Temporal") -> tuple[list[dict[str, Any]], pd.DataFrame]:
        """The module's rows, and its document rows. ``null``: the same of the shuffled tokens."""
        rows: list[dict[str, Any]] = []
        documents: list[pd.DataFrame] = []
        boundary_N, piece_N = torch.cat(self.boundaries), torch.cat(self.piece)
        for name, latents in self.groups.items():
            table, shuffled = (
                pd.concat(of.pieces[name]).groupby("doc", as_index=False).sum()
                for of in (self, null)
            )
            n = table["den"].sum()
            for metric in SMOOTHNESS:
                rows.append(row(metric, name, table[metric].sum() / n if n else math.nan, n))
                frame = table[["doc", "den"]].assign(num=table[metric])
                documents.append(frame.assign(metric=metric, group=name))
            smooth = shuffled["smoothness"].sum() / n if n else math.nan
            rows.append(row("smoothness_null", name, smooth, n))
            value, n, influence, share = self.contrast(name)
            by_chance, n_null, of_null, _ = null.contrast(name)
            rows.append(row("tss", name, value - by_chance, n))
            rows.append(row("tss_null", name, by_chance, n_null))
            if np.isfinite(value):
                num = (value - by_chance) * share + influence.sub(of_null, fill_value=0)
                frame = pd.DataFrame({"num": num, "den": share}).reset_index()
                documents.append(frame.assign(metric="tss", group=name))
            f1 = boundary_f1(torch.cat(self.changes[name]), boundary_N, piece_N)
            rows += [row("boundary_f1", name, *f1), *self._lives(name, latents)]
        return rows, pd.concat(documents, ignore_index=True)

    def contrast(self, name: str) -> tuple[float, int, pd.Series, pd.Series]:
        """Mean cosine inside less across; of how many pairs across; by document its influence, and
        its share of all pairs."""
        parts = pd.concat(self.cosines[name]).groupby(["doc", "across"]).sum().unstack(fill_value=0)
        parts = parts.reindex(columns=COSINES, fill_value=0)
        total = parts["n"].sum()
        mean = parts["cos"].sum() / total
        each = (parts["cos"] - mean * parts["n"]) / total
        share = parts["n"].sum(axis=1) / total.sum()
        return mean[False] - mean[True], total[True], each[False] - each[True], share

    def _lives(self, name: str, latents: Tensor) -> Iterable[dict[str, Any]]:
        life, runs = self.life, self.life.runs_seen(latents)
        for metric in ("half_life", "mean_dwell"):
            yield row(metric, name, getattr(life, metric)(latents) if runs else math.nan, runs)
        births = int(life.births_F[latents].sum())
        yield row("births_per_100", name, 100 * births / max(life.links, 1), life.links)
        if name == "all":
            gaps_L = life.gaps_FL.sum(0).cpu()
            n = int(gaps_L.sum())
            silent = float((gaps_L * torch.arange(len(gaps_L))).sum())
            yield row("reactivation_gap", name, silent / max(n, 1), n)
            yield row("returns", name, n / max(births, 1), births)
