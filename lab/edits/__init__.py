"""Edits of the residual stream: a gate says when, a push says what; one file each."""

from lab.edits.chain import ChainClamp, Link, links
from lab.edits.clamp import Ablation, Clamp, Direction, random_control
from lab.edits.edit import Edit, Push
from lab.edits.evidence import Coded, Mass, coded, quantiles, separating
from lab.edits.following import ChainConfig, follow, ordered, tracker_of
from lab.edits.gate import Gate, GateConfig, calibrate
from lab.edits.hierarchical import Parents, two_levels
from lab.edits.ranking import Text, frequency, labelled, select

__all__ = [
    "Ablation",
    "ChainClamp",
    "ChainConfig",
    "Clamp",
    "Coded",
    "Direction",
    "Edit",
    "Gate",
    "GateConfig",
    "Link",
    "Mass",
    "Parents",
    "Push",
    "Text",
    "calibrate",
    "coded",
    "follow",
    "frequency",
    "labelled",
    "links",
    "ordered",
    "quantiles",
    "random_control",
    "select",
    "separating",
    "tracker_of",
    "two_levels",
]
