"""Interventions: edits of the residual stream through an SAE's latents, one file per strategy."""

from tsae.interventions.adaptive import Adaptive, Detector, DetectorConfig, calibrate
from tsae.interventions.chain import ChainClamp, Link, links
from tsae.interventions.clamp import Clamp, random_control
from tsae.interventions.edit import Edit
from tsae.interventions.following import ChainConfig, follow, tracked
from tsae.interventions.hierarchical import (
    HierarchicalClamp,
    LeafClamp,
    clamp_above,
    rank_leaves,
    rank_parents,
    two_levels,
)
from tsae.interventions.ranking import Text, frequency, labelled, rank, select

__all__ = [
    "Adaptive",
    "ChainConfig",
    "ChainClamp",
    "Clamp",
    "Detector",
    "DetectorConfig",
    "Edit",
    "HierarchicalClamp",
    "LeafClamp",
    "Link",
    "Text",
    "calibrate",
    "clamp_above",
    "follow",
    "frequency",
    "labelled",
    "links",
    "random_control",
    "rank",
    "rank_leaves",
    "rank_parents",
    "select",
    "tracked",
    "two_levels",
]
