"""What the model loses when it reads the reconstruction in place of its residual stream."""

from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds import World
from tsae import models
from tsae.store.reading import Batch

ABLATED = ""
"""Stands among the dictionaries for 0 in place of x̂."""


def predictable(mask_BT: Tensor, doc_BT: Tensor) -> Tensor:
    """[B, T − 1] bool: position t is valid and t + 1 continues its document.

    The cross-entropy is averaged over these; the first token of the next document in the same
    sequence cannot be told from this one and is left out.
    """
    return mask_BT[:, :-1].bool() & (doc_BT[:, 1:] == doc_BT[:, :-1]) & (doc_BT[:, :-1] >= 0)


@register("splice", together=True, nulls=True, needs=("model",))
@torch.no_grad()
def measure(saes: Mapping[str, Encoder], reading: Reading, world: World) -> dict[str, Measured]:
    r"""At valid positions the residual becomes x̂ / scale, or 0 (``ablated``; SAEBench: at BOS too);
    at BOS, padding and massive tokens it passes through in both. In nats, over :func:`predictable`
    positions of ``sizes.splice`` test tokens:

    ``ce_clean``, ``ce_sae``, ``ce_ablated``; ``ce_delta`` = CE_sae − CE_clean;
    ``ce_score`` = (CE_abl − CE_sae) / (CE_abl − CE_clean);
    ``kl_sae`` = mean KL(clean ‖ sae), ``kl_ablated``, ``kl_score`` = 1 − kl_sae / kl_ablated.

    The clean and the ablated model are run once per batch, whatever the number of dictionaries.
    Document rows: ``ce_delta`` (num = Σ (CE_sae − CE_clean), den = tokens).
    """
    model, store = world.model(reading.device), reading.store
    everything: dict[str, Encoder | None] = {ABLATED: None, **saes}
    totals = torch.zeros(len(everything), 2, dtype=torch.float64)  # Σ CE, Σ KL
    documents: dict[str, list[pd.DataFrame]] = {name: [] for name in saes}
    clean_ce, n = 0.0, 0
    for batch in reading.batches("test", reading.sizes.splice):
        tokens = batch.tokens_BT.long()
        scored = predictable(batch.context.mask_BT.bool(), batch.doc_BT)
        target_N1 = tokens[:, 1:][scored][:, None]
        doc_N = batch.doc_BT[:, :-1][scored].long().cpu().numpy()
        clean_NV = models.logits(model, tokens)[:, :-1][scored].float().log_softmax(-1)
        p_NV, ce_clean_N = clean_NV.exp(), -clean_NV.gather(1, target_N1)[:, 0].double()
        clean_ce, n = clean_ce + float(ce_clean_N.sum()), n + len(target_N1)
        for i, (name, sae) in enumerate(everything.items()):
            edit = replaced(sae, batch, store.scale)
            logits = models.logits_with(model, tokens, store.layer, edit)
            logp_NV = logits[:, :-1][scored].float().log_softmax(-1)
            ce_N = -logp_NV.gather(1, target_N1)[:, 0].double()
            # kl_div without its two copies as large as the vocabulary times the tokens.
            kl = (clean_NV - logp_NV).mul_(p_NV).sum().double()
            totals[i] += torch.stack([ce_N.sum(), kl]).cpu()
            if name != ABLATED:
                rise_N = (ce_N - ce_clean_N).cpu().numpy()
                frame = pd.DataFrame({"doc": doc_N, "num": rise_N, "den": 1.0})
                documents[name].append(frame.groupby("doc", as_index=False).sum())
    if n == 0:
        raise ValueError("no predictable token in the test split; ask for more tokens")
    clean, means = clean_ce / n, dict(zip(everything, (totals / n).tolist(), strict=True))
    ablated, kl_ablated = means[ABLATED]
    found = {}
    for name in saes:
        ce, kl = means[name]
        values = {"ce_clean": clean, "ce_sae": ce, "ce_ablated": ablated, "ce_delta": ce - clean}
        gap = ablated - clean
        values["ce_score"] = (ablated - ce) / gap if gap else float("nan")
        values |= {"kl_sae": kl, "kl_ablated": kl_ablated}
        values["kl_score"] = 1 - kl / kl_ablated if kl_ablated else float("nan")
        frame = pd.concat(documents[name]).groupby("doc", as_index=False).sum()
        frame = frame.assign(metric="ce_delta", group="all")
        found[name] = Measured([row(m, "all", v, n) for m, v in values.items()], frame)
    return found


def replaced(sae: Encoder | None, batch: Batch, scale: float) -> Callable[[Tensor], Tensor]:
    """The edit that puts x̂ / scale (0 without a dictionary) in the place of valid residuals."""

    def edit(raw_BTD: Tensor) -> Tensor:
        new = torch.zeros_like(raw_BTD)
        if sae is not None:
            x_hat = sae(raw_BTD.float() * scale, batch.context).x_hat
            new = (x_hat / scale).to(raw_BTD.dtype)
        return torch.where(batch.context.mask_BT.bool()[..., None], new, raw_BTD)

    return edit
