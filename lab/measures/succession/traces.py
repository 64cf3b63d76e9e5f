"""The adaptive score over one text: when the detector speaks up, and when the subject is there."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from lab import edits
from lab.edits import GateConfig
from lab.measures.families import register
from lab.measures.reading import Measured, Reading, row
from lab.measures.unlearning.forget_text import classes_of, forget_label
from lab.worlds.base import World


@register("traces", needs=("labels",))
@torch.no_grad()
def measure(
    saes: Mapping[str, Any],
    reading: Reading,
    world: World | None,
    *,
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
    store, questions = reading.store, world.questions() if world is not None else None
    subjects = {q.subject for q in questions or () if q.neighbourhood == "forget"}
    label = forget_label(store.label_specs, subjects) if subjects else None
    if label is None or world is None:
        return {}
    cfg = GateConfig(**{"decay": 0.5, "false_positive_rate": 0.03, **(detector or {})})
    (name, classes), also = label, classes_of(store.label_specs, text or {})
    where: dict[str, Any] = {"limit_tokens": reading.sizes.choose, "device": reading.device}
    where |= {"batch_size": reading.sizes.batch, "also": also}
    subject = torch.tensor(classes, device=reading.device)
    out = {}
    for key, sae in saes.items():
        retain, forget = (
            edits.coded(sae, edits.labelled(store, "train", name, classes, inside=inside, **where))
            for inside in (False, True)
        )
        found = edits.calibrate(edits.separating("logistic", forget, retain), retain, cfg)
        frames: list[pd.DataFrame] = []
        for batch in reading.batches("test"):
            z_BTF = sae.encode(batch.x_BTD, batch.context)
            s_BT = found.score(batch.x_BTD, z_BTF, batch.context.filled(batch.x_BTD))
            is_BT = torch.isin(batch.labels[name].long(), subject)
            for b, mask_T in enumerate(batch.context.mask_BT.bool().cpu()):
                at = mask_T.nonzero()[:, 0]
                columns = {"sequence": len(frames), "position": at, "token": batch.tokens_BT[b, at]}
                columns |= {"score": s_BT[b, at], "forget": is_BT[b, at]}
                columns = {k: v.cpu().numpy() if k != "sequence" else v for k, v in columns.items()}
                frames.append(pd.DataFrame(columns).assign(threshold=found.threshold))
        whole = pd.concat(frames)
        recall = (whole["score"] > found.threshold)[whole["forget"]]
        rows = [
            row("detector_auc", "all", roc_auc_score(whole["forget"], whole["score"]), len(whole)),
            row("detector_recall", "all", recall.mean(), len(recall)),
        ]
        changes = [int((f["forget"].diff()[2:] != 0).sum()) for f in frames]
        two = sorted(range(len(frames)), key=lambda i: (-changes[i], i))[:2]
        table = pd.concat([frames[i] for i in two], ignore_index=True)
        table["token"] = world.to_strings(table["token"].tolist())
        out[key] = Measured(rows, None, {"score": table})
    return out
