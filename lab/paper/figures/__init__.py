"""Figures of the paper, each from tidy tables alone.

Every function returns a matplotlib ``Figure``; ``smoke=True`` prints "smoke size: not results" on
it. What a figure needs and the tables lack is one :class:`tsae.errors.UserError`.
"""

import io
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lab.paper.figures.forgetting import unlearning
from lab.paper.figures.schema import systems
from lab.paper.figures.sentence import heatmap
from lab.paper.figures.sparsity import ablation, pareto
from lab.paper.figures.style import STYLE
from lab.paper.figures.time import dwell, smoothness
from lab.paper.figures.training import curves
from lab.paper.figures.truth import recovery
from tsae import files

__all__ = [
    "ablation",
    "curves",
    "dwell",
    "heatmap",
    "pareto",
    "recovery",
    "save",
    "smoothness",
    "systems",
    "unlearning",
]


def save(figure: Figure, directory: str | Path, name: str) -> list[Path]:
    """Write ``name.pdf`` (outline fonts) and ``name.png``, and return the two paths.

    The same figure gives the same bytes on every run: no date, no program version. Raises
    :class:`tsae.errors.UserError` when the disk is full.
    """
    paths = []
    stripped = {
        "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
    }
    for kind, metadata in stripped.items():
        buffer = io.BytesIO()
        with plt.style.context(["default", STYLE]):
            figure.savefig(buffer, format=kind, metadata=metadata)
        path = Path(directory) / f"{name}.{kind}"
        with files.atomic(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        paths.append(path)
    return paths
