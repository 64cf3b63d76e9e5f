"""The engine: a profile becomes a plan of notebook runs, each with a manifest.

Nothing here imports torch or pandas before it is needed, so that a plan takes well under a second.
"""

from lab.pipeline.execution import execute
from lab.pipeline.stages import Stage, plan
from lab.results.rows import label_rows, merge, save

__all__ = ["Stage", "execute", "label_rows", "merge", "plan", "save"]
