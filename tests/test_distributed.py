"""Two gloo processes train what one trains; several SAEs train on one read as each alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_store import FakeStore
from rank_training import CASES, UnevenStore, build, train_case
from test_resume import Killed, noisy
from test_train import STORE, checkpoint_step, config, rows

from tsae import saes
from tsae.__main__ import main
from tsae.errors import UserError
from tsae.training import runs as training
from tsae.training.train import Run, train, train_together


class CountingStore(FakeStore):
    """Counts the batches read for training; ``dies``: the read that ends the process."""

    def __init__(self, dies=None):
        super().__init__()
        self.reads, self.dies = 0, dies

    def batch(self, split, indices, device="cpu"):
        self.reads += split == "train"
        if split == "train" and self.reads == self.dies:
            raise Killed
        return super().batch(split, indices, device)


class MortalUnevenStore(CountingStore, UnevenStore):
    """Both."""

    def __init__(self, dies):
        UnevenStore.__init__(self)
        self.reads, self.dies = 0, dies


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


# ---- several SAEs on one read ----------------------------------------------------------------


def test_saes_trained_together_are_those_trained_alone(tmp_path):
    """To the byte, drawing from all generators, one ending early, on 12 reads in place of 30."""
    makes = [lambda: build("lstm"), noisy, lambda: build("batchtopk")]
    steps = [12, 12, 6]
    asked = [config(steps=n, resample_every=0) for n in steps]
    store = CountingStore()
    runs = [Run(make(), tmp_path / f"together-{i}", asked[i], {}) for i, make in enumerate(makes)]
    results = train_together(runs, store, progress=False)
    assert store.reads == 12
    for i, make in enumerate(makes):
        alone = train(make(), STORE, tmp_path / f"alone-{i}", asked[i], progress=False)
        for a, b in zip(
            alone.sae.state_dict().values(), results[i].sae.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b)
        written = [tmp_path / f"{kind}-{i}" / "train.jsonl" for kind in ("alone", "together")]
        assert written[0].read_bytes() == written[1].read_bytes()


def test_one_failing_run_leaves_the_others_their_checkpoints(tmp_path):
    class Bad(saes.SAE):
        def own_terms(self, *_):
            return {"bad": self.b_dec.sum() * float("nan" if self.progress > 0.4 else 0)}

    bad = Bad(saes.SAEConfig(d_in=16, d_sae=32, k=4))
    bad.name = "topk"
    runs = [
        Run(build("topk"), tmp_path / "a", config(), {}),
        Run(bad, tmp_path / "b", config(), {}),
    ]
    with pytest.raises(UserError, match="stopped at step 6: term 'bad'"):
        train_together(runs, STORE, progress=False)
    assert checkpoint_step(tmp_path / "a") == checkpoint_step(tmp_path / "b") == 4


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
