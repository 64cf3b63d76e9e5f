"""The engine: a profile becomes a plan of notebook runs, each with a manifest.

Nothing here imports torch or pandas before it is needed, so that a plan takes well under a second.
"""

from lab.pipeline.execution import execute
from lab.pipeline.planner import plan
from lab.pipeline.stages import Stage

__all__ = ["Stage", "execute", "plan"]
