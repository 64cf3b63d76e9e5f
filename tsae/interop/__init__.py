"""The way out to other people's tools, and back: SAELens, SAEBench, ``datasets``, ``torch.export``."""

from tsae.interop.codes import export_codes
from tsae.interop.graph import export_encoder
from tsae.interop.saebench import BenchSAE
from tsae.interop.saelens import load_saelens, save_saelens

__all__ = ["BenchSAE", "export_codes", "export_encoder", "load_saelens", "save_saelens"]
