"""Smoke-size inputs: notebooks that start together on an empty temporary directory share them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lab.runs import smoke
from lab.runs.setting import compute_on
from tsae.errors import UserError
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


def test_a_notebook_opened_by_itself_reads_the_finished_stages(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TSAE_SMOKE", raising=False)
    monkeypatch.setattr(smoke, "ROOT", tmp_path)
    monkeypatch.setattr(smoke, "PLAN", tmp_path / "plan.json")
    trained = {"ablation": "", "world_dir": "b"}
    stages = {"order": {"world": "order"}, "b": {"world": "microworld"}}
    stages |= {v: {"variant": v, **trained} for v in ("glta", "conv", "topk")}
    stages |= {"else": {"variant": "topk", "world_dir": "order"}, "figures": {}}
    plan = [{"name": name, "directory": name, "parameters": p} for name, p in stages.items()]
    write_json(tmp_path / "plan.json", plan)
    for name in set(stages) - {"figures"}:
        write_json(tmp_path / name / "manifest.json", {})
    assert smoke.world_dir("given") == "given" and smoke.sae_dirs(["x"]) == ["x"]
    assert capsys.readouterr().out == ""
    assert smoke.world_dir() == str(tmp_path / "b")
    assert smoke.sae_dirs() == [str(tmp_path / v) for v in ("topk", "conv")]
    said = "Inputs: the finished stages of the profile laptop.\n"
    assert capsys.readouterr().out == said
    monkeypatch.setenv("TSAE_SMOKE", "1")
    assert smoke.finished() == []


def test_a_notebook_computes_on_the_device_that_is_there(capsys):
    assert compute_on("auto", 1) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert compute_on("cpu", 1) == "cpu"
    assert capsys.readouterr().out.splitlines()[-1] == "Computed on cpu, with 1 thread of the CPU."
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees no GPU here"):
            compute_on("cuda", 1)
