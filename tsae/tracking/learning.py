"""A tracker over the codes of an SAE that does not train: W is learned as C is moved."""

from collections.abc import Iterable

import torch
from torch import Tensor

from tsae.tracking.active import Active
from tsae.tracking.correlation import TemporalCorrelationTracker
from tsae.tracking.quantise import remembered


@torch.enable_grad()
def track(
    tracker: TemporalCorrelationTracker,
    batches: Iterable[tuple[Active, Tensor]],
    *,
    lr: float,
    learning: str = "logistic",
    pairs: int = 4096,
) -> TemporalCorrelationTracker:
    """One Adam step on W and one update of C for each (codes, documents); the tracker again.

    ``learning``: logistic, or norm (the naive penalty).
    """
    relation = tracker.relation
    adam = torch.optim.Adam(relation.parameters(), lr=lr)
    for active, document_N in batches:
        if learning == "norm":
            loss = relation.norm_loss()
        else:
            kept_NM = remembered(active.values_NM, tracker.bits)
            loss = relation.logistic_loss(active, document_N, kept_NM, pairs)
        adam.zero_grad()
        loss.backward()
        adam.step()
        tracker.update(active, document_N)
    return tracker
