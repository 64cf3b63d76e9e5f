"""Notebook hygiene: committed notebooks keep their outputs and lose what differs run by run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsae.errors import UserError

INJECTED = "injected-parameters"
WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_NOISE = {"papermill", "execution", "collapsed", "scrolled", "ExecuteTime"}
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tidy(notebook: dict[str, Any]) -> dict[str, Any]:
    """``notebook`` without timings, progress bars, machine metadata and warnings (which name paths
    of the machine); cells numbered from 1.

    Sources, other outputs and tags stay as they are, and so does an unexecuted cell's empty number.
    """
    number = 0
    cells = []
    for cell in notebook["cells"]:
        cell = dict(cell)
        metadata = cell.get("metadata", {})
        cell["metadata"] = {key: metadata[key] for key in metadata if key not in CELL_NOISE}
        if INJECTED in metadata.get("tags", []):
            cell["id"] = INJECTED  # papermill draws one
        if cell["cell_type"] == "code" and cell.get("execution_count") is not None:
            number += 1
            cell["execution_count"] = number
            outputs = cell.get("outputs", [])
            results = [dict(output) for output in outputs if not passing(output)]
            for output in results:
                if "execution_count" in output:
                    output["execution_count"] = number
            cell["outputs"] = results
        cells.append(cell)
    return {**notebook, "cells": cells, "metadata": NOTEBOOK_METADATA}


def passing(output: dict[str, Any]) -> bool:
    """Whether ``output`` is a warning or a progress bar, which are another one in every run."""
    return output.get("name") == "stderr" or WIDGET in output.get("data", {})


def tidy_bytes(path: str | Path) -> bytes:
    """The file at ``path`` after :func:`tidy`, in nbformat's own layout.

    Raises :class:`UserError` when it is not a notebook.
    """
    try:
        notebook = tidy(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a notebook that can be read.") from None
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode()


def tidy_files(paths: Sequence[str | Path]) -> list[Path]:
    """Rewrite those of ``paths`` that are untidy; return them."""
    changed = []
    for path in map(Path, paths):
        content = tidy_bytes(path)
        if content != path.read_bytes():
            path.write_bytes(content)
            changed.append(path)
    return changed
