"""General capability: does the model still answer questions when it reads the reconstruction."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.unlearning.asked import draw, item
from lab.measures.unlearning.forget_text import levels_after
from lab.worlds import World, knowledge
from lab.worlds.knowledge import NEIGHBOURHOODS, Question
from tsae import models
from tsae.sequences import FilledContext
from tsae.store.shard import MASSIVE_FACTOR


@register("capability", together=True, needs=("model",))
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    n_facts: int = 40,
    n_orders: int | None = 2,
) -> dict[str, Measured]:
    """Multiple-choice accuracy with the residual replaced by x̂, beside the clean and ablated model.

    ``mc_accuracy`` (x̂ / scale at every valid token; BOS and massive tokens pass through),
    ``mc_accuracy_clean`` and ``mc_accuracy_ablated`` (0 in place of x̂), each with group forget,
    near, far and ``all``: the share of (fact, form) answered rightly under every order that was
    asked. ``mc_kept`` = (sae − ablated) / (clean − ablated). ``mc_margin`` (and ``_clean``,
    ``_ablated``): how much more likely the right option is than the best wrong one, in nats, which
    still tells systems apart where all answer rightly. ``n_facts`` facts a neighbourhood,
    ``n_orders`` option orders each. Document rows: doc = fact, num = right forms, den = forms.
    Nothing for a world without questions.
    """
    every = world.questions() if world is not None else []
    if not every:
        return {}
    assert world is not None
    store, device = reading.store, reading.device
    questions = draw(every, n_facts, n_orders, reading.seed)
    model = world.model(device)
    levels_V = levels_after(store, world.vocab_size, reading.sizes.choose).to(device)

    def answered(sae: Any | None) -> pd.DataFrame:
        def logits(tokens_BT: Tensor) -> Tensor:
            context = prompt_context(tokens_BT, levels_V)
            edit = spliced(sae, context, store)
            return models.logits_with(model, tokens_BT, store.layer, edit)

        read = logits if sae is not CLEAN else lambda tokens_BT: models.logits(model, tokens_BT)
        scores_QC = knowledge.choice_scores(read, questions, 4 * reading.sizes.batch, device)
        return by_item(questions, scores_QC)

    clean, ablated = answered(CLEAN), answered(None)
    found = {}
    for name, sae in saes.items():
        answers, rows = answered(sae), []
        for group in (*NEIGHBOURHOODS, "all"):
            kinds = {"": answers, "_clean": clean, "_ablated": ablated}
            if group != "all":
                kinds = {kind: t[t["group"] == group] for kind, t in kinds.items()}
            n = len(kinds[""])
            if n == 0:
                continue
            for metric in ("accuracy", "margin"):
                means = {kind: t[metric].mean() for kind, t in kinds.items()}
                rows += [row(f"mc_{metric}{kind}", group, v, n) for kind, v in means.items()]
                if metric == "accuracy":
                    gap = means["_clean"] - means["_ablated"]
                    kept = (means[""] - means["_ablated"]) / gap if gap else float("nan")
                    rows.append(row("mc_kept", group, kept, n))
        found[name] = Measured(rows, by_fact(answers))
    return found


CLEAN = object()
"""Stands for the model as it is, in the place of an SAE."""


def spliced(sae: Any | None, context: FilledContext, store: Any) -> Callable[[Tensor], Tensor]:
    """The edit that puts x̂ / scale (0 without an SAE) in the place of every valid residual."""
    massive = MASSIVE_FACTOR * store.median_norm

    def edit(raw_BTD: Tensor) -> Tensor:
        mask_BT = context.mask_BT & (raw_BTD.norm(dim=-1) <= massive)
        if sae is None:
            new = torch.zeros_like(raw_BTD)
        else:
            x_BTD = raw_BTD.float() * store.scale
            here = FilledContext(mask_BT, context.boundary_BT)
            new = (sae(x_BTD, here).x_hat / store.scale).to(raw_BTD.dtype)
        return torch.where(mask_BT[..., None], new, raw_BTD)

    return edit


def prompt_context(tokens_BT: Tensor, levels_V: Tensor) -> FilledContext:
    """Of prompts padded on the right with 0: BOS and padding masked, boundaries by the rule."""
    mask_BT = (tokens_BT != 0).flip(1).cumsum(1).flip(1) > 0  # BOS may be token 0 too
    mask_BT[:, 0] = False
    boundary_BT = torch.zeros_like(tokens_BT, dtype=torch.uint8)
    boundary_BT[:, 1:] = levels_V[tokens_BT[:, :-1]]
    boundary_BT[:, :2] = 3
    return FilledContext(mask_BT, boundary_BT)


def by_item(questions: list[Question], scores_QC: np.ndarray) -> pd.DataFrame:
    """A row a (fact, form): doc, group, accuracy (right under every order asked) and margin."""
    answers = np.array([q.answer for q in questions])
    every = np.arange(len(answers))
    others_QC = scores_QC.copy()
    others_QC[every, answers] = -np.inf
    frame = pd.DataFrame([item(q) for q in questions], columns=["subject", "doc", "form"])
    frame["group"] = [q.neighbourhood for q in questions]
    frame["margin"] = scores_QC[every, answers] - others_QC.max(1)
    frame["accuracy"] = (frame["margin"] > 0).astype(float)
    by = frame.groupby(["subject", "doc", "form", "group"], as_index=False)
    return by.agg(accuracy=("accuracy", "min"), margin=("margin", "mean"))


def by_fact(answers: pd.DataFrame) -> pd.DataFrame:
    """Document rows of ``mc_accuracy``: a row a fact."""
    grouped = answers.groupby(["doc", "group"], as_index=False)["accuracy"]
    frame = grouped.agg(num="sum", den="count").assign(metric="mc_accuracy")
    return frame.astype({"den": float})
