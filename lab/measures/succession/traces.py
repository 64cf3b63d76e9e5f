"""The adaptive score over one text: when the detector speaks up, and when the subject is there."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from lab import edits
from lab.edits import GateConfig
from lab.measures.tokens import Measured, row
from lab.measures.unlearning.forget_text import classes_of, forget_label


@torch.no_grad()
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
    detector: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
) -> dict[str, Measured]:
    """Rows ``detector_auc`` (held-out tokens, forget against retained, of the running score) and
    ``detector_recall`` (share of forget tokens above the threshold of the asked false-positive
    rate), and a table ``score``: sequence, position, token, score, threshold, forget, for the two
    test sequences with the most changes between forget and retained text.

    ``detector``: fields of :class:`GateConfig`, by default a fast EMA over the logistic evidence; ``text``:
    labels and classes of the text of the calibration. Without a label that names the forget
    subject nothing is measured.
    """
    questions = world.questions() if world is not None else None
    subjects = {q.subject for q in questions or () if q.neighbourhood == "forget"}
    label = forget_label(store.label_specs, subjects) if subjects else None
    if label is None:
        return {}
    cfg = GateConfig(**{"decay": 0.5, "false_positive_rate": 0.03, **(detector or {})})
    also = classes_of(store.label_specs, text or {})
    name, classes = label
    where: dict[str, Any] = {
        "limit_tokens": selection_tokens,
        "batch_size": batch_size,
        "device": device,
    }
    out = {}
    for key, sae in saes.items():
        if not hasattr(sae, "W_dec"):
            continue  # a null has no detector of its own
        retain, forget = (
            edits.coded(
                sae, edits.labelled(store, "train", name, classes, inside=i, also=also, **where)
            )
            for i in (False, True)
        )
        found = edits.calibrate(edits.separating("logistic", forget, retain), retain, cfg)
        scores, truths, traces, seen = [], [], [], 0
        for batch in store.batches("test", batch_size):
            batch = batch.to(device)
            context = batch.context
            z_BTF = sae.encode(batch.x_BTD, context)
            s_BT = found.score(batch.x_BTD, z_BTF, context.filled(batch.x_BTD))
            is_BT = torch.isin(batch.labels[name].long(), torch.tensor(classes, device=device))
            scores.append(s_BT[context.mask_BT])
            truths.append(is_BT[context.mask_BT])
            traces += list(zip(batch.tokens_BT, s_BT, is_BT, context.mask_BT, strict=True))
            seen += int(context.mask_BT.sum())
            if seen >= limit_tokens:
                break
        s_N, is_N = torch.cat(scores), torch.cat(truths)
        rows = [
            row("detector_auc", "all", roc_auc_score(is_N.cpu(), s_N.cpu()), len(s_N)),
            row(
                "detector_recall",
                "all",
                float((s_N[is_N] > found.threshold).double().mean()),
                int(is_N.sum()),
            ),
        ]
        changes = [-int((is_T[2:] != is_T[1:-1]).sum()) for _, _, is_T, _ in traces]
        frames = []
        for sequence in sorted(range(len(traces)), key=lambda i: (changes[i], i))[:2]:
            tokens_T, s_T, is_T, mask_T = traces[sequence]
            at = mask_T.nonzero()[:, 0].tolist()
            frames.append(
                pd.DataFrame(
                    {
                        "sequence": sequence,
                        "position": at,
                        "token": world.to_strings(tokens_T[at].tolist()),
                        "score": s_T[at].cpu().numpy(),
                        "threshold": found.threshold,
                        "forget": is_T[at].cpu().numpy(),
                    }
                )
            )
        out[key] = Measured(rows, None, {"score": pd.concat(frames, ignore_index=True)})
    return out
