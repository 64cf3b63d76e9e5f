"""Two gloo processes train what one trains, and the command trains what Python does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rank_training import CASES, UnevenStore, train_case
from test_resume import Killed
from test_train import STORE, checkpoint_step, rows

from tsae import saes
from tsae.__main__ import main
from tsae.training import runs as training


class MortalUnevenStore(UnevenStore):
    """``dies``: the batch read for training that ends the process."""

    def __init__(self, dies):
        super().__init__()
        self.left = dies

    def batch(self, split, indices, device="cpu"):
        self.left -= split == "train"
        if split == "train" and not self.left:
            raise Killed
        return super().batch(split, indices, device)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The directory in which two processes have trained every case, one of them resumed."""
    directory = tmp_path_factory.mktemp("ranks")
    with pytest.raises(Killed):
        train_case("topk", directory / "resumed", MortalUnevenStore(dies=7))
    assert checkpoint_step(directory / "resumed") == 4
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = Path(__file__).with_name("rank_training.py")
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(script), str(directory)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return directory


def largest_difference(sae, other):
    """Largest |a - b| over all entries of two state dicts."""
    pairs = zip(sae.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, two_ranks, tmp_path):
    alone = train_case(case, tmp_path)
    together = saes.load(two_ranks / case / "sae")
    assert together.meta["run"] == alone.sae.meta["run"]
    assert largest_difference(alone.sae, together) < 1e-4
    for row, other in zip(rows(tmp_path), rows(two_ranks / case), strict=True):
        assert row.keys() == other.keys() and row["dead"] == other["dead"]
        for key in row.keys() - {"phase"}:
            assert other[key] == pytest.approx(row[key], rel=1e-3, abs=1e-4), (row["step"], key)


def test_the_cases_revive_dead_latents(two_ranks):
    """Or the comparison would say nothing about AuxK, whose error all ranks must share."""
    assert any("aux" in row for row in rows(two_ranks / "topk"))
    assert any("resampled" in row for row in rows(two_ranks / "relu"))


def test_two_processes_go_on_where_one_was_killed(two_ranks, tmp_path):
    alone = train_case("topk", tmp_path)
    resumed = saes.load(two_ranks / "resumed" / "sae")
    assert largest_difference(alone.sae, resumed) < 1e-4
    lines = [
        (d / "train.jsonl").read_text().splitlines() for d in (tmp_path, two_ranks / "resumed")
    ]
    assert lines[0][:4] == lines[1][:4] and len(lines[1]) == 12
    assert not (two_ranks / "resumed" / "checkpoint").exists()


def test_what_ranks_cannot_share_is_one_sentence(two_ranks):
    refused = json.loads((two_ranks / "refused.json").read_text())
    assert "compares tokens of different sequences" in refused["contrastive"]
    assert "makes 3 sequences a batch, which 2 processes cannot share evenly" in refused["topk"]
    assert not (two_ranks / "none").exists()


# ---- the command -----------------------------------------------------------------------------

ASKED = "--k 4 --d-sae 32 --steps 12 --lr 1e-2 --train batch_tokens=64 warmup_steps=2".split()


def test_the_command_trains_what_python_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tsae.store.ActivationStore.open", lambda *_, **__: STORE)
    place = ["train", "--setting", "here", "--out", str(tmp_path)]
    options = ["--option", "window=3", "lag_rank=null", "gate=none"]
    assert main([*place, *ASKED, "--variant", "conv", *options]) == 0
    assert f"{tmp_path}/conv/sae: conv" in capsys.readouterr().out
    found = saes.load(tmp_path / "conv" / "sae")
    assert (found.cfg.window, found.cfg.lag_rank, found.cfg.gate) == (3, None, "none")
    expected = training.run_training(
        STORE, tmp_path / "python", variant="conv", k=4, d_sae=32, steps=12, lr=1e-2,
        batch_tokens=64, warmup_steps=2, progress=False,
        options={"window": 3, "lag_rank": None, "gate": "none"},
    ).sae  # fmt: skip
    assert largest_difference(found, expected) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--variant", "psychic"], "variant 'psychic' is unknown; choose one of"),
        (["--variant", "topk", "--option", "window=3"], "has no option 'window'"),
        (["--variant", "topk", "--option", "window"], "not of the form name=value"),
        (["--variant", "topk", "--train", "sleep=8"], "no trainer field 'sleep'; choose"),
    ],
)
def test_a_bad_command_is_one_line(more, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tsae.store.ActivationStore.open", lambda *_, **__: STORE)
    try:
        status = main(["train", "--setting", "x", "--out", str(tmp_path), *ASKED, *more])
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err.strip()
    assert status == 2 and words in told and "\n" not in told
