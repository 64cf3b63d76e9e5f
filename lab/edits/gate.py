r"""When to edit: a running score of evidence u that is held to a threshold set on retained text.

    token   s[t] = u[t]                         window  s[t] = mean of the last WINDOW valid u
    share   s[t] = Σ 1[u > 0] / (n + 4) over the document's n tokens up to t     (ρ of dynamic guardrails)
    ema     s[t] = ρ s[t−1] + (1 − ρ) u[t]                                        ρ = DECAY
    cusum   s[t] = max(0, s[t−1] + u[t] − κ),   κ = E_r u + λ (E_f u − E_r u)       (Page 1954)
    open    s[t] > h

h is the smallest score on retained text that at most a share ``rate`` of its tokens exceeds. E_r and
E_f are means over retained and forget text; of the λ in SHIFTS (Page's is ½) that one is taken with
which most tokens of forget text lie above h. A κ that is too small lets long retained documents on
neighbouring matters add up, and h then lies above what any question can reach. s starts at 0 in
every document, stands still at masked tokens, and looks at the past alone. ``share`` is what DSG
(arXiv 2504.08192) thresholds, made causal, with four silent tokens put in front, since the share of
a document's first token is 0 or 1: benign text in front of a question dilutes it, while ``ema`` and
``cusum`` forget that text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lab.edits.evidence import Evidence
from lab.edits.ranking import Coded, Read, exceeded_at_most
from tsae.sequences import DOCUMENT, FilledContext

SCORES = ("token", "window", "share", "ema", "cusum")
DECAY, WINDOW, SILENT = 0.8, 16, 4
SHIFTS = (0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class Gate:
    """A score of some evidence, κ and h; ``trials``: κ, and s of retained and of forget tokens."""

    score: str
    evidence: Evidence
    trials: Sequence[tuple[float, Tensor, Tensor]]
    drift: float = 0.0
    threshold: float = math.inf

    def at(self, rate: float) -> "Gate":
        """The same gate with κ and h set for a false-positive rate.

        The rate on that text is the asked one up to 1/n and ties (a score that is 0 nearly
        everywhere has h = 0 and a lower rate).
        """
        found = []
        for drift, retain_N, forget_N in self.trials:
            threshold = float(exceeded_at_most(retain_N, rate))
            found.append((float((forget_N > threshold).double().mean()), drift, threshold))
        _, drift, threshold = max(found, key=lambda trial: trial[0])
        return replace(self, drift=drift, threshold=threshold)

    def running(self, read: Read) -> Tensor:
        """s [B, T]."""
        return running(self.evidence(read), read.context, self.score, self.drift)

    def open(self, read: Read) -> Tensor:
        """[B, T] bool: valid tokens at which the score is above the threshold."""
        return (self.running(read) > self.threshold) & read.context.mask_BT


def running(
    u_BT: Tensor,
    context: FilledContext,
    score: str,
    drift: float = 0.0,
    decay: float = DECAY,
    window: int = WINDOW,
) -> Tensor:
    """s [B, T] of the evidence; see the module's equations."""
    if score == "token":
        return u_BT
    size, empty = {"window": (window, math.nan), "share": (2, 0.0)}.get(score, (1, 0.0))
    state_BS = u_BT.new_full((len(u_BT), size), empty)
    states = []
    for t, u_B in enumerate(u_BT.unbind(1)):
        u_B1 = u_B[:, None]
        starts_B1 = context.boundary_BT[:, t, None] >= DOCUMENT
        state_BS = torch.where(starts_B1, empty, state_BS)
        if score == "window":  # the last valid u
            moved_BS = torch.cat([state_BS[:, 1:], u_B1], 1)
        elif score == "share":  # tokens with evidence, and all
            moved_BS = state_BS + torch.cat([(u_B1 > 0).to(u_B1), torch.ones_like(u_B1)], 1)
        elif score == "ema":
            moved_BS = decay * state_BS + (1 - decay) * u_B1
        else:
            moved_BS = (state_BS + u_B1 - drift).clamp_min(0.0)
        state_BS = torch.where(context.mask_BT[:, t, None], moved_BS, state_BS)
        states.append(state_BS)
    state_BTS = torch.stack(states, 1)
    if score == "share":
        return state_BTS[..., 0] / (state_BTS[..., 1] + SILENT)
    return state_BTS.nanmean(-1).nan_to_num(0.0)


@torch.no_grad()
def calibrate(
    evidence: Evidence, forget: Sequence[Coded], retain: Sequence[Coded], score: str
) -> Gate:
    """The gate with the scores of both texts; :meth:`Gate.at` sets κ and h."""
    sides = [[(evidence(text.read()), text) for text in texts] for texts in (retain, forget)]

    def scores(read: list[tuple[Tensor, Coded]], how: str, drift: float) -> Tensor:
        return torch.cat([running(u, t.context, how, drift)[t.keep_BT] for u, t in read]).double()

    mean_r, mean_f = (float(scores(read, "token", 0.0).mean()) for read in sides)
    drifts = [mean_r + shift * (mean_f - mean_r) for shift in SHIFTS] if score == "cusum" else [0.0]
    trials = [(k, scores(sides[0], score, k), scores(sides[1], score, k)) for k in drifts]
    return Gate(score, evidence, trials)
