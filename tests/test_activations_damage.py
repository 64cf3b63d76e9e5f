"""What a user or a disk can get wrong with a store, and the one sentence it gives."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from fake_world import (
    SPECS,
    D,
    FakeWorld,
    T,
    contents,
    embed,
    make,
    one_sentence,
    stops_after,
)

from tsae.errors import StoreError, UserError
from tsae.store import ActivationStore
from tsae.store.writing import HarvestConfig, harvest_with


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"layer": 2}, "layer 1, not 2"),
        ({"dtype": "bfloat16"}, "dtype 'float16', not 'bfloat16'"),
        ({"world": FakeWorld(name="other")}, "world 'fake', not 'other'"),
        ({"world": FakeWorld(fingerprint="0" * 64)}, "fingerprint 'ffff"),
        ({"world": FakeWorld(label_specs={"word": SPECS["word"]})}, "other labels"),
        ({"world": FakeWorld(shift=1), "train": 25 * T}, "train text of fake is not the one"),
    ],
)
def test_harvest_into_another_store(tmp_path, changes, what):
    make(tmp_path / "s")
    before = contents(tmp_path / "s")
    with pytest.raises(StoreError, match=what) as error:
        make(tmp_path / "s", **changes)
    assert "another directory" in one_sentence(error)
    assert contents(tmp_path / "s") == before


def test_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tmp-1").write_text("mine")
    for act in (make, ActivationStore.open):
        with pytest.raises(StoreError, match="not an activation store") as error:
            act(tmp_path)
        one_sentence(error)
    assert contents(tmp_path) == {"thesis.tmp-1": b"mine"}
    with pytest.raises(StoreError, match="is a file"):
        make(tmp_path / "thesis.tmp-1")


def test_second_harvest_waits_its_turn(tmp_path):
    messages = []

    def residual(tokens_BT):
        try:
            make(tmp_path / "s")
        except StoreError as error:
            messages.append(str(error))
        return embed(tokens_BT)

    make(tmp_path / "s", residual=residual)
    assert set(messages) == {
        f"Another harvest is writing to {tmp_path / 's'}: wait for its end, then run this again."
    }


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "verify", "what"),
    [
        (cut, "size", "has 703 bytes instead of 704: run the same harvest again"),
        (Path.unlink, "size", "is missing: run the same harvest again"),
        (flip, "checksum", "does not match its checksum: delete it and run the same harvest again"),
    ],
)
def test_damaged_shard_is_named_and_made_again(tmp_path, harm, verify, what):
    make(tmp_path / "s")
    before = contents(tmp_path / "s")
    ActivationStore.open(tmp_path / "s", verify=verify)
    path = tmp_path / "s" / "train-00001.bin"
    harm(path)
    with pytest.raises(StoreError, match=f"Shard train-00001.bin of .* {what}") as error:
        ActivationStore.open(tmp_path / "s", verify=verify)
    one_sentence(error)
    path.unlink(missing_ok=True)
    make(tmp_path / "s", residual=stops_after(3))  # that shard alone
    assert contents(tmp_path / "s") == before


def test_shard_cut_after_opening(tmp_path):
    store = make(tmp_path / "s")
    cut(tmp_path / "s" / "train-00001.bin")
    with pytest.raises(StoreError, match="train-00001.bin .* 703 bytes"):
        store.batch("train", [5])


def edit(**changes):
    def harm(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return harm


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (edit(format="other"), "not written by a harvest"),
        (edit(version=1), "store version 1, this code reads version 2"),
        (edit(scale=None), "damaged at scale"),
        (edit(layer="1", shards=None), "damaged at layer, shards"),
        (edit(d_model=4), "damaged at shard test-00000.bin"),
        (lambda path: os.truncate(path, 50), "store.json is cut short"),
        (Path.unlink, "has no store.json"),
    ],
)
def test_bad_manifest(tmp_path, harm, what):
    make(tmp_path / "s")
    harm(tmp_path / "s" / "store.json")
    with pytest.raises(StoreError, match=what) as error:
        ActivationStore.open(tmp_path / "s")
    one_sentence(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_residual_that_is_not_finite(tmp_path, value):
    def residual(tokens_BT):
        return embed(tokens_BT).masked_fill(tokens_BT[..., None] == 17, value)

    with pytest.raises(StoreError, match="layer 1 of fake is not finite .* train .* 5:") as error:
        make(tmp_path / "s", residual=residual)
    one_sentence(error)
    assert sorted(contents(tmp_path / "s")) == ["store.json", "train-00000.bin"]


@pytest.mark.parametrize(
    ("residual", "what"),
    [
        (lambda tokens_BT: embed(tokens_BT)[..., :2], r"shape \(2, 4, 2\) instead of \(2, 4, 3\)"),
        (lambda tokens_BT: torch.ones(*tokens_BT.shape, D), "do not vary"),
    ],
)
def test_residual_that_cannot_be(tmp_path, residual, what):
    with pytest.raises(StoreError, match=what) as error:
        make(tmp_path / "s", residual=residual)
    one_sentence(error)


def test_full_disk(tmp_path, monkeypatch):
    """The third fsync of the shards finds the disk full; what was finished stays."""
    make(tmp_path / "whole")
    fsync, calls = os.fsync, iter(range(4))

    def full(descriptor):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="full: free some space and run the same") as error:
        make(tmp_path / "s")
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert not [name for name in contents(tmp_path / "s") if ".tmp-" in name]
    make(tmp_path / "s")
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tokens": {"valid": 8}}, "tokens are for .'valid'"),
        ({"tokens": {"train": 0}}, "'train'. is 0; allowed are whole numbers from 1"),
        ({"tokens": {"test": 8}}, "needs train tokens"),
        ({"dtype": "float32"}, "dtype is 'float32'; allowed are .'float16', 'bfloat16'"),
        ({"shard_tokens": 3}, "shard_tokens is 3; allowed are whole numbers from 4"),
        ({"batch_sequences": 0}, "batch_sequences is 0; allowed"),
    ],
)
def test_bad_setting(tmp_path, changes, what):
    with pytest.raises(ValueError, match=what):
        harvest_with(
            embed, FakeWorld(), tmp_path, 1, HarvestConfig(**{"tokens": {"train": 8}, **changes})
        )


@pytest.mark.parametrize(
    ("act", "kind", "what"),
    [
        (lambda s: s.batch("train", [12]), IndexError, "sequence 12 of 'train': .* 0 … 11"),
        (lambda s: s.batch("train", [-1]), IndexError, "sequence -1"),
        (lambda s: s.n_sequences("valid"), ValueError, "split is 'valid'; allowed are"),
        (lambda s: s.batches("train", 0), ValueError, "batch_size is 0; allowed"),
        (lambda s: s.open(s.directory, verify="yes"), ValueError, "verify is 'yes'; allowed"),
        (lambda s: s.sampler("train", 3, 0, 0, 2), ValueError, "multiples of world_size = 2"),
        (lambda s: s.sampler("train", 4, 0, 2, 2), ValueError, "rank is 2; allowed"),
    ],
)
def test_bad_call(tmp_path, act, kind, what):
    store = make(tmp_path / "s")
    with pytest.raises(kind, match=what):
        act(store)
