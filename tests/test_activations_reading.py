"""The order in which a store is read."""

import json

import numpy as np
import pytest
from fake_world import make, one_sentence

from tsae.errors import CheckpointError
from tsae.store import Sampler


def test_one_pass_sees_every_sequence_once(tmp_path):
    store = make(tmp_path / "s")
    found = [batch.doc_BT[:, 1].tolist() for batch in store.batches("train", 5)]
    assert found == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


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
