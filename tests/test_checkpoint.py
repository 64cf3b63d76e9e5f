"""What a checkpoint of a training restores, and what it refuses, in one sentence."""

import errno
import json

import pytest
import torch
from fake_store import FakeStore
from test_resume import Killed, MortalStore, same_files
from test_train import build, checkpoint_step, config

from tsae import saes
from tsae.errors import CheckpointError, UserError
from tsae.training import checkpoint, train

STORE = FakeStore(n_train=22)


def killed(directory, step=7, **changes):
    with pytest.raises(Killed):
        train.train(build(), MortalStore(step), directory, config(**changes), progress=False)
    return directory / "checkpoint" / "state.pt"


def test_a_checkpoint_holds_moments_dead_counts_generators_and_cursor(tmp_path):
    path = killed(tmp_path)
    state = torch.load(path, weights_only=True)
    assert {"W_enc", "b_enc", "W_dec", "b_dec"} <= set(state["sae"])
    for moments in state["optimizer"]["state"].values():
        assert moments["step"] == 4.0 and {"exp_avg", "exp_avg_sq"} <= set(moments)
    assert len(state["optimizer"]["state"]) == 4
    assert state["sae"]["idle_tokens"].max() <= 4 * 4 * 15  # 15 valid tokens a sequence
    assert set(state["generators"]) == {"python", "numpy", "torch"}
    sampler = STORE.sampler("train", 4, 0)
    for _ in range(4):
        sampler.next_indices()
    sae, fresh = build(), STORE.sampler("train", 4, 0)
    run = checkpoint.identity(sae, STORE, config())
    optimizer = torch.optim.AdamW(sae.parameters())
    log_size = len(b"".join((tmp_path / "train.jsonl").read_bytes().splitlines(True)[:4]))
    assert checkpoint.read(tmp_path, run, sae, optimizer, fresh) == (4, log_size)
    assert fresh.state_dict() == sampler.state_dict()


CHANGES = {
    "lr": (lambda: build(), STORE, {"lr": 0.5}, "train.lr = 0.01, but this run has 0.5"),
    "k": (lambda: saes.build("topk", d_in=16, d_sae=32, k=5), STORE, {}, "sae.k = 4"),
    "variant": (lambda: build("batchtopk"), STORE, {}, "variant = 'topk', .* has 'batchtopk'"),
    "seed": (lambda: build(), STORE, {"seed": 1}, "train.seed = 0"),
    "tokens": (lambda: build(), FakeStore(n_train=23), {}, "train_sequences = 22"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ended", [False, True])
def test_another_run_is_refused_and_nothing_is_lost(change, ended, tmp_path):
    if ended:
        train.train(build(), STORE, tmp_path, config(), progress=False)
    else:
        killed(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    make, store, changes, sentence = CHANGES[change]
    with pytest.raises(CheckpointError, match=sentence):
        train.train(make(), store, tmp_path, config(**changes), progress=False)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_another_world_is_refused(tmp_path):
    killed(tmp_path)
    store = FakeStore(n_train=22)
    store.world = "elsewhere"
    with pytest.raises(CheckpointError, match="world = 'fake', but this run has 'elsewhere'"):
        train.train(build(), store, tmp_path, config(), progress=False)


def test_another_version_is_refused(tmp_path, monkeypatch):
    killed(tmp_path)
    monkeypatch.setattr(checkpoint, "VERSION", checkpoint.VERSION + 1)
    with pytest.raises(CheckpointError, match="version = 2, but this run has 3"):
        train.train(build(), STORE, tmp_path, config(), progress=False)


def test_a_truncated_a_foreign_checkpoint_and_a_lost_log_are_one_sentence(tmp_path):
    path = killed(tmp_path)
    good = path.read_bytes()
    for size in (0, 5, 100, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(CheckpointError, match="is truncated or damaged .* delete it to train"):
            train.train(build(), STORE, tmp_path, config(), progress=False)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="was not written by tsae's trainer"):
        train.train(build(), STORE, tmp_path, config(), progress=False)
    path.write_bytes(good)
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="has 0 bytes but its checkpoint remembers"):
        train.train(build(), STORE, tmp_path, config(), progress=False)


def test_a_finished_run_without_its_log_is_one_sentence(tmp_path):
    train.train(build(), STORE, tmp_path, config(), progress=False)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(CheckpointError, match="train.jsonl is missing or damaged"):
        train.train(build(), STORE, tmp_path, config(), progress=False)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    writes, save = [], torch.save

    def full(state, file):
        writes.append(file)
        if len(writes) == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match="is full: free some space and run the same command"):
            train.train(build(), STORE, tmp_path, config(), progress=False)
    assert checkpoint_step(tmp_path) == 4
    train.train(build(), STORE, tmp_path, config(), progress=False)
    train.train(build(), STORE, tmp_path / "whole", config(), progress=False)
    same_files(tmp_path, tmp_path / "whole")


def test_what_a_kill_left_beside_the_checkpoint_is_swept(tmp_path):
    path = killed(tmp_path)
    path.with_name("state.pt.tmp-99").write_bytes(b"half")
    (tmp_path / "sae.tmp-99").mkdir()
    train.train(build(), STORE, tmp_path, config(), progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae", "timing.jsonl", "train.jsonl"]


def test_the_log_has_no_wall_time_and_timing_has(tmp_path):
    killed(tmp_path)
    train.train(build(), STORE, tmp_path, config(), progress=False)
    lines = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [(line["from"], line["to"]) for line in lines] == [(0, 4), (4, 8), (4, 12)]
    assert "seconds" not in (tmp_path / "train.jsonl").read_text()


def test_what_is_not_ours_stays_when_a_run_ends(tmp_path):
    path = killed(tmp_path)
    notes = path.with_name("notes.txt")
    notes.write_text("mine")
    train.train(build(), STORE, tmp_path, config(), progress=False)
    assert notes.read_text() == "mine" and [*path.parent.iterdir()] == [notes]
    notes.unlink()
    checkpoint.clear(tmp_path)
    assert not path.parent.exists()
