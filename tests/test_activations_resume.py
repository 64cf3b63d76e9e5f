"""A stopped and continued harvest ends with the same bytes; one for more tokens appends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_world import FakeWorld, Stop, T, contents, embed, make, one_sentence, stops_after

from tsae.errors import StoreError
from tsae.store import ActivationStore


@pytest.mark.parametrize("calls", range(1, 11))
def test_resume_gives_the_same_bytes(tmp_path, calls):
    """Batches of 2 in shards of 5, 5, 2 and 5, 2: eleven calls; a stop at any but the first."""
    make(tmp_path / "whole")
    with pytest.raises(Stop):
        make(tmp_path / "s", residual=stops_after(calls))
    with pytest.raises(StoreError, match="run the same harvest again") as error:
        ActivationStore.open(tmp_path / "s")
    one_sentence(error)
    finished = max(n for n in (0, 3, 6, 7, 10) if n <= calls)
    make(tmp_path / "s", residual=stops_after(11 - finished))  # and no call is made twice
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["store.json", "train-00001.bin", "test-00001.bin"])
def test_stop_between_a_shard_and_the_manifest(tmp_path, monkeypatch, name):
    make(tmp_path / "whole")
    replace, seen = os.replace, []

    def fails_after(source, target):
        seen.append(Path(target).name)
        if seen.count(name) == 1 and seen[-1] != name:
            raise Stop
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_after)
    with pytest.raises(Stop):
        make(tmp_path / "s")
    monkeypatch.undo()
    make(tmp_path / "s")
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def die(directory, calls):
    """Run in a process of its own: kill it, without warning, inside call ``calls`` of the model."""
    counter = iter(range(calls))

    def residual(tokens_BT):
        if next(counter, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(tokens_BT)

    make(Path(directory), residual=residual)


def test_killed_process_resumes(tmp_path):
    make(tmp_path / "whole")
    code = f"import test_activations_resume as t; t.die({str(tmp_path / 's')!r}, 5)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent)
    assert ended.returncode == -signal.SIGKILL
    assert any(".tmp-" in path.name for path in (tmp_path / "s").iterdir())
    make(tmp_path / "s")
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_append_keeps_what_is_there(tmp_path):
    make(tmp_path / "whole", train=25 * T, test=10 * T)
    make(tmp_path / "s", train=10 * T, test=0)
    before = contents(tmp_path / "s")
    make(tmp_path / "s", train=10 * T, test=10 * T)
    store = make(tmp_path / "s", train=25 * T, test=0, residual=stops_after(9))
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    assert all(contents(tmp_path / "s")[name] == before[name] for name in before if "bin" in name)
    assert (store.n_sequences("train"), store.n_sequences("test")) == (25, 10)
    less = make(tmp_path / "s", train=T, test=0)
    assert less.n_sequences("train") == 25
    # A last shard that is not full stays so, and the new ones follow it.
    make(tmp_path / "odd", train=7 * T)
    odd = make(tmp_path / "odd", train=25 * T)
    assert [s["sequences"] for s in odd.manifest["shards"]["train"]] == [5, 2, 5, 5, 5, 3]
    every = range(25)
    assert odd.batch("train", every).tokens_BT.equal(store.batch("train", every).tokens_BT)


def test_old_store_stays_readable_until_a_new_shard_is_there(tmp_path):
    make(tmp_path / "s")
    with pytest.raises(Stop):
        make(tmp_path / "s", train=30 * T, residual=stops_after(1))
    assert ActivationStore.open(tmp_path / "s").n_sequences("train") == 12


@pytest.mark.parametrize("n", [7, 10])
def test_a_text_that_ends_too_soon_is_used_as_far_as_it_goes(tmp_path, capsys, n):
    world = FakeWorld(n=n)
    with pytest.raises(Stop):
        make(tmp_path / "s", world, test=0, residual=stops_after(3))
    assert capsys.readouterr().err == ""
    store = make(tmp_path / "s", world, test=0)
    assert capsys.readouterr().err == (
        f"The train text of fake ends after {n * T} of the 48 tokens asked for: "
        "it is used as far as it goes.\n"
    )
    assert store.n_sequences("train") == n
    assert store.mean_D.equal(make(tmp_path / "less", world, train=n * T, test=0).mean_D)
    for asked in (12, 20):  # nothing is left to do, and nothing is read again to find that out
        again = make(tmp_path / "s", world, train=asked * T, test=0, residual=None)
        assert again.manifest == store.manifest and capsys.readouterr().err == ""
