"""Core metrics: how sparse a code is, what it keeps, and what the model loses with it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, Tokens, row
from lab.worlds import World
from tsae import models

DENSITY_STEP = 0.5
"""Width of the density histogram's bins, in powers of ten."""


class Core:
    r"""Sparsity and reconstruction, accumulated over batches in float64.

    Over n valid tokens x of a split, with x̄ their mean, d = width (units: store-normalised, in
    which E|x − mean|² = d on the training tokens):

    - ``l0`` = mean |{i: z_i ≠ 0}|, ``l1`` = mean Σ|z_i|, ``mse`` = Σ|x − x̂|² / (n d)
    - ``fve`` = 1 − Σ|x − x̂|² / Σ|x − x̄|²: perfect 1, always the mean 0
    - ``fve_saebench_original`` = mean over tokens of 1 − |x − x̂|² / |x − x̄_batch|², what SAEBench
      reported until its pull request 61 (a mean of ratios instead of a ratio of means)
    - ``cosine`` = mean cos(x, x̂); ``l2_ratio`` = mean |x̂| / |x|;
      ``reconstruction_bias`` = E|x̂|² / E[x·x̂] (arXiv 2404.16014, eq. 10)
    - ``alive``: share of latents that fire at least once in these n tokens
    - ``density``: share of latents with a firing rate in [10^a, 10^(a+½)), group = a; "dead": 0

    Document rows: ``fvu`` (num = Σ|x − x̂|², den = Σ|x − x̄|²; their sums give 1 − fve exactly) and
    ``l0`` (num = active latents, den = tokens). Source: SAEBench ``core``, its slip corrected.
    """

    def __init__(self, mean_D: Tensor):
        self.mean_D = mean_D.double()
        self.sums: dict[str, float] = {}
        self.n = 0
        self.fires_F: Tensor | None = None
        self.documents: list[pd.DataFrame] = []
        self.shift_sums: list[Tensor] = []

    def update(self, t: Tokens) -> None:
        if not len(t):
            return
        x, x_hat = t.x_ND.double(), t.x_hat_ND.double()
        centred = x - self.mean_D.to(x.device)
        sse_N = (x - x_hat).square().sum(1)
        batch_sst_N = (x - x.mean(0)).square().sum(1)
        l0_N = (t.z_NF != 0).sum(1).double()
        norm_N, norm_hat_N = x.norm(dim=1), x_hat.norm(dim=1)
        dot_N = (x * x_hat).sum(1)
        new = {
            "sse": sse_N.sum(),
            "l0": l0_N.sum(),
            "l1": t.z_NF.abs().sum(dtype=torch.float64),
            "ratios": (1 - sse_N / batch_sst_N.clamp(min=1e-12)).sum(),
            "cosine": (dot_N / (norm_N * norm_hat_N).clamp(min=1e-12)).sum(),
            "l2_ratio": (norm_hat_N / norm_N.clamp(min=1e-12)).sum(),
            "hat2": norm_hat_N.square().sum(),
            "dot": dot_N.sum(),
        }
        for name, value in new.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        fires_F = (t.z_NF != 0).sum(0)
        self.fires_F = fires_F if self.fires_F is None else self.fires_F + fires_F
        self.n += len(t)

        doc, index = torch.unique(t.doc_N, return_inverse=True)
        per_doc = torch.zeros(len(doc), 4, dtype=torch.float64, device=x.device)
        columns = torch.stack([torch.ones_like(sse_N), sse_N, centred.square().sum(1), l0_N], dim=1)
        per_doc.index_add_(0, index, columns)
        shift = torch.zeros(len(doc), x.shape[1], dtype=torch.float64, device=x.device)
        shift.index_add_(0, index, centred)
        frame = pd.DataFrame(per_doc.cpu().numpy(), columns=["n", "sse", "square", "l0"])
        self.documents.append(frame.assign(doc=doc.cpu().numpy()))
        self.shift_sums.append(shift.cpu())

    def _sst(self) -> tuple[pd.DataFrame, Tensor]:
        """Documents with Σ|x − x̄|² each, x̄ being the mean of all tokens evaluated."""
        frame = pd.concat(self.documents, ignore_index=True)
        shift = torch.cat(self.shift_sums)
        centre = shift.sum(0) / self.n
        cross = (shift @ centre).numpy()
        frame["sst"] = frame["square"] - 2 * cross + frame["n"] * float(centre @ centre)
        return frame.groupby("doc", as_index=False).sum(), centre

    def rows(self) -> list[dict[str, Any]]:
        if self.n == 0:
            raise ValueError("no valid token was evaluated; ask for more tokens")
        s, n = self.sums, self.n
        documents, centre = self._sst()
        assert self.fires_F is not None
        fires_F = self.fires_F.double().cpu()
        out = [
            row("l0", "all", s["l0"] / n, n),
            row("l1", "all", s["l1"] / n, n),
            row("mse", "all", s["sse"] / (n * len(centre)), n),
            row("fve", "all", 1 - s["sse"] / documents["sst"].sum(), n),
            row("fve_saebench_original", "all", s["ratios"] / n, n),
            row("cosine", "all", s["cosine"] / n, n),
            row("l2_ratio", "all", s["l2_ratio"] / n, n),
            row(
                "reconstruction_bias", "all", s["hat2"] / s["dot"] if s["dot"] else float("nan"), n
            ),
            row("alive", "all", (fires_F > 0).double().mean(), n),
        ]
        return out + density_rows(fires_F / n)

    def document_rows(self) -> pd.DataFrame:
        frame, _ = self._sst()
        fvu = frame[["doc"]].assign(metric="fvu", group="all", num=frame["sse"], den=frame["sst"])
        l0 = frame[["doc"]].assign(metric="l0", group="all", num=frame["l0"], den=frame["n"])
        return pd.concat([fvu, l0], ignore_index=True)


def density_rows(density_F: Tensor) -> list[dict[str, Any]]:
    """The density histogram: share of latents per half decade of firing rate, and the dead."""
    n = len(density_F)
    fires = density_F > 0
    # 1e-9 keeps rates that are exact powers of ten in their own bin
    edge = ((density_F[fires].log10() / DENSITY_STEP) + 1e-9).floor() * DENSITY_STEP
    bins, count = edge.unique(return_counts=True)
    rows = [row("density", "dead", float((~fires).sum()) / n, n)]
    return rows + [
        row("density", f"{a:.1f}", c / n, n)
        for a, c in zip(bins.tolist(), count.tolist(), strict=True)
    ]


@register("core", nulls=True)
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None
) -> dict[str, Measured]:
    """:class:`Core` over the test tokens, and :func:`predicted_density`."""
    found = {}
    for name, sae in saes.items():
        core = Core(reading.store.mean_D)
        for t in reading.tokens(sae, "test"):
            core.update(t)
        found[name] = Measured(core.rows() + predicted_density(sae, reading), core.document_rows())
    return found


@torch.no_grad()
def predicted_density(sae: Encoder, reading: Reading) -> list[dict[str, Any]]:
    """``predicted_density``: share of a predicted part's codes z_p that are not 0 at valid tokens.

    L0 counts the new part alone, so equal L0 flatters a variant that has such a part; no row for
    any other.
    """
    if not hasattr(sae, "predicted"):
        return []
    active = count = n = 0
    for batch in reading.batches("test"):
        z_p, _ = sae.predicted(batch.x_BTD, batch.context)
        valid = z_p[batch.context.mask_BT.bool()]
        active, count = active + int((valid != 0).sum()), count + valid.numel()
        n += len(valid)
    return [row("predicted_density", "all", active / max(count, 1), n)]


def predictable(mask_BT: Tensor, doc_BT: Tensor) -> Tensor:
    """[B, T − 1] bool: position t is valid and t + 1 continues its document.

    The cross-entropy is averaged over these; the first token of the next document in the same
    sequence cannot be told from this one and is left out.
    """
    return mask_BT[:, :-1].bool() & (doc_BT[:, 1:] == doc_BT[:, :-1]) & (doc_BT[:, :-1] >= 0)


@register("splice", together=True, nulls=True, needs=("model",))
@torch.no_grad()
def splice(saes: Mapping[str, Encoder], reading: Reading, world: World) -> dict[str, Measured]:
    r"""What the model loses when its residual is replaced by x̂, for several SAEs at once.

    At valid positions the residual becomes x̂ / scale, or 0 (``ablated``; SAEBench: at BOS too); at BOS,
    padding and massive tokens it passes through in both. In nats, over :func:`predictable`
    positions:

    ``ce_clean``, ``ce_sae``, ``ce_ablated``;
    ``ce_score`` = (CE_abl − CE_sae) / (CE_abl − CE_clean);
    ``kl_sae`` = mean KL(clean ‖ sae), ``kl_ablated``, ``kl_score`` = 1 − kl_sae / kl_ablated.

    The clean and the ablated model are run once per batch, whatever the number of SAEs. Returns per
    SAE the rows and the document rows (``ce_sae``, ``ce_clean``: num = Σ CE, den = tokens).
    """
    model, store = world.model(reading.device), reading.store
    names = ["clean", "ablated", *(f"sae:{name}" for name in saes)]
    totals = {name: torch.zeros(2, dtype=torch.float64) for name in names}  # Σ CE, Σ KL
    documents: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    n = 0
    for batch in reading.batches("test", reading.sizes.splice):
        tokens, mask_BT = batch.tokens_BT.long(), batch.context.mask_BT.bool()
        scored = predictable(mask_BT, batch.doc_BT)
        target_N = tokens[:, 1:][scored]
        doc, index = torch.unique(batch.doc_BT[:, :-1][scored].long(), return_inverse=True)

        def edited(sae: Any | None, batch: Any = batch, mask_BT: Tensor = mask_BT) -> Any:
            def edit(raw_BTD: Tensor) -> Tensor:
                if sae is None:
                    new = torch.zeros_like(raw_BTD)
                else:
                    x = raw_BTD.float() * store.scale
                    new = (sae(x, batch.context).x_hat / store.scale).to(raw_BTD.dtype)
                return torch.where(mask_BT[..., None], new, raw_BTD)

            return edit

        clean, p_NV = None, torch.empty(0)
        for name in names:
            if name == "clean":
                logits = models.logits(model, tokens)
            else:
                sae = None if name == "ablated" else saes[name.removeprefix("sae:")]
                logits = models.logits_with(model, tokens, store.layer, edited(sae))
            logp = logits[:, :-1][scored].float().log_softmax(-1)
            if clean is None:
                clean, p_NV = logp, logp.exp()
            ce_N = -logp.gather(1, target_N[:, None]).squeeze(1).double()
            # kl_div without its two copies as large as the vocabulary times the tokens.
            kl = (clean - logp).mul_(p_NV).sum().double()
            totals[name] += torch.stack([ce_N.sum(), kl]).cpu()
            num = torch.zeros(len(doc), 2, dtype=torch.float64, device=ce_N.device)
            num.index_add_(0, index, torch.stack([ce_N, torch.ones_like(ce_N)], 1))
            frame = pd.DataFrame(num.cpu().numpy(), columns=["num", "den"])
            documents[name].append(frame.assign(doc=doc.cpu().numpy()))
        n += len(target_N)
    if n == 0:
        raise ValueError("no predictable token in the test split; ask for more tokens")
    return {
        name: Measured(
            _splice_rows(totals["clean"] / n, totals["ablated"] / n, totals[f"sae:{name}"] / n, n),
            pd.concat(
                [
                    _by_document(documents[f"sae:{name}"], "ce_sae"),
                    _by_document(documents["clean"], "ce_clean"),
                ],
                ignore_index=True,
            ),
        )
        for name in saes
    }


def _by_document(frames: list[pd.DataFrame], metric: str) -> pd.DataFrame:
    frame = pd.concat(frames).groupby("doc", as_index=False).sum()
    return frame.assign(metric=metric, group="all")


def _splice_rows(clean: Tensor, ablated: Tensor, sae: Tensor, n: int) -> list[dict[str, Any]]:
    ce_clean, ce_ablated, ce_sae = float(clean[0]), float(ablated[0]), float(sae[0])
    kl_ablated, kl_sae = float(ablated[1]), float(sae[1])
    gap = ce_ablated - ce_clean
    return [
        row("ce_clean", "all", ce_clean, n),
        row("ce_sae", "all", ce_sae, n),
        row("ce_ablated", "all", ce_ablated, n),
        row("ce_score", "all", (ce_ablated - ce_sae) / gap if gap else float("nan"), n),
        row("kl_sae", "all", kl_sae, n),
        row("kl_ablated", "all", kl_ablated, n),
        row("kl_score", "all", 1 - kl_sae / kl_ablated if kl_ablated else float("nan"), n),
    ]
