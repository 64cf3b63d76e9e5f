"""The way out to other people's tools, and back: SAELens and SAEBench."""

from tsae.interop.saebench import BenchSAE
from tsae.interop.saelens import load_saelens, save_saelens

__all__ = ["BenchSAE", "load_saelens", "save_saelens"]
