"""Temporal sparse autoencoders: what is gained when the dictionary knows about time."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsae.dictionaries import Pretrained

__docformat__ = "restructuredtext"
__version__ = "0.1.0"


def load(name: str, device: str = "cpu") -> "Pretrained":
    """A trained dictionary that comes with the package (:mod:`tsae.dictionaries`)."""
    from tsae import dictionaries  # so that the package's other parts import without it

    return dictionaries.load(name, device)
