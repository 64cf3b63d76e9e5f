"""The order in which a store is read, and how much of it stays mapped."""

import json

import numpy as np
import pytest
from fake_world import D, FakeWorld, T, embed, make, one_sentence

from tsae.errors import CheckpointError
from tsae.store import ActivationStore, Sampler, shard


def test_one_pass_sees_every_sequence_once(tmp_path):
    store = make(tmp_path / "s")
    plain = [batch.doc_BT[:, 1].tolist() for batch in store.batches("train", 5)]
    assert plain == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    shuffled = [batch.doc_BT[:, 1].tolist() for batch in store.batches("train", 5, True, seed=3)]
    assert sum(shuffled, []) != sum(plain, []) and sorted(sum(shuffled, [])) == list(range(12))
    again = [batch.doc_BT[:, 1].tolist() for batch in store.batches("train", 5, True, seed=3)]
    assert again == shuffled


@pytest.mark.parametrize("batch_size", [1, 5, 12, 30])
def test_each_epoch_is_a_permutation(batch_size):
    sampler = Sampler(12, batch_size, seed=0, split="train")
    batches = [sampler.next_indices() for _ in range(-(-12 * 5 // batch_size))]
    assert {len(batch) for batch in batches} == {batch_size}
    epochs = np.concatenate(batches)[:60].reshape(5, 12)
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    other = Sampler(12, batch_size, seed=1, split="train").next_indices()
    assert batch_size == 1 or other.tolist() != batches[0].tolist()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
def test_restored_sampler_continues(steps):
    sampler = Sampler(12, 4, seed=5, split="train")
    for _ in range(steps):
        sampler.next_indices()
    state = json.loads(json.dumps(sampler.state_dict()))
    restored = Sampler(12, 4, seed=5, split="train")
    restored.load_state_dict(state)
    for _ in range(10):
        assert restored.next_indices().tolist() == sampler.next_indices().tolist()


def test_state_of_another_stream_is_refused():
    state = Sampler(12, 4, seed=5, split="train").state_dict()
    for other in (
        Sampler(13, 4, 5, "train"),
        Sampler(12, 4, 6, "train"),
        Sampler(12, 4, 5, "test"),
    ):
        with pytest.raises(CheckpointError, match="resume with its settings and store") as error:
            other.load_state_dict(state)
        one_sentence(error)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_every_batch(world_size):
    whole = Sampler(10, 6, seed=2, split="train")
    ranks = [Sampler(10, 6, 2, "train", rank, world_size) for rank in range(world_size)]
    for _ in range(9):
        batch = whole.next_indices()
        shares = [rank.next_indices() for rank in ranks]
        assert {len(share) for share in shares} == {6 // world_size}
        assert np.stack(shares, 1).flatten().tolist() == batch.tolist()
        assert all(rank.state_dict() == whole.state_dict() for rank in ranks)


def test_mapped_windows_stay_within_the_limit(tmp_path, monkeypatch):
    """Windows shrunk to 64 bytes: a limit of 24 windows, a store of 55, read in random order."""
    monkeypatch.setattr(shard, "WINDOW", 64)
    monkeypatch.setattr("tsae.store.reading.WINDOW", 64)
    world = FakeWorld(seq_len=4)
    limit = shard.least_mapped(T, D) * 2 / shard.MIB
    make(tmp_path / "s", world, train=25 * T, test=0)
    store = ActivationStore.open(tmp_path / "s", memory_limit_mb=limit)
    size = sum(s["bytes"] for s in store.manifest["shards"]["train"])
    assert size > 2 * limit * shard.MIB
    mapped = []
    sampler = store.sampler("train", 1, seed=0)
    for _ in range(100):
        index = sampler.next_indices()
        batch = store.batch("train", index)
        assert batch.doc_BT[0, 1] == index[0]
        assert batch.x_BTD[0, 1].tolist() == pytest.approx(
            (embed(batch.tokens_BT)[0, 1] * store.scale).tolist()
        )
        mapped.append(store.mapped_mb)
    assert max(mapped) <= limit and min(mapped[20:]) < limit / 2 < max(mapped)


def test_windows_of_a_row_cover_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "WINDOW", 64)
    store = make(tmp_path / "s")
    entry = store.manifest["shards"]["train"][0]
    opened = shard.Shard(tmp_path / "s", entry, store.manifest)
    # Row 2 of x is bytes 48..71: windows 0 and 1; tokens start at 128: bytes 160..175, window 2;
    # doc at 256: window 4; boundary at 384: 6; validity at 448: 7; labels at 512 + 32: 8.
    assert opened.windows(2) == {0, 1, 2, 4, 6, 7, 8}


def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tsae.store.reading.OPEN_SHARDS", 2)
    store = make(tmp_path / "s", shard_tokens=T)
    for index in (0, 7, 3, 11, 0):
        assert store.batch("train", [index]).doc_BT[0, 1] == index
        assert len(store._shards) <= 2
