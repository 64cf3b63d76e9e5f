"""Interventions: edits of the residual stream through an SAE's latents, one file per strategy."""

from lab.edits.adaptive import Adaptive, Detector, DetectorConfig, calibrate
from lab.edits.chain import ChainClamp, Link, links
from lab.edits.clamp import Clamp, random_control
from lab.edits.edit import Edit
from lab.edits.following import ChainConfig, follow, tracked
from lab.edits.hierarchical import (
    HierarchicalClamp,
    LeafClamp,
    clamp_above,
    rank_leaves,
    rank_parents,
    two_levels,
)
from lab.edits.ranking import Text, frequency, labelled, rank, select

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
