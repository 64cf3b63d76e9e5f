"""Notebook hygiene: committed notebooks keep their outputs and lose what differs run by run."""

import json
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
    """``notebook``, changed in place: without timings, progress bars, machine metadata and warnings
    (which name paths of the machine); executed cells numbered from 1."""
    number = 0
    for cell in notebook["cells"]:
        metadata = cell.get("metadata", {})
        cell["metadata"] = {key: metadata[key] for key in metadata if key not in CELL_NOISE}
        if INJECTED in metadata.get("tags", []):
            cell["id"] = INJECTED  # papermill draws one
        if cell.get("execution_count") is not None:
            number += 1
            cell["outputs"] = [output for output in cell["outputs"] if not passing(output)]
            for numbered in (cell, *cell["outputs"]):
                if "execution_count" in numbered:
                    numbered["execution_count"] = number
    return {**notebook, "metadata": NOTEBOOK_METADATA}


def passing(output: dict[str, Any]) -> bool:
    """Whether ``output`` is a warning or a progress bar, which are another one in every run."""
    return output.get("name") == "stderr" or WIDGET in output.get("data", {})


def tidy_bytes(path: Path) -> bytes:
    """The file at ``path`` after :func:`tidy`, in nbformat's own layout.

    Raises :class:`UserError` when it is not a notebook.
    """
    try:
        notebook = tidy(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a notebook that can be read.") from None
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode()
