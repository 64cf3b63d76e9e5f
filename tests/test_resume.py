"""Kill + resume equals one run, bit for bit; and what a checkpoint refuses."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_store import FakeStore, on_disk
from test_schedule import phased
from test_train import build, checkpoint_step, config

from tsae import saes
from tsae.store import ActivationStore, Sampler
from tsae.training import train

STORE = FakeStore(n_train=22)  # 4 sequences a step: epochs end inside a batch


class Noisy(saes.SAE):
    """Draws from all three generators in its loss."""

    def own_terms(self, *_):
        draw = random.random() + np.random.rand() + torch.rand(())
        return {"noise": draw * self.W_enc.square().mean()}


def noisy():
    torch.manual_seed(0)
    sae = Noisy(saes.SAEConfig(d_in=16, d_sae=32, k=4))
    sae.name = "topk"
    return sae


MAKE = {name: lambda name=name: build(name, dead_after=150) for name in saes.names()}
MAKE["three phases"] = phased  # borders after steps 3 and 6
MAKE["noisy"] = noisy


class Killed(Exception):
    """Stands for the kill: nothing in the trainer catches it."""


class MortalStore(FakeStore):
    """Raises when the training batch of step ``dies`` (from 1) is asked for."""

    def __init__(self, dies):
        super().__init__(n_train=22)
        self.left = dies

    def sampler(self, split, batch_size, seed, *ranks):
        sampler = super().sampler(split, batch_size, seed, *ranks)
        if seed == 0:
            draw = sampler.next_indices

            def next_indices():
                self.left -= 1
                if self.left < 0:
                    raise Killed
                return draw()

            sampler.next_indices = next_indices
        return sampler


def same_files(one: Path, other: Path):
    """The logs and the saved SAEs are the same bytes."""
    for name in ("train.jsonl", "sae/sae.safetensors", "sae/cfg.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Directory of the uninterrupted run of each kind, made once."""
    made = {}

    def run(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("whole")
            train.train(MAKE[kind](), STORE, made[kind], config(), progress=False)
        return made[kind]

    return run


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("step", [2, 4, 7, 11])
def test_killed_and_resumed_equals_one_run(kind, step, whole, tmp_path):
    with pytest.raises(Killed):
        train.train(MAKE[kind](), MortalStore(step), tmp_path, config(), progress=False)
    assert not (tmp_path / "sae").exists()
    torch.manual_seed(1234)  # what another process would bring along
    train.train(MAKE[kind](), STORE, tmp_path, config(), progress=False)
    same_files(tmp_path, whole(kind))
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 7])
def test_killed_at_each_phase_border(step, whole, tmp_path):
    asked = config(checkpoint_every=1)  # not part of a run's identity: it changes no result
    with pytest.raises(Killed):
        train.train(phased(), MortalStore(step), tmp_path, asked, progress=False)
    assert checkpoint_step(tmp_path) == step
    train.train(phased(), STORE, tmp_path, asked, progress=False)
    same_files(tmp_path, whole("three phases"))


def test_killed_again_and_again(whole, tmp_path):
    deaths = 0
    for _ in range(20):
        try:
            asked = config(checkpoint_every=2)
            train.train(build("l1", dead_after=150), MortalStore(3), tmp_path, asked, False)
            break
        except Killed:
            deaths += 1
    assert deaths == 5  # every life does 3 steps and keeps 2; the sixth does the last 2
    same_files(tmp_path, whole("l1"))


def test_killed_between_the_last_checkpoint_and_the_saved_sae(whole, tmp_path, monkeypatch):
    def dies(self, directory):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(saes.SAE, "save", dies)
        with pytest.raises(Killed):
            train.train(build("topk", dead_after=150), STORE, tmp_path, config(), progress=False)
    assert checkpoint_step(tmp_path) == 12
    result = train.train(build("topk", dead_after=150), STORE, tmp_path, config(), progress=False)
    assert result.last["step"] == 12
    same_files(tmp_path, whole("topk"))


@pytest.mark.parametrize("name", ["l1", "batchtopk"])
def test_killed_and_resumed_on_a_store_on_disk(name, tmp_path):
    store = on_disk(STORE, tmp_path / "store")
    batch, same = store.batch("test", [1, 2]), STORE.batch("test", [1, 2])
    torch.testing.assert_close(batch.x_BTD, same.x_BTD, rtol=1e-3, atol=5e-3)  # float16 on disk
    assert torch.equal(batch.context.mask_BT, same.context.mask_BT)
    train.train(build(name), store, tmp_path / "whole", config(), progress=False)
    draw = Sampler.next_indices
    for step in (3, 6, 9):

        def next_indices(sampler, end=4 * step):
            if sampler.seed == 0 and 22 * sampler.epoch + sampler.position >= end:
                raise Killed
            return draw(sampler)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Sampler, "next_indices", next_indices)
            train.train(build(name), store, tmp_path / "torn", config(), progress=False)
        store = ActivationStore.open(tmp_path / "store", verify="checksum")
    assert checkpoint_step(tmp_path / "torn") == 8
    train.train(build(name), store, tmp_path / "torn", config(), progress=False)
    same_files(tmp_path / "torn", tmp_path / "whole")


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from fake_store import FakeStore
from test_train import build, config
from tsae.training import train
train.train(build("batchtopk"), FakeStore(n_train=22), Path(sys.argv[1]),
            config(steps=int(sys.argv[2]), checkpoint_every=3), progress=False)
"""


def test_sigkill_of_the_process(tmp_path):
    """A true kill -9 in mid-run, wherever it falls, then the same command again."""
    steps = 300
    torn, whole = tmp_path / "torn", tmp_path / "whole"
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(torn), str(steps)]
    where = {"cwd": Path(__file__).parent, "env": environment}
    first = subprocess.Popen(command, **where)
    patience = time.monotonic() + 60
    log = torn / "train.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") >= 20):
        assert first.poll() is None and time.monotonic() < patience
        time.sleep(0.002)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not (torn / "sae").exists() and 18 <= checkpoint_step(torn) < steps
    assert subprocess.run(command, **where).returncode == 0
    train.train(
        build("batchtopk"), STORE, whole, config(steps=steps, checkpoint_every=3), progress=False
    )
    same_files(torn, whole)
