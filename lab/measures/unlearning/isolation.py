"""Families that ask questions: which facts are known, and whether one group of latents holds some."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.unlearning.config import UnlearnConfig
from lab.measures.unlearning.questions import item
from lab.measures.unlearning.unlearning import unlearn
from lab.worlds import World, knowledge
from tsae.saes.base import SAE


@register("isolation", needs=("model",))
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    edits: Sequence[str] = ("clamp",),
    n_facts: int = 20,
    n_orders: int | None = 2,
    rank_tokens: int = 20_000,
    ce_tokens: int = 4_096,
    n_latents: Sequence[int] = (20,),
    strengths: Sequence[float] = (50, 100, 200),
    retain_thresholds: Sequence[float] = (0.01,),
) -> dict[str, Measured]:
    """Unlearning with the latents of one group at a time, for SAEs of several groups.

    ``isolation_gap`` (group = latent group|strategy): the most that is forgotten beyond what is lost,
    max over settings of retained − forget accuracy, at least 0; group ``all`` takes whichever
    latents rank first. The options are fields of
    :class:`lab.measures.unlearning.config.UnlearnConfig`.
    """
    if world is None or not world.questions():
        return {}
    given: dict[str, Any] = {"n_facts": n_facts, "n_orders": n_orders, "rank_tokens": rank_tokens}
    given |= {"ce_tokens": ce_tokens, "n_latents": tuple(n_latents), "strengths": tuple(strengths)}
    given |= {"retain_thresholds": tuple(retain_thresholds), "edits": tuple(edits)}
    given |= {"gates": ("always",), "batch_size": 4 * reading.sizes.batch, "seed": reading.seed}
    run: dict[str, Any] = {"device": reading.device, "progress": reading.progress}
    found = {}
    for name, sae in saes.items():
        if not isinstance(sae, SAE) or len(sae.groups) < 2:
            continue
        rows = []
        for group in ("all", *sae.groups):
            config = UnlearnConfig(group=None if group == "all" else group, **given)
            rows += gaps(unlearn(sae, reading.store, world, config, **run)[0], group)
        found[name] = Measured(rows)
    return found


def gaps(rows: list[dict[str, Any]], group: str) -> list[dict[str, Any]]:
    """Rows ``isolation_gap`` of the rows of one group; see :func:`measure`."""
    wide = (
        pd.DataFrame(rows).pivot_table("value", "group", "metric").dropna(subset="unlearn_retained")
    )
    gap = (wide["unlearn_retained"] - wide["unlearn_forget_accuracy"]).clip(lower=0)
    best = gap.groupby(gap.index.str.split("|").str[0]).agg(["max", "size"])
    return [row("isolation_gap", f"{group}|{s}", value, n) for s, value, n in best.itertuples()]


@register("known", together=True, needs=("model",))
@torch.no_grad()
def known(
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
