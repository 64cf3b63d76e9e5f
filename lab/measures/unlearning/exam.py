"""Questions put to a model whose residual is edited; what an edit leaves alone is not asked again."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lab.edits.edit import Edit
from lab.measures.reading import row
from lab.measures.unlearning.choice import retained
from lab.measures.unlearning.questions import item
from lab.worlds import knowledge
from lab.worlds.knowledge import NEIGHBOURHOODS, Question
from tsae import models
from tsae.errors import UserError
from tsae.sequences import FilledContext

Prompts = set[tuple[int, ...]]


class Exam:
    """The questions that a model answers rightly before it is edited.

    Residuals at the layer are read once, off by ``noise`` of their norm; ``known`` are rows
    ``unlearn_known`` with group = neighbourhood. Raises :class:`UserError` when nothing of a
    neighbourhood is known.
    """

    def __init__(
        self,
        model: Any,
        layer: int,
        questions: list[Question],
        context: Callable[[Tensor], FilledContext],
        batch_size: int,
        device: str,
        noise: float = 0.0,
    ):
        self.model, self.layer, self.context, self.device = model, layer, context, device
        longest = max((len(q.prompt) for q in questions), default=1)
        self.batch_size = max(1, min(batch_size, 32 * batch_size // longest))
        self.raw: dict[tuple[int, ...], Tensor] = {}
        generator = torch.Generator().manual_seed(0)
        for tokens_BT in self.batches(prompts(questions)):
            raw_BTD = models.residual(model, tokens_BT, layer)
            if noise:
                step_BTD = torch.randn(raw_BTD.shape, generator=generator).to(raw_BTD)
                size = noise * raw_BTD.norm(dim=-1, keepdim=True) / raw_BTD.shape[-1] ** 0.5
                raw_BTD = torch.cat([raw_BTD[:, :1], (raw_BTD + size * step_BTD)[:, 1:]], 1)
            for tokens, raw_TD in zip(unpadded(tokens_BT), raw_BTD, strict=True):
                self.raw[tokens] = raw_TD[: len(tokens)].clone()
        right_Q = self.right(None, questions) if questions else np.zeros(0, bool)
        self.known = []
        for name in NEIGHBOURHOODS:
            pairs = zip(questions, right_Q, strict=True)
            asked = {item(q): bool(ok) for q, ok in pairs if q.neighbourhood == name}
            share = float(np.mean(list(asked.values()))) if asked else 0.0
            self.known.append(row("unlearn_known", name, share, len(asked)))
            if share == 0:
                raise UserError(
                    f"The model answers none of the {len(asked)} {name} questions rightly, so "
                    "nothing can be measured; ask more facts, or train the world's model longer."
                )
        self.questions = [q for q, ok in zip(questions, right_Q, strict=True) if ok]

    def batches(self, rows: Prompts) -> Iterator[Tensor]:
        """The prompts by length, padded on the right with 0."""
        order = sorted(rows, key=lambda tokens: (len(tokens), tokens))
        for start in range(0, len(order), self.batch_size):
            batch = [torch.tensor(tokens) for tokens in order[start : start + self.batch_size]]
            yield pad_sequence(batch, batch_first=True).to(self.device)

    def edited(self, edit: Edit | None, tokens_BT: Tensor) -> Tensor:
        """The residuals of these prompts [B, T, d], 0 at padding, under an edit."""
        found = [self.raw[tokens] for tokens in unpadded(tokens_BT)]
        raw_BTD = pad_sequence(found, batch_first=True)
        short = tokens_BT.shape[1] - raw_BTD.shape[1]
        raw_BTD = torch.nn.functional.pad(raw_BTD, (0, 0, 0, short))
        return raw_BTD if edit is None else edit.within(self.context(tokens_BT))(raw_BTD)

    def right(
        self, edit: Edit | None, questions: list[Question], changed: bool = False
    ) -> np.ndarray:
        """Which questions are answered rightly under an edit, bool [Q]; see :meth:`ask`."""

        def logits(tokens_BT: Tensor) -> Tensor:
            if edit is None and changed:
                return models.logits(self.model, tokens_BT)
            raw_BTD = self.edited(edit, tokens_BT)
            return models.logits_from(self.model, tokens_BT, self.layer, raw_BTD)

        return knowledge.accuracy(logits, questions, self.batch_size, self.device)

    def touched(self, edit: Edit, questions: list[Question]) -> Prompts:
        """The prompts in which the edit acts on a token; the model is not run."""
        out: Prompts = set()
        for tokens_BT in self.batches(prompts(questions)):
            self.edited(edit, tokens_BT)
            out |= set(unpadded(tokens_BT[edit.touched_BT.any(1)]))
        return out

    def ask(
        self,
        edit: Edit | None,
        facts: set[tuple[str, int]] | None = None,
        changed: bool = False,
    ) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
        """Rows and document rows ``unlearn_{forget,near,far}_accuracy``; rows ``unlearn_retained``
        (the lesser of near and far) and ``unlearn_{…}_prompts`` (the share in which a token is
        edited: on near and far ones, false alarms). Their group is empty still. ``facts``: only
        these (neighbourhood, fact). ``changed``: the model's weights are not what they were, above
        the layer alone where there is an edit."""
        every = [q for q in self.questions if facts is None or (q.neighbourhood, q.fact) in facts]
        moved = set() if edit is None else self.touched(edit, every)
        hit = {item(q) for q in every if any(t in moved for t, _ in knowledge.fed(q))}
        asked = [q for q in every if changed or item(q) in hit]
        right = {item(q): True for q in every}
        if asked:
            answered = self.right(edit, asked, changed)
            right |= {item(q): bool(ok) for q, ok in zip(asked, answered, strict=True)}
        rows, documents, kept = [], [], {"near": 1.0, "far": 1.0}
        for name in NEIGHBOURHOODS:
            items = sorted({item(q) for q in every if q.neighbourhood == name})
            if not items:
                continue
            scored = pd.DataFrame([(i[1], float(right[i])) for i in items], columns=["doc", "num"])
            metric, kept[name] = f"unlearn_{name}_accuracy", scored["num"].mean()
            rows.append(row(metric, "", kept[name], len(scored)))
            reached = np.mean([i in hit for i in items])
            rows.append(row(f"unlearn_{name}_prompts", "", reached, len(items)))
            frame = scored.groupby("doc", as_index=False)["num"].agg(num="sum", den="count")
            documents.append(frame.astype({"den": float}).assign(metric=metric))
        rows.append(row("unlearn_retained", "", retained(kept["near"], kept["far"]), len(every)))
        return rows, documents


def prompts(questions: list[Question]) -> Prompts:
    """The token rows that score the questions."""
    return {tokens for q in questions for tokens, _ in knowledge.fed(q)}


def unpadded(tokens_BT: Tensor) -> list[tuple[int, ...]]:
    """The rows up to the last token that is not 0: BOS may be token 0 too."""
    n_B = ((tokens_BT != 0).flip(1).cumsum(1) > 0).sum(1).tolist()
    return [tuple(row[:n]) for row, n in zip(tokens_BT.tolist(), n_B, strict=True)]
