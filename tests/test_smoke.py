"""Smoke-size inputs: notebooks that start together on an empty temporary directory share them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.runs import smoke
from tsae.files import write_json

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
    environment = os.environ | {"TMPDIR": str(temporary), "MPLBACKEND": "Agg", "TSAE_SMOKE": "1"}
    command = [sys.executable, "-c", RUN, str(ROOT / "notebooks" / notebook)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


@pytest.mark.parametrize("names", [("01_worlds", "03_train", "03_train")])
def test_notebooks_started_at_once_share_one_world(tmp_path, names):
    together = [begin(f"{name}.ipynb", tmp_path) for name in names]
    ends = [(run.communicate(timeout=600)[1], run.returncode) for run in together]
    assert [status for _, status in ends] == [0] * len(names), ends
    (shared,) = tmp_path.glob("tsae-smoke-*")
    assert {path.name for path in shared.iterdir()} == {"worlds", "03_train-worlds"}
    run = json.loads((shared / "03_train-worlds" / "run.json").read_text())
    assert run["sizes"]["steps"] == 60 and (shared / "03_train-worlds" / "sae").is_dir()


def stage(root, name, **parameters):
    write_json(root / name / "manifest.json", {"parameters": parameters})
    return str(root / name)


def test_a_notebook_opened_by_itself_reads_the_newest_finished_stages(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("TSAE_SMOKE", raising=False)
    monkeypatch.setattr(smoke, "RESULTS", tmp_path)
    stage(tmp_path, "worlds/microworld-a", world="microworld")
    world = stage(tmp_path, "worlds/microworld-b", world="microworld")
    stage(tmp_path, "worlds/order-c", world="order")
    for old, name in enumerate(("microworld-b", "order-c", "microworld-a")):
        os.utime(tmp_path / "worlds" / name / "manifest.json", (1000 - old, 1000 - old))
    given = {"ablation": "", "world_dir": "results/laptop/worlds/microworld-b"}
    runs = [stage(tmp_path, f"train/{v}", variant=v, **given) for v in ("topk", "conv", "glta")]
    stage(tmp_path, "train/other", variant="topk", **{**given, "world_dir": "microworld-a"})
    assert smoke.world_dir("given") == "given" and smoke.sae_dirs(["x"]) == ["x"]
    assert capsys.readouterr().out == ""
    assert smoke.world_dir() == world and smoke.sae_dirs() == runs[:2]
    said = "Inputs: results/laptop/worlds/microworld-b and what stands on it.\n"
    assert capsys.readouterr().out == said
    monkeypatch.setenv("TSAE_SMOKE", "1")
    assert list(smoke.finished("worlds")) == []
