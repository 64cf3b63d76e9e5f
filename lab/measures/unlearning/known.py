"""Which of the world's facts its model knows, before anything is edited: subject by subject."""

from collections.abc import Mapping

import pandas as pd
import torch

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.unlearning.asked import item
from lab.worlds import World, knowledge


@register("known", together=True, needs=("model",))
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None
) -> dict[str, Measured]:
    """Facts that the clean model answers rightly, of all that the world has.

    ``known_facts`` (how many), ``known`` (the share) and ``known_{form}`` with group = subject and
    ``all``: right under every order of options, in every form or in the named one; n = facts. The
    model is asked once and every SAE is given the same rows; nothing for a world without questions.
    """
    questions = world.questions() if world is not None else []
    if world is None or not questions:
        return {}
    right_Q = knowledge.accuracy(
        world.model(reading.device), questions, 4 * reading.sizes.batch, reading.device
    )
    by_item = {item(q): bool(ok) for q, ok in zip(questions, right_Q, strict=True)}
    columns = ["subject", "fact", "form"]
    answers = pd.DataFrame(list(by_item), columns=columns).assign(right=by_item.values())
    rows = []
    for group, mine in [("all", answers), *answers.groupby("subject", sort=False)]:
        every = mine.groupby(["subject", "fact"])["right"].all()
        rows.append(row("known_facts", group, every.sum(), len(every)))
        rows.append(row("known", group, every.mean(), len(every)))
        for form, asked in mine.groupby("form", sort=False):
            rows.append(row(f"known_{form}", group, asked["right"].mean(), len(asked)))
    return {name: Measured(rows) for name in saes}
