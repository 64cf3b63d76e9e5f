"""The engine: a profile becomes a plan of notebook runs, each with a manifest.

Nothing here imports torch or pandas before it is needed, so that a plan takes well under a second.
"""

from lab.pipeline.planner import Stage, plan

__all__ = ["Stage", "plan"]
