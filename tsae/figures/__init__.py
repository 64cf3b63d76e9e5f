"""Figures of the paper, each from tidy tables alone.

Every function returns a matplotlib ``Figure``; ``smoke=True`` prints "smoke size: not results" on
it. What a figure needs and the tables lack is one :class:`tsae.errors.UserError`.
"""

import io
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from tsae import files
from tsae.figures.forgetting import unlearning
from tsae.figures.schema import systems
from tsae.figures.sentence import heatmap
from tsae.figures.sparsity import ablation, pareto
from tsae.figures.style import STYLE
from tsae.figures.time import dwell, smoothness
from tsae.figures.training import curves
from tsae.figures.truth import recovery

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
