"""Temporal metrics: how codes change from one token to the next, and where."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, Tokens, latent_groups, row
from lab.measures.time.lifecycle import LifecycleTracker
from lab.measures.truth.boundaries import boundary_f1, learned_boundaries
from lab.worlds import World

LAGS = (1, 2, 4, 8, 16)
LEVELS = {"sentence": 1, "section": 2}


@register("temporal", nulls=True)
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None, *, null: bool = True
) -> dict[str, Measured]:
    """:class:`Temporal` over the test tokens, :func:`learned_boundaries`; table ``dwell``."""
    found = {}
    for name, sae in saes.items():
        groups = latent_groups(sae, sae.cfg.d_sae, reading.device)
        part = Temporal(groups, reading.store.seq_len, null=null, seed=reading.seed)
        for t in reading.tokens(sae, "test"):
            part.update(t)
        rows = part.rows() + learned_boundaries(sae, reading)
        found[name] = Measured(rows, part.document_rows(), {"dwell": part.dwell_table()})
    return found


class Temporal:
    r"""Smoothness, stability, lifecycle, autocorrelation and boundaries, by latent group.

    All over token pairs inside one piece (see :class:`lab.measures.reading.Tokens`), so nothing
    crosses a document or a masked token. Group "all" and each group of the SAE.

    - ``smoothness`` (lower is smoother): per piece, mean over the latents active in it of
      max_t |z_i[t] − z_i[t−1]| / |x_t − x_{t−1}|; mean over pieces (Bhalla et al. 2025,
      arXiv 2511.05541, whose unit is the sequence; here one document's part of it)
    - ``tss`` = [mean cos(z[t], z[t−1]) inside a sentence − across a sentence or section boundary]
      minus the same for shuffled tokens; "over" the null is a difference, because the null is near
      0 and a ratio to it has no meaning. Pairs with an empty code are left out. Groups
      ``level=sentence|section``: across that level alone. ``cosine_inside``, ``cosine_across``
      are its two terms, ``tss_null`` the shuffled tokens' difference that was taken off.
    - ``half_life``, ``mean_dwell`` (tokens, Kaplan–Meier, runs of a group pooled; inf when under
      half of the runs end within the window), ``births_per_100``, ``deaths_per_100`` tokens
    - ``autocorrelation``: mean over latents that vary of Pearson r(z_i[t], z_i[t−ℓ]); group
      ``lag=ℓ`` for all, ``name:lag=ℓ`` for a latent group
    - ``boundary_f1``: see :func:`boundary_f1`, score = ‖z[t] − z[t−1]‖₁

    ``null=True`` measures shuffled tokens beside each (suffix ``_null``), and frequency-matched
    latents (suffix ``_matched``) for tss and boundary_f1; run lengths and autocorrelation survive
    that shift by construction. Document rows: ``smoothness`` (num = Σ over pieces, den = pieces).
    """

    def __init__(
        self, groups: Mapping[str, Tensor], max_length: int, *, null: bool = True, seed: int = 0
    ):
        self.generator = torch.Generator().manual_seed(seed)
        self.kinds = ("", "_null", "_matched") if null else ("",)
        self.parts = {
            kind: _Pass(groups, max_length, full=kind != "_matched") for kind in self.kinds
        }

    def update(self, t: Tokens) -> None:
        if len(t) < 2:
            return
        for kind, part in self.parts.items():
            if kind == "_null":
                part.update(t.shuffled(self.generator))
            elif kind == "_matched":
                part.update(t.matched(self.generator))
            else:
                part.update(t)

    def rows(self) -> list[dict[str, Any]]:
        rows = [r for kind, part in self.parts.items() for r in part.rows(kind)]
        raw = {(r["metric"], r["group"]): r for r in rows}
        for (metric, group), r in list(raw.items()):
            if metric == "contrast":
                null = raw.get(("contrast_null", group))
                if null is not None:
                    matched = raw[("contrast_matched", group)]
                    rows.append(row("tss", group, r["value"] - null["value"], r["n"]))
                    rows.append(row("tss_null", group, null["value"], null["n"]))
                    rows.append(row("tss_matched", group, matched["value"], matched["n"]))
        return [r for r in rows if not r["metric"].startswith("contrast")]

    def document_rows(self) -> pd.DataFrame:
        return self.parts[""].document_rows()

    def dwell_table(self) -> pd.DataFrame:
        """Columns group, latent, dwell, count, censored; one block a latent group."""
        return self.parts[""].dwell_table()


class _Pass:
    """One pass over the tokens as they are, shuffled, or matched."""

    def __init__(self, groups: Mapping[str, Tensor], max_length: int, full: bool):
        self.groups, self.full = dict(groups), full
        n_latents, device = len(self.groups["all"]), self.groups["all"].device
        self.life = LifecycleTracker(n_latents, max_length, device=device)
        self.documents: dict[str, list[pd.DataFrame]] = {name: [] for name in self.groups}
        # Σ cos and count: inside, across sentence, across section
        self.cos = {name: torch.zeros(3, 2, dtype=torch.float64) for name in self.groups}
        self.moments = {lag: _Moments(n_latents, device) for lag in LAGS}
        self.change: dict[str, list[Tensor]] = {name: [] for name in self.groups}
        self.boundary: list[Tensor] = []
        self.piece: list[Tensor] = []
        self.n = self.n_pieces = 0

    def update(self, t: Tokens) -> None:
        self.n += len(t)
        linked = t.linked(1)
        change_NF = (t.z_NF[1:] - t.z_NF[:-1]).abs_()
        step_N = (t.x_ND[1:] - t.x_ND[:-1]).norm(dim=1)
        for name, latents in self.groups.items():
            whole = name == "all"
            z_NG = t.z_NF if whole else t.z_NF[:, latents]
            change_NG = change_NF if whole else change_NF[:, latents]
            self._cosine(name, z_NG, t.boundary_N, linked)
            size_N = torch.cat([change_NG.new_full((1,), -1.0), change_NG.sum(1)])
            size_N[1:][~linked] = -1.0
            self.change[name].append(size_N.cpu())
        self.boundary.append(t.boundary_N.cpu())
        self.piece.append(t.piece_N.cpu() + self.n_pieces)
        self.n_pieces += int(t.piece_N[-1]) + 1
        if self.full:
            self._smoothness(t, change_NF, step_N, linked)
            self.life.update(t.z_NF > 0, t.piece_N)
            square_NF = t.z_NF.square()
            for lag, moments in self.moments.items():
                if lag < len(t):
                    moments.update(t.z_NF, square_NF, t.linked(lag), lag)

    def _cosine(self, name: str, z_NG: Tensor, boundary_N: Tensor, linked: Tensor) -> None:
        dot = (z_NG[1:] * z_NG[:-1]).sum(1).double()
        norm = z_NG.norm(dim=1).double()
        product = norm[1:] * norm[:-1]
        valid = linked & (product > 0)
        cos = torch.where(valid, dot / product.clamp(min=1e-30), 0.0)
        level = boundary_N[1:].clamp(max=2)
        for i in range(3):
            at = valid & (level == i)
            self.cos[name][i] += torch.stack([cos[at].sum(), at.sum()]).cpu()

    def _smoothness(self, t: Tokens, change_NF: Tensor, step_N: Tensor, linked: Tensor) -> None:
        moved = linked & (step_N > 0)
        ratio_NF = change_NF * torch.where(moved, 1 / step_N.clamp(min=1e-30), 0.0)[:, None]
        length = torch.bincount(t.piece_N)
        # the ratio of token t belongs to t's piece; a piece's first token has none (0)
        ratio_NF = torch.cat([torch.zeros_like(ratio_NF[:1]), ratio_NF])
        top_PF = torch.segment_reduce(ratio_NF, "max", lengths=length, axis=0)
        active_PF = torch.segment_reduce(t.z_NF, "max", lengths=length, axis=0) > 0
        active_PF &= (length > 1)[:, None]
        first_P = length.cumsum(0) - length
        doc_P = t.doc_N[first_P]
        for name, latents in self.groups.items():
            active = active_PF[:, latents]
            count_P = active.sum(1)
            some = count_P > 0
            value_P = (top_PF[:, latents] * active).double().sum(1)[some] / count_P[some]
            frame = pd.DataFrame({"doc": doc_P[some].cpu(), "num": value_P.cpu(), "den": 1.0})
            self.documents[name].append(frame.groupby("doc", as_index=False).sum())

    # ---- results ----------------------------------------------------------------------------

    def rows(self, suffix: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        boundary_N, piece_N = torch.cat(self.boundary), torch.cat(self.piece)
        for name, latents in self.groups.items():
            rows += self._stability_rows(name, suffix)
            f1, n = boundary_f1(torch.cat(self.change[name]), boundary_N, piece_N)
            rows.append(row(f"boundary_f1{suffix}", name, f1, n))
            if self.full:
                rows += self._full_rows(name, latents, suffix)
        return rows

    def _full_rows(self, name: str, latents: Tensor, suffix: str) -> list[dict[str, Any]]:
        pieces = pd.concat(self.documents[name])
        n_pieces, runs, links = pieces["den"].sum(), self.life.runs_seen(latents), self.life.links
        smooth = pieces["num"].sum() / n_pieces if n_pieces else math.nan
        half, dwell = (
            (self.life.half_life(latents), self.life.mean_dwell(latents))
            if runs
            else (math.nan, math.nan)
        )
        births, deaths = self.life.births_F[latents].sum(), self.life.deaths_F[latents].sum()
        rows = [
            row(f"smoothness{suffix}", name, smooth, n_pieces),
            row(f"half_life{suffix}", name, half, runs),
            row(f"mean_dwell{suffix}", name, dwell, runs),
            row(f"births_per_100{suffix}", name, 100 * births / max(links, 1), links),
            row(f"deaths_per_100{suffix}", name, 100 * deaths / max(links, 1), links),
        ]
        for lag, moments in self.moments.items():
            r_F = moments.correlation()[latents]
            group = f"lag={lag}" if name == "all" else f"{name}:lag={lag}"
            rows.append(
                row(f"autocorrelation{suffix}", group, r_F.nanmean(), int((~r_F.isnan()).sum()))
            )
        return rows

    def _stability_rows(self, name: str, suffix: str) -> list[dict[str, Any]]:
        (inside, n_in), *across = self.cos[name].tolist()
        total, n_across = across[0][0] + across[1][0], across[0][1] + across[1][1]
        mean_in = inside / n_in if n_in else math.nan

        def mean(value: float, n: float) -> float:
            return value / n if n else math.nan

        rows = [
            row(f"cosine_inside{suffix}", name, mean_in, n_in),
            row(f"cosine_across{suffix}", name, mean(total, n_across), n_across),
            row(f"contrast{suffix}", name, mean_in - mean(total, n_across), n_across),
        ]
        if name == "all":
            for level, i in LEVELS.items():
                value, n = across[i - 1]
                rows.append(row(f"contrast{suffix}", f"level={level}", mean_in - mean(value, n), n))
        return rows

    def document_rows(self) -> pd.DataFrame:
        frames = [
            pd.concat(parts).groupby("doc", as_index=False).sum().assign(group=name)
            for name, parts in self.documents.items()
        ]
        return pd.concat(frames, ignore_index=True).assign(metric="smoothness")

    def dwell_table(self) -> pd.DataFrame:
        table = self.life.table()
        frames = [
            table[table["latent"].isin(latents.cpu().numpy())].assign(group=name)
            for name, latents in self.groups.items()
        ]
        return pd.concat(frames, ignore_index=True)


class _Moments:
    """Sums for each latent's Pearson correlation with itself some tokens before."""

    def __init__(self, n_latents: int, device: str | torch.device):
        self.sums_5F = torch.zeros(5, n_latents, dtype=torch.float64, device=device)
        self.n = 0

    def update(self, z_NF: Tensor, square_NF: Tensor, linked: Tensor, lag: int) -> None:
        w = linked.to(z_NF.dtype)
        now, before = z_NF[lag:], z_NF[:-lag]
        sums = [w @ now, w @ before, w @ square_NF[lag:], w @ square_NF[:-lag], w @ (now * before)]
        self.sums_5F += torch.stack(sums).double()
        self.n += int(linked.sum())

    def correlation(self) -> Tensor:
        """[F] float64; NaN for latents that do not vary."""
        a, b, aa, bb, ab = self.sums_5F
        spread_a, spread_b = self.n * aa - a.square(), self.n * bb - b.square()
        varies = (spread_a > 1e-6 * self.n * aa) & (spread_b > 1e-6 * self.n * bb)
        r = (self.n * ab - a * b) / (spread_a * spread_b).clamp(min=1e-300).sqrt()
        return torch.where(varies, r, math.nan)
