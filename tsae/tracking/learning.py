"""A tracker over the codes of an SAE that does not train: W is learned as C is moved."""

from collections.abc import Iterable

import torch
from torch import Tensor

from tsae.tracking.active import Active
from tsae.tracking.correlation import TemporalCorrelationTracker


@torch.enable_grad()
def track(
    tracker: TemporalCorrelationTracker,
    batches: Iterable[tuple[Active, Tensor]],
    *,
    lr: float,
    learning: str = "logistic",
    pairs: int = 16_384,
) -> TemporalCorrelationTracker:
    """One update of C and one Adam step on W for each (codes, documents); the tracker again.

    ``learning``: logistic, or norm (the naive penalty).
    """
    relation = tracker.relation
    adam = torch.optim.Adam(relation.parameters(), lr=lr)
    for active, document_N in batches:
        tracker.update(active, document_N)  # first, so that every latent's usual code is known
        if learning == "norm":
            loss = relation.norm_loss()
        else:
            loss = relation.logistic_loss(active, tracker.past(active), document_N, pairs)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return tracker
