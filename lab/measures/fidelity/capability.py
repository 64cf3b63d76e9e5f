"""General capability: does the model still answer questions when it reads the reconstruction."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.edits.edit import context_of
from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.unlearning.questions import draw, item, levels_after, prompt_context
from lab.worlds import World, knowledge
from lab.worlds.knowledge import Question
from tsae import models
from tsae.sequences import SequenceContext
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
    asked. ``mc_margin`` (and ``_clean``, ``_ablated``): how much more likely the right option is
    than the best wrong one, in nats, which still tells systems apart where all answer rightly.
    ``n_facts`` facts a neighbourhood, ``n_orders`` option orders each. Document rows: doc = fact,
    num = right forms, den = forms. Nothing for a world without questions.
    """
    every = world.questions() if world is not None else []
    if world is None or not every:
        return {}
    store, device = reading.store, reading.device
    questions = draw(every, n_facts, n_orders, reading.seed)
    model = world.model(device)
    levels_V = levels_after(store, world.vocab_size, reading.sizes.choose).to(device)

    def answered(read: Callable[[Tensor], Tensor]) -> pd.DataFrame:
        scores_QC = knowledge.choice_scores(read, questions, 4 * reading.sizes.batch, device)
        return by_item(questions, scores_QC)

    def reads(sae: Any | None) -> Callable[[Tensor], Tensor]:
        def logits(tokens_BT: Tensor) -> Tensor:
            edit = spliced(sae, prompt_context(tokens_BT, levels_V), store)
            return models.logits_with(model, tokens_BT, store.layer, edit)

        return logits

    beside = {
        "_clean": answered(lambda tokens_BT: models.logits(model, tokens_BT)),
        "_ablated": answered(reads(None)),
    }
    found = {}
    for name, sae in saes.items():
        answers = answered(reads(sae))
        rows = []
        for kind, table in {"": answers, **beside}.items():
            for group, part in [("all", table), *table.groupby("group")]:
                for metric in ("accuracy", "margin"):
                    rows.append(row(f"mc_{metric}{kind}", group, part[metric].mean(), len(part)))
        found[name] = Measured(rows, by_fact(answers))
    return found


def spliced(sae: Any | None, given: SequenceContext, store: Any) -> Callable[[Tensor], Tensor]:
    """The edit that puts x̂ / scale (0 without an SAE) in the place of every valid residual."""

    def edit(raw_BTD: Tensor) -> Tensor:
        context = context_of(given, raw_BTD, MASSIVE_FACTOR * store.median_norm)
        new = torch.zeros_like(raw_BTD)
        if sae is not None:
            new = (sae(raw_BTD.float() * store.scale, context).x_hat / store.scale).to(raw_BTD)
        return torch.where(context.mask_BT[..., None], new, raw_BTD)

    return edit


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
