"""What unlearning is judged on: known questions, held-out text, and text to rank latents on."""

from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lab.edits import Coded, Edit, Text, coded, labelled
from lab.edits.edit import context_of
from lab.measures.fidelity.splice import predictable
from lab.measures.reading import row
from lab.measures.unlearning.asked import draw, item, rotated
from lab.measures.unlearning.config import UnlearnConfig
from lab.measures.unlearning.exam import Exam
from lab.measures.unlearning.forget_text import all_text, classes_of, forget_label, levels_after
from lab.worlds.knowledge import NEIGHBOURHOODS, Question
from tsae import models
from tsae.errors import UserError
from tsae.sequences import SENTENCE, FilledContext
from tsae.store.shard import MASSIVE_FACTOR


class HeldOut(NamedTuple):
    """A batch of held-out text; ``ce_N`` is the clean model's CE at the positions ``scored_BT``."""

    tokens_BT: Tensor
    raw_BTD: Tensor
    context: FilledContext
    doc_BT: Tensor
    retain_BT: Tensor
    scored_BT: Tensor
    ce_N: Tensor


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
        if self.label is not None:
            return "labels"
        return "statements" if self.stated else "prompts"

    def texts(self, forget: bool, split: str = "train", limit: int | None = None) -> Iterator[Text]:
        """Text to forget, or all other text."""
        limit = self.config.rank_tokens if limit is None else limit
        size = max(1, self.config.batch_size // 4)
        if self.label is not None:
            where: dict[str, Any] = {"limit_tokens": limit, "also": self.also}
            where |= {"batch_size": size, "device": self.device, "inside": forget}
            return labelled(self.store, split, *self.label, **where)
        plain = all_text(self.store, split, size, limit, self.device)
        if split == "test":
            return iter(()) if forget or not self.stated else plain
        if not self.stated:
            chosen = [q.prompt for q in self.others if (q.neighbourhood == "forget") == forget]
            return self.read(chosen)
        stated = [s.tokens for s in self.stated if (s.neighbourhood == "forget") == forget]
        return self.read(stated) if forget else chain(self.read(stated), plain)

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
        """Of prompts padded on the right with 0: padding masked, boundaries by the learned rule."""
        real_BT = (tokens_BT != 0).flip(1).cumsum(1).flip(1) > 0  # BOS may be token 0 too
        boundary_BT = torch.zeros_like(tokens_BT, dtype=torch.uint8)
        boundary_BT[:, 1:] = self.levels_V[tokens_BT[:, :-1]]
        return FilledContext(real_BT, boundary_BT)

    @cached_property
    def held_out(self) -> list[HeldOut]:
        """Test text up to ``ce_tokens``, with the clean model's CE."""
        out, seen = [], 0
        for batch in self.store.batches("test", max(1, self.config.batch_size // 4)):
            batch = batch.to(self.device)
            tokens_BT, mask_BT = batch.tokens_BT.long(), batch.context.mask_BT
            scored_BT = predictable(mask_BT, batch.doc_BT)
            read: list[Tensor] = []
            watch = partial(watched, into=read)
            logits = models.logits_with(self.model, tokens_BT, self.store.layer, watch)
            ce_N = cross_entropy(logits, tokens_BT, scored_BT)
            retain_BT = mask_BT.clone()
            if self.label is not None:
                name, classes = self.label
                of_forget = torch.tensor(classes, device=self.device)
                retain_BT &= ~torch.isin(batch.labels[name].long(), of_forget)
            parts = batch.context, batch.doc_BT, retain_BT, scored_BT, ce_N
            out.append(HeldOut(tokens_BT, read[0], *parts))
            seen += int(mask_BT.sum())
            if seen >= self.config.ce_tokens:
                break
        return out

    # ---- one edit -------------------------------------------------------------------------

    def run(self, edit: Edit) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
        """Rows and document rows (their group still missing) of one edit."""
        rows, documents = self.exam.ask(edit)
        text_rows, frame = self.reread(edit)
        rows += [*text_rows, row("unlearn_latents", "", len(edit.push.latents), 1)]
        return rows, [*documents, frame]

    def reread(self, edit: Edit | None) -> tuple[list[dict[str, Any]], pd.DataFrame]:
        """The rise of CE and the share of edited tokens on held-out text, all and retained; without
        an edit, of the model as it now is."""
        frames, touched = [], np.zeros((2, 2))  # all and retained; edited and valid
        for h in self.held_out:
            rise_N, touched_BT = self.rise(h, edit)
            labels = {"doc": h.doc_BT[:, :-1], "retain": h.retain_BT[:, :-1]}
            columns = {k: v[h.scored_BT].cpu().numpy() for k, v in labels.items()}
            frames.append(pd.DataFrame({**columns, "num": rise_N.cpu().numpy(), "den": 1.0}))
            for i, part_BT in enumerate((h.context.mask_BT, h.retain_BT)):
                touched[i] += int((touched_BT & part_BT).sum()), int(part_BT.sum())
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

    def rise(self, h: HeldOut, edit: Edit | None) -> tuple[Tensor, Tensor]:
        """How much the CE rises [N], and the tokens that are edited; sequences that an edit leaves
        alone are not run."""
        if edit is None:
            logits = models.logits(self.model, h.tokens_BT)
            now_N = cross_entropy(logits, h.tokens_BT, h.scored_BT)
            return now_N - h.ce_N, torch.ones_like(h.retain_BT)
        new_BTD = edit.within(h.context)(h.raw_BTD)
        touched_BT = edit.touched_BT
        rows = touched_BT.any(1)
        ce_BT = torch.zeros_like(h.scored_BT, dtype=torch.float64)
        ce_BT[h.scored_BT] = h.ce_N
        if rows.any():
            tokens = h.tokens_BT[rows]
            logits = models.logits_from(self.model, tokens, self.store.layer, new_BTD[rows])
            part_BT = ce_BT[rows]
            part_BT[h.scored_BT[rows]] = cross_entropy(logits, tokens, h.scored_BT[rows])
            ce_BT[rows] = part_BT
        return ce_BT[h.scored_BT] - h.ce_N, touched_BT


def watched(raw_BTD: Tensor, into: list[Tensor]) -> Tensor:
    """The residual as it is, noted on the way."""
    into.append(raw_BTD)
    return raw_BTD


def cross_entropy(logits_BTV: Tensor, tokens_BT: Tensor, scored_BT: Tensor) -> Tensor:
    """−log p of the next token, in nats, float64 [N], at the positions ``scored_BT`` [B, T − 1]."""
    logp_NV = logits_BTV[:, :-1][scored_BT].float().log_softmax(-1)
    return -logp_NV.gather(1, tokens_BT[:, 1:][scored_BT][:, None]).squeeze(1).double()
