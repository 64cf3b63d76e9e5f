r"""How codes change from one token to the next, and where, by latent group.

All over token pairs inside one piece (see :class:`lab.measures.reading.Tokens`), so nothing
crosses a document or a masked token. Group "all" and each group of the SAE.

- ``smoothness`` (lower is smoother): per piece, mean over the latents active in it of
  max_t |z_i[t] − z_i[t−1]| / |x_t − x_{t−1}|; mean over pieces (Bhalla et al. 2025,
  arXiv 2511.05541, whose unit is the sequence; here one document's part of it). It scales with a
  latent's magnitude, hence ``smoothness_normalised``, the same of z_i / s.d.(z_i).
- ``tss`` = [mean cos(z[t], z[t−1]) inside a sentence − across a sentence or section boundary] minus
  the same for shuffled tokens (``tss_null``). Pairs with an empty code are left out. Groups
  ``level=sentence|section``: across that level alone. ``cosine_inside``, ``cosine_across``: its terms.
- ``half_life``, ``mean_dwell`` (tokens, Kaplan–Meier, runs of a group pooled; inf when under half of
  the runs end within the window), ``births_per_100``, ``deaths_per_100`` tokens after a first one
- ``autocorrelation``: mean over latents that vary of Pearson r(z_i[t], z_i[t−ℓ]), group ``lag=ℓ``
- ``boundary_f1``: :func:`lab.measures.truth.boundaries.boundary_f1`, score = ‖z[t] − z[t−1]‖₁

``smoothness_null`` and ``tss_null``: of tokens shuffled inside their piece. Document rows: both
smoothnesses (num = Σ over pieces, den = pieces). Table ``dwell``: group, latent, dwell, count,
censored.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.fidelity.core import spreads
from lab.measures.reading import Encoder, Measured, Reading, Tokens, latent_groups, row
from lab.measures.time.lifecycle import LifecycleTracker
from lab.measures.truth.boundaries import boundary_f1, learned_boundaries
from lab.worlds import World

LAGS = (1, 2, 4, 8, 16)
LEVELS = {"sentence": 1, "section": 2}
SMOOTHNESS = ("smoothness", "smoothness_normalised")


@register("temporal", nulls=True)
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None, *, null: bool = True
) -> dict[str, Measured]:
    """The module's measures over the test tokens; ``null``: the shuffled tokens too."""
    found = {}
    for name, sae in saes.items():
        groups = latent_groups(sae, sae.cfg.d_sae, reading.device)
        part = Temporal(groups, reading.store.seq_len, spreads(sae, reading)[1])
        shuffled = Temporal(groups, reading.store.seq_len, part.spread_F) if null else None
        generator = torch.Generator().manual_seed(reading.seed)
        for t in reading.tokens(sae, "test"):
            part.update(t)
            if shuffled is not None:
                shuffled.update(t.shuffled(generator), lives=False)
        rows = part.rows() + learned_boundaries(sae, reading)
        if shuffled is not None:
            rows += against(rows, shuffled.rows())
        found[name] = Measured(rows, part.document_rows(), {"dwell": part.dwell_table()})
    return found


def against(rows: list[dict[str, Any]], nulls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``smoothness_null`` and ``tss`` beside the rows of the tokens in their order."""
    found = [r | {"metric": "smoothness_null"} for r in nulls if r["metric"] == "smoothness"]
    of = {r["group"]: r for r in nulls if r["metric"] == "cosine_contrast"}
    for r in rows:
        if r["metric"] == "cosine_contrast":
            null = of[r["group"]]
            found.append(row("tss", r["group"], r["value"] - null["value"], r["n"]))
            found.append(null | {"metric": "tss_null"})
    return found


class Temporal:
    """The module's sums over one order of the tokens. ``spread_F``: each latent's s.d. (1 if None)."""

    def __init__(
        self, groups: Mapping[str, Tensor], max_length: int, spread_F: Tensor | None = None
    ):
        self.groups, latents = dict(groups), groups["all"]
        self.spread_F = torch.ones(len(latents)) if spread_F is None else spread_F
        self.life = LifecycleTracker(len(latents), max_length, device=latents.device)
        # Σ cos and count: inside, across sentence, across section
        self.cos = {name: torch.zeros(3, 2, dtype=torch.float64) for name in self.groups}
        shape = (len(LAGS), 5, len(latents))
        self.moments = torch.zeros(shape, dtype=torch.float64, device=latents.device)
        self.pairs_L = [0] * len(LAGS)
        self.pieces: dict[str, list[pd.DataFrame]] = {name: [] for name in self.groups}
        self.change: dict[str, list[Tensor]] = {name: [] for name in self.groups}
        self.boundary: list[Tensor] = []
        self.piece: list[Tensor] = []
        self.n_pieces = 0

    def update(self, t: Tokens, lives: bool = True) -> None:
        """Take in more tokens; without ``lives`` nothing is counted that shuffling would break up."""
        if len(t) < 2:
            return
        linked = t.linked(1)
        change_NF = (t.z_NF[1:] - t.z_NF[:-1]).abs_()
        self._smoothness(t, change_NF, linked)
        for name, latents in self.groups.items():
            self._cosine(name, t.z_NF if name == "all" else t.z_NF[:, latents], t, linked)
            size_N = change_NF.sum(1) if name == "all" else change_NF[:, latents].sum(1)
            size_N = torch.where(linked, size_N, -1.0)
            self.change[name].append(torch.cat([size_N.new_full((1,), -1.0), size_N]).cpu())
        self.boundary.append(t.boundary_N.cpu())
        self.piece.append(t.piece_N.cpu() + self.n_pieces)
        self.n_pieces += int(t.piece_N[-1]) + 1
        if not lives:
            return
        self.life.update(t.z_NF > 0, t.piece_N)
        square_NF = t.z_NF.square()
        for i, lag in enumerate(LAGS):
            if lag < len(t):
                w, now, before = t.linked(lag).to(t.z_NF.dtype), t.z_NF[lag:], t.z_NF[:-lag]
                parts = (now, before, square_NF[lag:], square_NF[:-lag], now * before)
                self.moments[i] += torch.stack([w @ part for part in parts]).double()
                self.pairs_L[i] += int(w.sum())

    def _cosine(self, name: str, z_NG: Tensor, t: Tokens, linked: Tensor) -> None:
        dot, norm = (z_NG[1:] * z_NG[:-1]).sum(1).double(), z_NG.norm(dim=1).double()
        product = norm[1:] * norm[:-1]
        valid = linked & (product > 0)
        cos = torch.where(valid, dot / product.clamp(min=1e-30), 0.0)
        level = t.boundary_N[1:].clamp(max=2)
        for i in range(3):
            at = valid & (level == i)
            self.cos[name][i] += torch.stack([cos[at].sum(), at.sum()]).cpu()

    def _smoothness(self, t: Tokens, change_NF: Tensor, linked: Tensor) -> None:
        step_N = (t.x_ND[1:] - t.x_ND[:-1]).norm(dim=1)
        share_N = torch.where(linked & (step_N > 0), 1 / step_N.clamp(min=1e-30), 0.0)
        length = torch.bincount(t.piece_N)
        # the ratio of token t belongs to t's piece; a piece's first token has none (0)
        ratio_NF = torch.cat([torch.zeros_like(change_NF[:1]), change_NF * share_N[:, None]])
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

    def rows(self) -> list[dict[str, Any]]:
        """The module's rows but for what the nulls take part in: ``cosine_contrast`` for ``tss``."""
        rows: list[dict[str, Any]] = []
        boundary_N, piece_N = torch.cat(self.boundary), torch.cat(self.piece)
        for name, latents in self.groups.items():
            table = pd.concat(self.pieces[name])
            for metric in SMOOTHNESS:
                value = table[metric].sum() / table["den"].sum() if len(table) else math.nan
                rows.append(row(metric, name, value, table["den"].sum()))
            (inside, n_in), *across = self.cos[name].tolist()
            every = [sum(part) for part in zip(*across, strict=True)]
            at = {name: every}
            if name == "all":
                at |= {f"level={level}": across[i - 1] for level, i in LEVELS.items()}
            terms = [row("cosine_inside", name, _ratio(inside, n_in), n_in)]
            terms.append(row("cosine_across", name, _ratio(*every), every[1]))
            for group, (total, n) in at.items():
                gap = _ratio(inside, n_in) - _ratio(total, n)
                terms.append(row("cosine_contrast", group, gap, n))
            f1, n = boundary_f1(torch.cat(self.change[name]), boundary_N, piece_N)
            rows += [*terms, row("boundary_f1", name, f1, n)]
            if self.life.tokens:
                rows += self._lives(name, latents)
        return rows

    def _lives(self, name: str, latents: Tensor) -> Iterable[dict[str, Any]]:
        life, runs = self.life, self.life.runs_seen(latents)
        for metric in ("half_life", "mean_dwell"):
            yield row(metric, name, getattr(life, metric)(latents) if runs else math.nan, runs)
        for metric, count_F in (("births", life.births_F), ("deaths", life.deaths_F)):
            value = 100 * count_F[latents].sum() / max(life.links, 1)
            yield row(f"{metric}_per_100", name, value, life.links)
        for lag, n, (a, b, aa, bb, ab) in zip(LAGS, self.pairs_L, self.moments, strict=True):
            spread_a, spread_b = n * aa - a.square(), n * bb - b.square()
            varies_F = (spread_a > 1e-6 * n * aa) & (spread_b > 1e-6 * n * bb)
            r_F = (n * ab - a * b) / (spread_a * spread_b).clamp(min=1e-300).sqrt()
            r_G = r_F[latents][varies_F[latents]]
            group = f"lag={lag}" if name == "all" else f"{name}:lag={lag}"
            yield row("autocorrelation", group, r_G.mean() if len(r_G) else math.nan, len(r_G))

    def document_rows(self) -> pd.DataFrame:
        """num and den of both smoothnesses by document and group."""
        frames = []
        for name, parts in self.pieces.items():
            table = pd.concat(parts).groupby("doc", as_index=False).sum()
            for metric in SMOOTHNESS:
                frame = table[["doc", "den"]].assign(num=table[metric], metric=metric, group=name)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def dwell_table(self) -> pd.DataFrame:
        """Columns group, latent, dwell, count, censored; one block a latent group."""
        table = self.life.table()
        parts = {name: table["latent"].isin(i.cpu().numpy()) for name, i in self.groups.items()}
        frames = [table[at].assign(group=name) for name, at in parts.items()]
        return pd.concat(frames, ignore_index=True)


def _ratio(total: float, n: float) -> float:
    return total / n if n else math.nan
