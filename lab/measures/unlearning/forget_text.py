"""Where a store says which text is to be forgotten, and which boundaries a prompt would have."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lab.edits import Text
from tsae.saes.config import require
from tsae.sequences import DOCUMENT, LabelSpec


def forget_label(
    specs: Mapping[str, LabelSpec], subjects: Iterable[str]
) -> tuple[str, list[int]] | None:
    """The label, and its classes, that name all forget subjects; None when no label does.

    Of several, the one of the longest time scale.
    """
    subjects = set(subjects)
    for scale in ("document", "section"):
        for name, spec in specs.items():
            if spec.scale == scale and subjects <= set(spec.classes):
                return name, [spec.classes.index(s) for s in sorted(subjects)]
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


def all_text(
    store: Any, split: str, batch_size: int, limit_tokens: int, device: str = "cpu"
) -> Iterator[Text]:
    """Every valid token of a split, whole batches until there are ``limit_tokens``."""
    seen = 0
    for batch in store.batches(split, batch_size):
        batch = batch.to(device)
        yield Text(batch.x_BTD, batch.context, batch.context.mask_BT, batch.tokens_BT.long())
        seen += int(batch.context.mask_BT.sum())
        if seen >= limit_tokens:
            return


def levels_after(store: Any, vocab_size: int, limit_tokens: int) -> Tensor:
    """[V] uint8: the boundary level (0, 1, 2) that most often starts right after each token.

    Counted inside the train documents. A prompt carries no boundaries of its own, so a sequence
    encoder is given those that this rule puts there, ties and unseen tokens 0.
    """
    counts = torch.zeros(vocab_size * DOCUMENT, dtype=torch.long)
    seen = 0
    for batch in store.batches("train", 16):
        doc_BT, level_BT = batch.doc_BT, batch.context.boundary_BT.long()
        same_BT = (doc_BT[:, 1:] == doc_BT[:, :-1]) & (doc_BT[:, 1:] >= 0)
        same_BT &= level_BT[:, 1:] < DOCUMENT
        pair_N = (batch.tokens_BT[:, :-1].long() * DOCUMENT + level_BT[:, 1:])[same_BT]
        counts += torch.bincount(pair_N, minlength=len(counts))
        seen += batch.tokens_BT.numel()
        if seen >= limit_tokens:
            break
    return counts.view(vocab_size, DOCUMENT).argmax(1).to(torch.uint8)
