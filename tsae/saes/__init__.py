"""The variants: build one by name, load one from disk. Each lives in a file of its own here."""

import importlib
import pkgutil

from tsae.saes.base import DOCUMENT, SAE, Phase, SAEConfig, SAEOutput, SequenceContext
from tsae.saes.registry import build, load, names, register
from tsae.sequences import FilledContext

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "DOCUMENT",
    "FilledContext",
    "SAE",
    "Phase",
    "SAEConfig",
    "SAEOutput",
    "SequenceContext",
    "build",
    "load",
    "names",
    "register",
]
