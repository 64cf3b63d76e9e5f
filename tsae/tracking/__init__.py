"""Which active latents follow which: recent codes, their relation, and its running average."""

from tsae.tracking.active import Active, Lagged, history, strongest
from tsae.tracking.buffer import CircularFeatureBuffer
from tsae.tracking.correlation import TemporalCorrelationTracker
from tsae.tracking.learning import track
from tsae.tracking.relation import Relation

__all__ = ["Active", "CircularFeatureBuffer", "Lagged", "Relation", "TemporalCorrelationTracker",
           "history", "strongest", "track"]  # fmt: skip
