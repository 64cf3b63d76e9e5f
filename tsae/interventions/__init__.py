"""Interventions: edits of the residual stream through an SAE's latents, one file per strategy."""

from tsae.interventions.adaptive import Adaptive, Detector, DetectorConfig, calibrate
from tsae.interventions.chain import ChainClamp, Link, links
from tsae.interventions.clamp import Clamp, random_control
from tsae.interventions.edit import Edit
from tsae.interventions.ranking import Text, frequency, labelled, rank, select

__all__ = [
    "Adaptive",
    "ChainClamp",
    "Clamp",
    "Detector",
    "DetectorConfig",
    "Edit",
    "Link",
    "Text",
    "calibrate",
    "frequency",
    "labelled",
    "links",
    "random_control",
    "rank",
    "select",
]
