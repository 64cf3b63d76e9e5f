"""What unlearning is judged on: known questions, held-out text, and text to rank latents on."""

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab import edits as interventions
from lab.edits import Clamp, Edit, Text
from lab.measures.fidelity.core import predictable
from lab.measures.tokens import row
from lab.measures.unlearning.asked import draw, item
from lab.measures.unlearning.forget_text import all_text, classes_of, forget_label, levels_after
from lab.worlds import knowledge
from lab.worlds.knowledge import NEIGHBOURHOODS, Question
from tsae import models
from tsae.errors import UserError
from tsae.saes.base import FilledContext
from tsae.store.shard import MASSIVE_FACTOR

if TYPE_CHECKING:
    from lab.measures.unlearning.config import UnlearnConfig


class HeldOut(NamedTuple):
    """A batch of held-out text; ``ce_N`` is the clean model's CE at the positions ``scored_BT``."""

    tokens_BT: Tensor
    context: FilledContext
    doc_BT: Tensor
    retain_BT: Tensor
    scored_BT: Tensor
    ce_N: Tensor


class Bench:
    """One SAE on one world: questions and texts prepared once, then edits judged one by one."""

    def __init__(self, sae: Any, store: Any, world: Any, config: "UnlearnConfig", device: str):
        if store.fingerprint != world.fingerprint:
            raise UserError(
                f"The activation store is of another world than {world.name}: "
                "harvest this world into a new directory."
            )
        self.sae, self.store, self.world = sae, store, world
        self.config, self.device = config, device
        self.model = world.model(device)
        self.options = {"scale": store.scale, "massive_norm": MASSIVE_FACTOR * store.median_norm}
        every = world.questions()
        self.drawn = draw(every, config.n_facts, config.n_orders, config.seed)
        self.questions = [q for q in self.drawn if config.forms is None or q.form in config.forms]
        for name in NEIGHBOURHOODS:
            if all(q.neighbourhood != name for q in self.questions):
                raise UserError(
                    f"World {world.name} has no {name} questions; unlearning needs a world with "
                    "forget, near and far questions."
                )
        drawn = {item(q)[:2] for q in self.drawn}
        self.others = [q for q in every if item(q)[:2] not in drawn] or every
        self.stated = [s for s in world.statements() if (s.subject, s.fact) not in drawn]
        self.read: dict[bool, list[Text]] = {}  # statements, once the model has read them
        self.levels_V = levels_after(store, world.vocab_size, config.rank_tokens).to(device)
        subjects = {q.subject for q in every if q.neighbourhood == "forget"}
        self.label = forget_label(store.label_specs, subjects)
        self.also = classes_of(store.label_specs, config.text)
        self.held_out = list(self._held_out())

    # ---- texts ----------------------------------------------------------------------------

    def texts(self, which: str) -> Iterator[Text]:
        """Text ``forget``, ``retain`` (all but forget) or ``all``: train text up to ``rank_tokens``.

        Where no label of the text names the forget subjects, forget are the statements of forget
        facts that are not asked for, retain the other ones' and train text; where the world has no
        statements either, the prompts of facts that are not asked for stand for both.
        """
        limit = self.config.rank_tokens
        if self.source == "statements":
            forget = self._statements(True) if which != "retain" else []
            retain = self._statements(False) if which != "forget" else []
            return chain(forget, retain, self._text("train", limit) if which != "forget" else ())
        if which == "all":
            return self._text("train", limit)
        if self.label is None:
            return self._prompts(which == "forget")
        name, classes = self.label
        where: dict[str, Any] = {"inside": which == "forget", "limit_tokens": limit}
        size = max(1, self.config.batch_size // 4)
        where |= {"batch_size": size, "device": self.device, "also": self.also}
        return interventions.labelled(self.store, "train", name, classes, **where)

    def held_out_texts(self) -> Iterator[Text]:
        """Retained text of the test split; empty where nothing tells it."""
        if self.source == "statements":
            return self._text("test", self.config.ce_tokens)
        if self.label is None:
            return iter(())
        name, classes = self.label
        size = max(1, self.config.batch_size // 4)
        where: dict[str, Any] = {
            "inside": False,
            "limit_tokens": self.config.ce_tokens,
            "batch_size": size,
        }
        where |= {"device": self.device, "also": self.also}
        return interventions.labelled(self.store, "test", name, classes, **where)

    @property
    def source(self) -> str:
        """What says which text is to be forgotten: labels, statements or prompts."""
        if self.label is not None:
            return "labels"
        return "statements" if self.stated else "prompts"

    def _text(self, split: str, limit: int) -> Iterator[Text]:
        return all_text(self.store, split, max(1, self.config.batch_size // 4), limit, self.device)

    def _statements(self, forget: bool) -> list[Text]:
        if forget not in self.read:
            chosen = [s.tokens for s in self.stated if (s.neighbourhood == "forget") == forget]
            self.read[forget] = list(self._read(chosen))
        return self.read[forget]

    def _prompts(self, forget: bool) -> Iterator[Text]:
        chosen = [q.prompt for q in self.others if (q.neighbourhood == "forget") == forget]
        return self._read(chosen)

    def _read(self, rows: list[tuple[int, ...]]) -> Iterator[Text]:
        edit = Clamp(self.sae, [], 1.0, **self.options)
        n = self.config.batch_size
        for start in range(0, len(rows), n):
            batch = [torch.tensor(tokens) for tokens in rows[start : start + n]]
            tokens_BT = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).to(self.device)
            raw_BTD = models.residual(self.model, tokens_BT, self.store.layer)
            context = edit.within(self.context(tokens_BT)).context_of(raw_BTD)
            yield Text(raw_BTD.float() * self.store.scale, context, context.mask_BT)

    def context(self, tokens_BT: Tensor) -> FilledContext:
        """Of prompts padded on the right with 0: padding masked, boundaries by the learned rule."""
        real_BT = (tokens_BT != 0).flip(1).cumsum(1).flip(1) > 0  # BOS may be token 0 too
        boundary_BT = torch.zeros_like(tokens_BT, dtype=torch.uint8)
        boundary_BT[:, 1:] = self.levels_V[tokens_BT[:, :-1]]
        return FilledContext(real_BT, boundary_BT)

    def _held_out(self) -> Iterator[HeldOut]:
        seen = 0
        for batch in self.store.batches("test", max(1, self.config.batch_size // 4)):
            batch = batch.to(self.device)
            tokens_BT, mask_BT = batch.tokens_BT.long(), batch.context.mask_BT
            scored_BT = predictable(mask_BT, batch.doc_BT)
            ce_N = cross_entropy(models.logits(self.model, tokens_BT), tokens_BT, scored_BT)
            retain_BT = mask_BT.clone()
            if self.label is not None:
                name, classes = self.label
                of_forget = torch.tensor(classes, device=self.device)
                retain_BT &= ~torch.isin(batch.labels[name].long(), of_forget)
            yield HeldOut(tokens_BT, batch.context, batch.doc_BT, retain_BT, scored_BT, ce_N)
            seen += int(mask_BT.sum())
            if seen >= self.config.ce_tokens:
                return

    def under_attack(self) -> list[Question]:
        """The questions that attacks change: those that are asked, and the forms that are not, of
        ``attack_facts`` facts of each neighbourhood."""
        forms, n_facts = {q.form for q in self.questions}, self.config.attack_facts
        every = [*self.questions, *(q for q in self.drawn if q.form not in forms)]
        return every if n_facts is None else draw(every, n_facts, None, self.config.seed)

    # ---- the clean model ------------------------------------------------------------------

    def ask_clean(self, latents: Tensor) -> list[dict[str, Any]]:
        """Drop the questions that the clean model does not know; ``unlearn_known`` rows.

        Notes which of ``latents`` fire on which prompt: an edit of latents that are silent on a
        prompt leaves its logits as they are, so that :meth:`run` need not ask again.
        """
        self.watched = latents.tolist()
        self.fired: dict[tuple[int, ...], Tensor] = {}
        probe = Clamp(self.sae, latents, 1.0, **self.options)

        def logits(tokens_BT: Tensor) -> Tensor:
            context = self.context(tokens_BT)

            def watch(raw_BTD: Tensor) -> Tensor:
                z_BTF = probe.within(context).codes(raw_BTD)[1]
                fired_BK = (z_BTF[..., probe.latents] > 0).any(1).cpu()
                lengths = context.mask_BT.sum(1).tolist()
                for tokens, n, fired_K in zip(tokens_BT.tolist(), lengths, fired_BK, strict=True):
                    self.fired[tuple(tokens[:n])] = fired_K
                return raw_BTD

            return models.logits_with(self.model, tokens_BT, self.store.layer, watch)

        right_Q = self.accuracy(logits, self.questions)
        rows = []
        for name in NEIGHBOURHOODS:
            asked = {
                item(q): bool(ok)
                for q, ok in zip(self.questions, right_Q, strict=True)
                if q.neighbourhood == name
            }
            rows.append(row("unlearn_known", name, np.mean(list(asked.values())), len(asked)))
        self.questions = [q for q, ok in zip(self.questions, right_Q, strict=True) if ok]
        for r in rows:
            if r["value"] == 0:
                raise UserError(
                    f"The model answers none of the {r['n']} {r['group']} questions rightly, so "
                    "nothing can be measured; ask more facts, or train the world's model longer."
                )
        return rows

    def accuracy(self, logits: knowledge.Logits, questions: list[Question]) -> np.ndarray:
        return knowledge.accuracy(logits, questions, self.config.batch_size, self.device)

    # ---- one edit -------------------------------------------------------------------------

    def run(self, edit: Edit) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
        """Rows and document rows (their group still missing) of one edit."""
        rows, documents = self.ask(edit)
        text_rows, frame = self.reread(edit)
        rows += [*text_rows, row("unlearn_latents", "", len(edit.latents), 1)]
        return rows, [*documents, frame]

    def ask(self, edit: Edit) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
        """Rows and document rows of the accuracies under one edit."""
        right = self.answers(edit)
        rows, documents = [], []
        for name in NEIGHBOURHOODS:
            metric = f"unlearn_{name}_accuracy"
            items = {item(q) for q in self.questions if q.neighbourhood == name}
            facts = pd.DataFrame([(key[1], right[key]) for key in items], columns=["doc", "num"])
            rows.append(row(metric, "", facts["num"].mean(), len(facts)))
            frame = facts.groupby("doc", as_index=False)["num"].agg(num="sum", den="count")
            documents.append(frame.astype({"num": float}).assign(metric=metric))
        return rows, documents

    def answers(self, edit: Edit) -> dict[tuple[str, int, str], bool]:
        """Which items are still answered rightly; asks only prompts that the edit can reach."""
        columns = [self.watched.index(i) for i in edit.triggers.tolist()]

        def reached(q: Question) -> bool:
            return any(self.fired[tokens][columns].any() for tokens, _ in knowledge.fed(q))

        def logits(tokens_BT: Tensor) -> Tensor:
            edit.within(self.context(tokens_BT))
            return models.logits_with(self.model, tokens_BT, self.store.layer, edit)

        right = {item(q): True for q in self.questions}
        hit = {item(q) for q in self.questions if reached(q)}
        asked = [q for q in self.questions if item(q) in hit]
        if asked:
            answered = self.accuracy(logits, asked)
            right |= {item(q): bool(ok) for q, ok in zip(asked, answered, strict=True)}
        return right

    def reread(self, edit: Edit) -> tuple[list[dict[str, Any]], pd.DataFrame]:
        """The rise of CE and the share of edited tokens on held-out text, all and retained."""
        frames = []
        touched = np.zeros((2, 2))  # all and retained; edited and valid
        for h in self.held_out:
            logits = models.logits_with(
                self.model, h.tokens_BT, self.store.layer, edit.within(h.context)
            )
            rise_N = cross_entropy(logits, h.tokens_BT, h.scored_BT) - h.ce_N
            labels = {"doc": h.doc_BT[:, :-1], "retain": h.retain_BT[:, :-1]}
            columns = {k: v[h.scored_BT].cpu().numpy() for k, v in labels.items()}
            assert edit.touched_BT is not None
            frames.append(pd.DataFrame({**columns, "num": rise_N.cpu().numpy(), "den": 1.0}))
            for i, part_BT in enumerate((h.context.mask_BT, h.retain_BT)):
                touched[i] += int((edit.touched_BT & part_BT).sum()), int(part_BT.sum())
        tokens = pd.concat(frames)
        rows, documents = [], []
        for i, prefix in enumerate(("unlearn", "unlearn_retain")):
            part = tokens[tokens["retain"]] if i else tokens
            mean, n = part["num"].mean(), len(part)
            rows.append(row(f"{prefix}_ce_delta", "", mean, n))
            rows.append(row(f"{prefix}_touched", "", touched[i, 0] / touched[i, 1], touched[i, 1]))
            frame = part.groupby("doc", as_index=False)[["num", "den"]].sum()
            documents.append(frame.assign(metric=f"{prefix}_ce_delta"))
        return rows, pd.concat(documents, ignore_index=True)


def cross_entropy(logits_BTV: Tensor, tokens_BT: Tensor, scored_BT: Tensor) -> Tensor:
    """−log p of the next token, in nats, float64 [N], at the positions ``scored_BT`` [B, T − 1]."""
    logp_NV = logits_BTV[:, :-1][scored_BT].float().log_softmax(-1)
    return -logp_NV.gather(1, tokens_BT[:, 1:][scored_BT][:, None]).squeeze(1).double()
