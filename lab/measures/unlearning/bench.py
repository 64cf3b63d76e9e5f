"""What unlearning is judged on: known questions, held-out text, and text to rank latents on."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.edits.edit import Edit, context_of
from lab.edits.ranking import Coded, Text, coded, stored
from lab.measures.fidelity.splice import predictable
from lab.measures.reading import row
from lab.measures.unlearning.config import UnlearnConfig
from lab.measures.unlearning.exam import Exam
from lab.measures.unlearning.questions import draw, item, levels_after, prompt_context, rotated
from lab.worlds.knowledge import NEIGHBOURHOODS, Question
from tsae import models
from tsae.errors import UserError
from tsae.saes.config import require
from tsae.sequences import SENTENCE, FilledContext, LabelSpec
from tsae.store.shard import MASSIVE_FACTOR

Rows = list[dict[str, Any]]


class HeldOut(NamedTuple):
    """A batch of held-out text; ``ce_BT`` is the clean model's CE at the positions ``scored_BT``."""

    tokens_BT: Tensor
    raw_BTD: Tensor
    context: FilledContext
    doc_BT: Tensor
    retain_BT: Tensor
    scored_BT: Tensor
    ce_BT: Tensor


class Bench:
    """One SAE on one world: questions and texts prepared once, then edits judged one by one."""

    def __init__(self, sae: Any, store: Any, world: Any, config: UnlearnConfig, device: str):
        if store.fingerprint != world.fingerprint:
            raise UserError(
                f"The activation store is of another world than {world.name}: "
                "harvest this world into a new directory."
            )
        self.sae, self.store, self.world = sae, store, world
        self.config, self.device = config, device
        self.model = world.model(device)
        self.options = {"scale": store.scale, "massive_norm": MASSIVE_FACTOR * store.median_norm}
        every = rotated(world.questions(), config.subjects)
        self.drawn = draw(every, config.n_facts, config.n_orders, config.seed)
        asked = [q for q in self.drawn if config.forms is None or q.form in config.forms]
        for name in NEIGHBOURHOODS:
            if all(q.neighbourhood != name for q in asked):
                raise UserError(
                    f"World {world.name} has no {name} questions; unlearning needs a world with "
                    "forget, near and far questions."
                )
        drawn = {item(q)[:2] for q in self.drawn}
        self.others = [q for q in every if item(q)[:2] not in drawn] or every
        stated = world.statements()
        stated = rotated(stated, config.subjects) if stated else []
        self.stated = [s for s in stated if (s.subject, s.fact) not in drawn]
        self.levels_V = levels_after(store, world.vocab_size, config.rank_tokens).to(device)
        subjects = {q.subject for q in every if q.neighbourhood == "forget"}
        self.label = forget_label(store.label_specs, subjects)
        self.also = classes_of(store.label_specs, config.text)
        self.exam = self.examine(asked)

    def examine(self, questions: list[Question], noise: float = 0.0) -> Exam:
        """An :class:`Exam` of this world's model."""
        n, layer = self.config.batch_size, self.store.layer
        return Exam(self.model, layer, questions, self.context, n, self.device, noise)

    @cached_property
    def sentences_V(self) -> Tensor:
        """``levels_V``, or full stops where the text has no rule for a sentence."""
        levels_V = self.levels_V.cpu()
        if any(int(levels_V[t]) for q in self.drawn for t in q.prompt[1:-1]):
            return levels_V
        ends = [self.world.encode(mark)[-1] for mark in ".?!"]
        return levels_V.index_fill(0, torch.tensor(ends), SENTENCE)

    # ---- texts ----------------------------------------------------------------------------

    @cached_property
    def forget(self) -> list[Coded]:
        """Train text that is to be forgotten, up to ``rank_tokens``.

        Where no label of the text names the forget subjects, forget are the statements of forget
        facts that are not asked for, retain the other ones' and train text; where the world has no
        statements either, the prompts of facts that are not asked for stand for both.
        """
        return coded(self.sae, self.texts(True))

    @cached_property
    def retain(self) -> list[Coded]:
        """Train text that is to be kept; see :attr:`forget`."""
        return coded(self.sae, self.texts(False))

    @property
    def source(self) -> str:
        """What says which text is to be forgotten: labels, statements or prompts."""
        return "labels" if self.label else "statements" if self.stated else "prompts"

    def texts(self, forget: bool, split: str = "train", limit: int | None = None) -> Iterator[Text]:
        """Text to forget, or all other text."""
        size = max(1, self.config.batch_size // 4)
        given: dict[str, Any] = {"batch_size": size, "device": self.device}
        given["limit_tokens"] = limit or self.config.rank_tokens
        label = self.label or {}
        if label and forget:
            return stored(self.store, split, self.also | label, **given)
        plain = stored(self.store, split, self.also, label, **given)
        if label or split == "test":
            return plain
        if not self.stated:
            return self.read(q.prompt for q in self.others if of(q) == forget)
        stated = self.read(s.tokens for s in self.stated if of(s) == forget)
        return stated if forget else chain(stated, plain)

    def read(self, prompts: Iterable[tuple[int, ...]]) -> Iterator[Text]:
        """Prompts as text, all of whose tokens but BOS count."""
        rows, n = list(prompts), self.config.batch_size
        for start in range(0, len(rows), n):
            batch = [torch.tensor(tokens) for tokens in rows[start : start + n]]
            tokens_BT = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).to(self.device)
            raw_BTD = models.residual(self.model, tokens_BT, self.store.layer)
            context = context_of(self.context(tokens_BT), raw_BTD, self.options["massive_norm"])
            x_BTD = raw_BTD.float() * self.store.scale
            yield Text(x_BTD, context, context.mask_BT, tokens_BT)

    def token_rows(self, forget: bool) -> list[tuple[int, ...]]:
        """The tokens of :attr:`forget` or :attr:`retain`, a row a sequence, with BOS in front."""
        out = []
        for text in self.texts(forget):
            assert text.tokens_BT is not None
            for tokens_T, keep_T in zip(text.tokens_BT, text.keep_BT, strict=True):
                out.append((int(tokens_T[0]), *tokens_T[keep_T].tolist()))
        return out

    def context(self, tokens_BT: Tensor) -> FilledContext:
        """:func:`prompt_context` by this world's rule."""
        return prompt_context(tokens_BT, self.levels_V)

    @cached_property
    def held_out(self) -> list[HeldOut]:
        """Test text up to ``ce_tokens``, with the clean model's CE."""
        out, seen = [], 0
        for batch in self.store.batches("test", max(1, self.config.batch_size // 4)):
            batch = batch.to(self.device)
            tokens_BT, mask_BT = batch.tokens_BT.long(), batch.context.mask_BT
            retain_BT = mask_BT.clone()
            for name, classes in (self.label or {}).items():
                of_forget = torch.tensor(classes, device=self.device)
                retain_BT &= ~torch.isin(batch.labels[name].long(), of_forget)
            raw_BTD = models.residual(self.model, tokens_BT, self.store.layer)
            ce_BT = cross_entropy(models.logits(self.model, tokens_BT), tokens_BT)
            scored_BT = predictable(mask_BT, batch.doc_BT)
            parts = batch.context, batch.doc_BT, retain_BT, scored_BT, ce_BT
            out.append(HeldOut(tokens_BT, raw_BTD, *parts))
            seen += int(mask_BT.sum())
            if seen >= self.config.ce_tokens:
                break
        return out

    # ---- one edit -------------------------------------------------------------------------

    def run(self, edit: Edit) -> tuple[Rows, list[pd.DataFrame]]:
        """Rows and document rows (their group still missing) of one edit."""
        rows, documents = self.exam.ask(edit)
        text_rows, frame = self.reread(edit)
        rows += [*text_rows, row("unlearn_latents", "", len(edit.push.latents), 1)]
        return rows, [*documents, frame]

    def reread(self, edit: Edit | None) -> tuple[Rows, pd.DataFrame]:
        """The rise of CE and the share of edited tokens; without an edit the model's weights are
        not what they were, and every token counts as edited."""
        frames = []
        touched = np.zeros((2, 2))
        for h in self.held_out:
            ce_BT, touched_BT = self.now(h, edit)
            columns = {
                "doc": h.doc_BT[:, :-1],
                "retain": h.retain_BT[:, :-1],
                "num": ce_BT - h.ce_BT,
            }
            frame = pd.DataFrame({k: v[h.scored_BT].cpu().numpy() for k, v in columns.items()})
            frames.append(frame.assign(den=1.0))
            for i, part_BT in enumerate((h.context.mask_BT, h.retain_BT)):
                touched[i] += int((touched_BT & part_BT).sum()), int(part_BT.sum())
        tokens = pd.concat(frames)
        rows, documents = [], []
        for i, prefix in enumerate(("unlearn", "unlearn_retain")):
            part = tokens[tokens["retain"]] if i else tokens
            rows.append(row(f"{prefix}_ce_delta", "", part["num"].mean(), len(part)))
            rows.append(row(f"{prefix}_touched", "", touched[i, 0] / touched[i, 1], touched[i, 1]))
            frame = part.groupby("doc", as_index=False)[["num", "den"]].sum()
            documents.append(frame.assign(metric=f"{prefix}_ce_delta"))
        return rows, pd.concat(documents, ignore_index=True)

    def now(self, h: HeldOut, edit: Edit | None) -> tuple[Tensor, Tensor]:
        """CE under an edit [B, T − 1], and the tokens that are edited; sequences that an edit
        leaves alone are not run."""
        if edit is None:
            logits = models.logits(self.model, h.tokens_BT)
            return cross_entropy(logits, h.tokens_BT), torch.ones_like(h.retain_BT)
        new_BTD = edit.within(h.context)(h.raw_BTD)
        rows, ce_BT = edit.touched_BT.any(1), h.ce_BT.clone()
        if rows.any():
            tokens = h.tokens_BT[rows]
            logits = models.logits_from(self.model, tokens, self.store.layer, new_BTD[rows])
            ce_BT[rows] = cross_entropy(logits, tokens)
        return ce_BT, edit.touched_BT


def of(known: Any) -> bool:
    """Whether a question or a statement is of what is to be forgotten."""
    return known.neighbourhood == "forget"


def cross_entropy(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """−log p of the next token, in nats, float64 [B, T − 1]."""
    logits_NV, next_N = logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten()
    ce_N = torch.nn.functional.cross_entropy(logits_NV, next_N, reduction="none")
    return ce_N.double().view(len(tokens_BT), -1)


def forget_label(
    specs: Mapping[str, LabelSpec], subjects: Iterable[str]
) -> dict[str, list[int]] | None:
    """The label, and its classes, that name all forget subjects; None when no label does.

    Of several, the one of the longest time scale.
    """
    subjects = set(subjects)
    for scale in ("document", "section"):
        for name, spec in specs.items():
            if spec.scale == scale and subjects <= set(spec.classes):
                return {name: [spec.classes.index(s) for s in sorted(subjects)]}
    return None


def classes_of(
    specs: Mapping[str, LabelSpec], wanted: Mapping[str, Iterable[str]]
) -> dict[str, list[int]]:
    """Class numbers by label; raises ValueError for a label or class that the store has not."""
    for name, classes in wanted.items():
        require(name in specs, "text", name, f"a label of the store: {', '.join(specs) or 'none'}")
        for c in classes:
            require(c in specs[name].classes, "text", c, f"of {', '.join(specs[name].classes)}")
    return {name: [specs[name].classes.index(c) for c in cs] for name, cs in wanted.items()}
