r"""Fidelity and economy: how sparse a code is, what it keeps, and what saying it would cost.

Over n valid test tokens x, with x̄ their mean, d = width (units: store-normalised, in which
E|x − mean|² = d on the training tokens):

- ``l0`` = mean |{i: z_i ≠ 0}|, ``l1`` = mean Σ|z_i|, ``mse`` = Σ|x − x̂|² / (n d)
- ``fve`` = 1 − Σ|x − x̂|² / Σ|x − x̄|²: perfect 1, always the mean 0
- ``fve_saebench_original`` = mean over tokens of 1 − |x − x̂|² / |x − x̄_batch|², what SAEBench
  reported until its pull request 61 (a mean of ratios instead of a ratio of means)
- ``cosine`` = mean cos(x, x̂); ``l2_ratio`` = mean |x̂| / |x|;
  ``reconstruction_bias`` = E|x̂|² / E[x·x̂] (arXiv 2404.16014, eq. 10)
- by group of latents: ``alive``, the share that fires at least once; ``always_on``, how many fire
  at more than 90% of tokens; ``effective_latents`` = exp H(r / Σ r) of the firing rates r: as many
  latents, all equally often on, would be as diverse
- ``births``, ``deaths``: latents that switch on, and off, a token; all that are active where a piece
  begins are born there, since nothing is known of them
- ``bits`` a token: a birth costs log₂ F + ``value_bits``, an active latent whose value, in steps of
  its largest / 2^value_bits, is another than one token before costs ``value_bits``, a death log₂
  of the number then active: what a code costs to say if what stays the same is free
- ``parameters`` of the dictionary

Document rows: ``fvu`` (Σ|x − x̂|² over Σ|x − x̄|²: their sums give 1 − fve exactly), ``l0``, ``births``
and ``bits`` (sums over tokens). Source: SAEBench ``core``, its slip corrected; economy: this project.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, Tokens, latent_groups, row
from lab.worlds import World

ALWAYS = 0.9


class Core:
    """The module's sums, in float64. ``largest_F``: of each latent's values, for their steps;
    ``groups``: latent ids by name; both are of one latent group without steps where not given."""

    def __init__(
        self,
        mean_D: Tensor,
        largest_F: Tensor | None = None,
        groups: Mapping[str, Tensor] | None = None,
        value_bits: int = 8,
    ):
        self.mean_D, self.largest_F, self.bits = mean_D.double(), largest_F, value_bits
        self.groups = dict(groups or {})
        self.fires_F = torch.zeros(1, dtype=torch.long)
        self.documents: list[pd.DataFrame] = []
        self.shift_sums: list[Tensor] = []

    def update(self, t: Tokens) -> None:
        """Take in more tokens."""
        if not len(t):
            return
        x, x_hat = t.x_ND.double(), t.x_hat_ND.double()
        centred = x - self.mean_D.to(x.device)
        sse_N = (x - x_hat).square().sum(1)
        batch_sst_N = (x - x.mean(0)).square().sum(1)
        norm_N, norm_hat_N, dot_N = x.norm(dim=1), x_hat.norm(dim=1), (x * x_hat).sum(1)
        columns = {
            "n": torch.ones_like(sse_N),
            "sse": sse_N,
            "square": centred.square().sum(1),
            "l1": t.z_NF.abs().sum(1, dtype=torch.float64),
            "ratios": 1 - sse_N / batch_sst_N.clamp(min=1e-12),
            "cosine": dot_N / (norm_N * norm_hat_N).clamp(min=1e-12),
            "l2_ratio": norm_hat_N / norm_N.clamp(min=1e-12),
            "hat2": norm_hat_N.square(),
            "dot": dot_N,
        } | self.economy(t)
        doc, index = torch.unique(t.doc_N, return_inverse=True)
        sums = torch.zeros(len(doc), len(columns), dtype=torch.float64, device=x.device)
        sums.index_add_(0, index, torch.stack(list(columns.values()), 1).double())
        frame = pd.DataFrame(sums.cpu().numpy(), columns=list(columns))
        self.documents.append(frame.assign(doc=doc.cpu().numpy()))
        shift = torch.zeros(len(doc), x.shape[1], dtype=torch.float64, device=x.device)
        self.shift_sums.append(shift.index_add_(0, index, centred).cpu())
        self.fires_F = self.fires_F + (t.z_NF != 0).sum(0).cpu()

    def economy(self, t: Tokens) -> dict[str, Tensor]:
        """l0, births, deaths and bits of each token [N]."""
        on_NF = t.z_NF != 0
        first_N = torch.cat([t.linked(1).new_ones(1), ~t.linked(1)])[:, None]
        before_NF = on_NF.roll(1, 0) & ~first_N
        born_N = (on_NF & ~before_NF).sum(1)
        dead_N = (before_NF & ~on_NF).sum(1)
        largest_F = t.z_NF.amax(0) if self.largest_F is None else self.largest_F
        step_NF = (t.z_NF * (2**self.bits / largest_F.clamp(min=1e-30))).round_()
        changed_N = (on_NF & before_NF & (step_NF != step_NF.roll(1, 0))).sum(1)
        birth = math.log2(on_NF.shape[1]) + self.bits
        which_N = before_NF.sum(1).clamp(min=1).double().log2()
        bits_N = birth * born_N + self.bits * changed_N + which_N * dead_N
        return {"l0": on_NF.sum(1), "births": born_N, "deaths": dead_N, "bits": bits_N}

    def summed(self) -> tuple[pd.DataFrame, int]:
        """Documents with Σ|x − x̄|² each, x̄ being the mean of all tokens evaluated; and the width."""
        if not self.documents:
            raise ValueError("no valid token was evaluated; ask for more tokens")
        frame, shift = pd.concat(self.documents, ignore_index=True), torch.cat(self.shift_sums)
        centre = shift.sum(0) / frame["n"].sum()
        cross = (shift @ centre).numpy()
        frame["sst"] = frame["square"] - 2 * cross + frame["n"] * float(centre @ centre)
        return frame.groupby("doc", as_index=False).sum(), len(centre)

    def rows(self) -> list[dict[str, Any]]:
        documents, width = self.summed()
        total = documents.sum()
        n = total["n"]
        means = ("l0", "births", "deaths", "bits", "l1", "cosine", "l2_ratio")
        found = {name: total[name] / n for name in means}
        found["mse"] = total["sse"] / (n * width)
        found["fve"] = 1 - total["sse"] / total["sst"]
        found["fve_saebench_original"] = total["ratios"] / n
        found["reconstruction_bias"] = total["hat2"] / total["dot"] if total["dot"] else math.nan
        rows = [row(name, "all", value, n) for name, value in found.items()]
        rate_F = self.fires_F.double() / n
        for name, latents in ({"all": torch.arange(len(rate_F))} | self.groups).items():
            rate_G = rate_F[latents.cpu()]
            some = bool(rate_G.any())
            effective = torch.distributions.Categorical(rate_G).entropy().exp() if some else 0
            rows.append(row("alive", name, (rate_G > 0).double().mean(), n))
            rows.append(row("always_on", name, (rate_G > ALWAYS).sum(), n))
            rows.append(row("effective_latents", name, effective, n))
        return rows

    def document_rows(self) -> pd.DataFrame:
        """num and den by document of ``fvu``, ``l0``, ``births``, ``bits``."""
        frame, _ = self.summed()
        of = {"fvu": ("sse", "sst")} | {name: (name, "n") for name in ("l0", "births", "bits")}
        parts = [
            frame[["doc"]].assign(metric=name, group="all", num=frame[a], den=frame[b])
            for name, (a, b) in of.items()
        ]
        return pd.concat(parts, ignore_index=True)


@register("core", nulls=True)
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None, *, value_bits: int = 8
) -> dict[str, Measured]:
    """The module's measures over the test tokens."""
    found = {}
    for name, sae in saes.items():
        groups = latent_groups(sae, sae.cfg.d_sae, reading.device)
        largest_F, _ = spreads(sae, reading)
        core = Core(reading.store.mean_D, largest_F, groups, value_bits)
        for t in reading.tokens(sae, "test"):
            core.update(t)
        rows = core.rows()
        if isinstance(sae, nn.Module):
            rows.append(row("parameters", "all", sum(p.numel() for p in sae.parameters()), 1))
        found[name] = Measured(rows, core.document_rows())
    return found


def spreads(sae: Encoder, reading: Reading) -> tuple[Tensor, Tensor]:
    """Each latent's largest value and standard deviation over the test tokens [F]."""
    largest_F = sum_F = square_F = torch.zeros((), device=reading.device)
    n = 0
    for t in reading.tokens(sae, "test"):
        largest_F = torch.maximum(largest_F, t.z_NF.amax(0))
        sum_F = sum_F + t.z_NF.sum(0, dtype=torch.float64)
        square_F = square_F + t.z_NF.square().sum(0, dtype=torch.float64)
        n += len(t)
    variance_F = square_F / max(n, 1) - (sum_F / max(n, 1)).square()
    return largest_F, variance_F.clamp(min=0).sqrt()
