"""The variants: build one by name, load one from disk. Each lives in a file of its own here."""

import importlib
import pkgutil

from tsae.saes.base import SAE, Phase, SAEConfig, SAEOutput
from tsae.saes.registry import build, load, names, register
from tsae.sequences import SequenceContext

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["SAE", "Phase", "SAEConfig", "SAEOutput", "SequenceContext", "build", "load", "names",
           "register"]  # fmt: skip
