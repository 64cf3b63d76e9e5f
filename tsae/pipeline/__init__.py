"""The engine: a profile becomes a plan of notebook runs, each with a manifest.

Nothing here imports torch or pandas before it is needed, so that a plan takes well under a second.
"""

from tsae.pipeline.execution import execute
from tsae.pipeline.rows import label_rows, merge, save
from tsae.pipeline.stages import Stage, plan

__all__ = ["Stage", "execute", "label_rows", "merge", "plan", "save"]
