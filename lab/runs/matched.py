"""The same L0 for every variant: by training at a k, then by moving the inference threshold.

``topk`` has its L0 by construction. ``relu``, ``batchtopk`` and ``jumprelu`` reach theirs on
average only, and miss it by some percent on other tokens than the ones they were steered on; here
their threshold is moved until L0 on training tokens is the one asked for.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from tsae.saes import SAE
from tsae.saes.activations import BatchTopK, JumpReLU, ReLU
from tsae.saes.shares import Grouped
from tsae.store import ActivationStore

TOLERANCE = 0.02


class Match(NamedTuple):
    """How one SAE came to its L0."""

    sae: SAE
    how: str
    """``by construction`` (topk), ``trained`` (nothing had to be moved), ``threshold``, or
    ``not reached``."""
    before: float
    """L0 on training tokens as trained."""


@torch.no_grad()
def measured_l0(sae: SAE, store: ActivationStore, limit_tokens: int, batch_size: int = 16) -> float:
    """Mean active latents of the first ``limit_tokens`` valid training tokens."""
    active = n = 0
    for batch in store.batches("train", batch_size):
        batch = batch.to(sae.b_dec.device)
        z_BTF = sae.encode(batch.x_BTD, batch.context)
        active += int((z_BTF != 0).sum())
        n += int(batch.context.mask_BT.sum())
        if n >= limit_tokens:
            break
    return active / max(n, 1)


def shifted(sae: SAE, shift: float) -> SAE:
    """A copy, in eval mode, whose inference thresholds are moved by ``shift`` (0: as trained)."""
    moved = copy.deepcopy(sae).eval()
    parts = parts_of(moved)
    for i, part in enumerate(parts):
        if isinstance(part, JumpReLU):
            part.log_threshold.data.add_(shift)
        elif isinstance(part, BatchTopK):
            part.threshold.add_(shift)
        elif isinstance(part, ReLU):  # a batchtopk at inference is a relu with a threshold
            parts[i] = BatchTopK(sae.cfg.k).eval()
            parts[i].threshold.fill_(shift)
    if isinstance(moved.act, Grouped):
        moved.act.parts = torch.nn.ModuleList(parts)
    else:
        moved.act = parts[0]
    return moved


def parts_of(sae: SAE) -> list[Any]:
    """Its nonlinearities, one a group of latents."""
    return list(sae.act.parts) if isinstance(sae.act, Grouped) else [sae.act]


def bisect(l0_at: Callable[[float], float], asked: float, low: float, high: float) -> float:
    """The shift in [low, high] where the falling ``l0_at`` is nearest ``asked`` (24 halvings)."""
    for _ in range(24):
        middle = (low + high) / 2
        found = l0_at(middle)
        if abs(found / asked - 1) <= TOLERANCE / 10:
            return middle
        low, high = (middle, high) if found > asked else (low, middle)
    return (low + high) / 2


def match_own(sae: SAE, store: ActivationStore, limit_tokens: int = 8192) -> Match:
    """A copy at the L0 of its own k: as it is within 2%, else with its threshold moved; as it is,
    too, where no threshold gives that L0 (a topk has none)."""
    sae, asked = copy.deepcopy(sae).eval(), sae.cfg.k
    before = measured_l0(sae, store, limit_tokens)
    if abs(before / asked - 1) <= TOLERANCE:
        return Match(sae, "by construction" if sae.cfg.act == "topk" else "trained", before)
    if sae.cfg.act == "topk":
        return Match(sae, "not reached", before)
    # From all thresholds at 0 to above every pre-activation of a unit-norm direction: twice the
    # norm of a usual token, √d.
    lowest = -max([0.0, *(float(p.threshold) for p in parts_of(sae) if isinstance(p, BatchTopK))])
    ends = (-20.0, 20.0) if sae.cfg.act == "jumprelu" else (lowest, 2 * math.sqrt(store.d_model))
    shift = bisect(lambda s: measured_l0(shifted(sae, s), store, limit_tokens), asked, *ends)
    moved = shifted(sae, shift)
    if abs(measured_l0(moved, store, limit_tokens) / asked - 1) > TOLERANCE:
        return Match(sae, "not reached", before)
    moved.meta = {**sae.meta, "matched_l0": {"how": "threshold", "asked": asked, "shift": shift}}
    return Match(moved, "threshold", before)
