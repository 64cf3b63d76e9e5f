"""Questions put to a model whose residual is edited; what an edit leaves alone is not asked again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.edits import Edit
from lab.measures.reading import row
from lab.measures.unlearning.asked import item
from lab.measures.unlearning.choice import retained
from lab.worlds import knowledge
from lab.worlds.knowledge import NEIGHBOURHOODS, Question
from tsae import models
from tsae.errors import UserError
from tsae.sequences import FilledContext


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
        prompts = {tokens for q in questions for tokens, _ in knowledge.fed(q)}
        generator = torch.Generator().manual_seed(0)
        for tokens_BT in self.batches(prompts):
            raw_BTD = models.residual(model, tokens_BT, layer)
            if noise:
                step_BTD = torch.randn(raw_BTD.shape, generator=generator).to(raw_BTD)
                size = noise * raw_BTD.norm(dim=-1, keepdim=True) / raw_BTD.shape[-1] ** 0.5
                raw_BTD = torch.cat([raw_BTD[:, :1], (raw_BTD + size * step_BTD)[:, 1:]], 1)
            for tokens_T, n, raw_TD in zip(
                tokens_BT.tolist(), lengths(tokens_BT), raw_BTD, strict=True
            ):
                self.raw[tuple(tokens_T[:n])] = raw_TD[:n].clone()
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

    def batches(self, prompts: set[tuple[int, ...]]):
        """The prompts by length, padded on the right with 0."""
        order = sorted(prompts, key=lambda tokens: (len(tokens), tokens))
        for start in range(0, len(order), self.batch_size):
            batch = [torch.tensor(tokens) for tokens in order[start : start + self.batch_size]]
            padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            yield padded.to(self.device)

    def residuals(self, tokens_BT: Tensor) -> Tensor:
        """What was read of these prompts [B, T, d], 0 at padding."""
        keys = zip(tokens_BT.tolist(), lengths(tokens_BT), strict=True)
        found = [self.raw[tuple(tokens_T[:n])] for tokens_T, n in keys]
        raw_BTD = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        return torch.nn.functional.pad(raw_BTD, (0, 0, 0, tokens_BT.shape[1] - raw_BTD.shape[1]))

    def right(
        self, edit: Edit | None, questions: list[Question], changed: bool = False
    ) -> np.ndarray:
        """Which questions are answered rightly under an edit, bool [Q]; see :meth:`ask`."""

        def logits(tokens_BT: Tensor) -> Tensor:
            raw_BTD = self.residuals(tokens_BT)
            if edit is not None:
                raw_BTD = edit.within(self.context(tokens_BT))(raw_BTD)
            elif changed:
                return models.logits(self.model, tokens_BT)
            return models.logits_from(self.model, tokens_BT, self.layer, raw_BTD)

        return knowledge.accuracy(logits, questions, self.batch_size, self.device)

    def touched(self, edit: Edit, questions: list[Question]) -> set[tuple[int, ...]]:
        """The prompts in which the edit acts on a token; the model is not run."""
        out: set[tuple[int, ...]] = set()
        for tokens_BT in self.batches({t for q in questions for t, _ in knowledge.fed(q)}):
            edit.within(self.context(tokens_BT))(self.residuals(tokens_BT))
            hit_B = edit.touched_BT.any(1).tolist()
            rows = zip(tokens_BT.tolist(), lengths(tokens_BT), hit_B, strict=True)
            out |= {tuple(tokens_T[:n]) for tokens_T, n, hit in rows if hit}
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
        rows, documents = [], []
        for name in NEIGHBOURHOODS:
            items = sorted({item(q) for q in every if q.neighbourhood == name})
            if not items:
                continue
            scored = pd.DataFrame([(i[1], float(right[i])) for i in items], columns=["doc", "num"])
            metric = f"unlearn_{name}_accuracy"
            rows.append(row(metric, "", scored["num"].mean(), len(scored)))
            reached = np.mean([i in hit for i in items])
            rows.append(row(f"unlearn_{name}_prompts", "", reached, len(items)))
            frame = scored.groupby("doc", as_index=False)["num"].agg(num="sum", den="count")
            documents.append(frame.astype({"den": float}).assign(metric=metric))
        share = {r["metric"]: r["value"] for r in rows}
        near, far = (share.get(f"unlearn_{name}_accuracy", 1.0) for name in ("near", "far"))
        rows.append(row("unlearn_retained", "", retained(near, far), len(every)))
        return rows, documents


def lengths(tokens_BT: Tensor) -> list[int]:
    """Tokens up to the last that is not 0: BOS may be token 0 too."""
    real_BT = (tokens_BT != 0).flip(1).cumsum(1).flip(1) > 0
    return real_BT.sum(1).tolist()
