"""The benchmarks' own parts that can go wrong without a peer's environment or a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gpu, worker  # noqa: E402


class Halves:
    """Reconstructs half of every token with one of three latents."""

    def codes(self, x_ND):
        z = torch.zeros(len(x_ND), 3)
        z[:, 0] = 1.0
        return 0.5 * x_ND, z


def test_held_out_numbers_by_hand():
    x = np.array([[2.0, 0.0], [0.0, 4.0]], np.float32)
    found = worker.held_out(Halves(), x, np.array([0.0, 2.0], np.float32))
    # errors 1 + 4; about the mean (0, 2): 4 + 4 and 0 + 4
    assert found == {"fve": pytest.approx(1 - 5 / 12), "l0": 1.0, "alive": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_gpu_says_in_one_line_that_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert err.count("\n") == 1 and "no GPU" in err


def test_a_worker_trains_and_answers(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32))
    spec = {"library": "tsae", "method": "topk", "x": str(tmp_path / "x.npy"), "latents": 16,
            "k": 2, "batch": 128, "steps": 10, "lr": 1e-3, "warmup": 2, "seed": 0}  # fmt: skip
    commands = '{"do": "steps", "n": 3}\n{"do": "flops"}\n'
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/worker.py", json.dumps(spec)],
        input=commands, capture_output=True, text=True, check=True,
    )  # fmt: skip
    ready, steps, flops = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True} and steps["cpu"] > 0 and steps["loss"] > 0
    assert flops["flops"] >= 2 * 128 * 8 * 16  # the encoder's product at least


def test_costs_go_to_our_innermost_function_of_a_cell_at_work():
    from benchmarks import stages

    cell = "run_code (IPython/core/interactiveshell.py:3823);<module> (123.py:1)"
    file = "tsae/training/train.py"
    lines = [
        f"main (x.py:1);{cell};train ({file}:9);step ({file}:45);mm (torch/f.py:2) 5",
        f"main (x.py:1);{cell};train ({file}:9);step ({file}:48) 3",
        f"main (x.py:1);{cell};read_parquet (pandas/io.py:7) 2",
        "main (x.py:1);poll (lab/pipeline/front.py:3) 100",
    ]
    costs = stages.read(lines)
    assert costs.total == 10
    assert costs.ours == {"step (tsae/training/train.py)": 8, "the notebooks": 2}
    assert costs.inside["step (tsae/training/train.py)"] == {"mm (torch/f.py)": 5, "itself": 3}
