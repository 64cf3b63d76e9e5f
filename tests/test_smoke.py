"""Smoke-size inputs: notebooks that start together on an empty temporary directory share them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import json, sys
cells = json.loads(open(sys.argv[1], encoding="utf-8").read())["cells"]
for cell in [cell for cell in cells if cell["cell_type"] == "code"][:3]:
    exec("".join(cell["source"]))
"""
"""The parameters, the inputs and what is made of them; pictures aside."""


def begin(notebook: str, temporary: Path) -> subprocess.Popen:
    """Start the first cells of a notebook, opened by itself, with this temporary directory."""
    environment = os.environ | {"TMPDIR": str(temporary), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", RUN, str(ROOT / "notebooks" / notebook)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


@pytest.mark.parametrize("names", [("01_worlds", "03_train", "03_train")])
def test_notebooks_started_at_once_share_one_world(tmp_path, names):
    together = [begin(f"{name}.ipynb", tmp_path) for name in names]
    ends = [(run.communicate(timeout=600)[1], run.returncode) for run in together]
    assert [status for _, status in ends] == [0] * len(names), ends
    (shared,) = tmp_path.glob("tsae-smoke-*")
    assert {path.name for path in shared.iterdir()} == {"worlds", "03_train"}
    run = json.loads((shared / "03_train" / "run.json").read_text())
    assert run["sizes"]["steps"] == 60 and (shared / "03_train" / "sae").is_dir()
