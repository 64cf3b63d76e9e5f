"""The world in which order matters: its law, its balance, and what single tokens can tell."""

import numpy as np
import pytest
import torch

from lab import worlds
from lab.worlds.order import OrderConfig
from tsae.errors import WorldError
from tsae.sequences import SPLITS
from tsae.store import harvest

SMALL = {"n_train_docs": 240, "n_test_docs": 120, "seq_len": 64}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.build("order", tmp_path_factory.mktemp("order") / "w", **SMALL)


@pytest.fixture(scope="module")
def documents(world):
    return {split: list(world.documents(split)) for split in SPLITS}


def test_positions_go_round_by_the_hidden_step(world, documents):
    for document in documents["train"]:
        p, v = document.labels["position"], document.labels["v"][0] + 1
        assert ((p[1:] - p[:-1]) % 7 == v).all() and 24 <= len(p) <= 72
        assert set((p[2:].astype(int) - p[:-2]) % 7) == {2 * v % 7}
        assert world.to_strings(document.tokens) == [str(i) for i in p]
        assert document.boundary.tolist() == [3] + [0] * (len(p) - 1)
        for name in ("v", "topic"):
            assert len(set(document.labels[name].tolist())) == 1


def test_documents_are_balanced_and_in_one_split(documents):
    every = [d for split in SPLITS for d in documents[split]]
    assert [d.id for d in every] == list(range(480))
    assert len({d.tokens.tobytes() for d in every}) == 480
    for split, n in (("train", 40), ("validation", 20), ("test", 20)):
        found = np.bincount([d.labels["v"][0] for d in documents[split]])
        assert found.tolist() == [n] * 6
        pairs = {(d.labels["v"][0], d.labels["topic"][0]) for d in documents[split]}
        assert len(pairs) == 6 * 4


def test_activations_are_the_sum_that_the_world_says(world):
    plain = type(world)(world.directory, OrderConfig(**SMALL | {"noise": 0.0}))
    tokens_BT = torch.tensor([[0, *next(plain.documents("test")).tokens]])
    x_TD = plain.activations(tokens_BT)[0]
    assert x_TD[0].eq(0).all()
    labels = next(plain.documents("test")).labels
    # Tokens of one position, distractor and topic are equal; a difference of two that share all but
    # the position is a difference of unit vectors, the same wherever it occurs.
    key = np.stack([labels[name] for name in ("position", "distractor", "topic")], 1)
    for a in range(len(key)):
        for b in range(a):
            same = bool((key[a] == key[b]).all())
            assert torch.allclose(x_TD[1 + a], x_TD[1 + b], atol=1e-5) == same
    _, _, a_MD, rest_RD = plain._tables
    torch.testing.assert_close(a_MD.norm(dim=1), torch.ones(7))
    at = int(tokens_BT[0, 5]) - 1
    torch.testing.assert_close(x_TD[5], a_MD[at % 7] + rest_RD[at // 7])
    noise = world._tables[3] - rest_RD
    assert noise.std().item() == pytest.approx(0.05, rel=0.01)


def test_no_average_of_the_past_tells_the_step_and_the_topic_shows(world, documents):
    """Σ_l w_l x[t − l] has one mean for every v (its law), while topics differ in the mean."""
    sums = {name: {} for name in ("v", "topic")}
    for document in documents["train"] + documents["test"]:
        x_TD = world.activations(torch.from_numpy(document.tokens).long()[None])[0]
        n = len(x_TD) // 7 * 7  # whole rounds, so that the law is exact but for noise
        for name in sums:
            sums[name].setdefault(int(document.labels[name][0]), []).append(x_TD[:n].mean(0))
    spread = {
        name: torch.stack([torch.stack(rows).mean(0) for rows in by.values()]).var(0).sum().item()
        for name, by in sums.items()
    }
    assert spread["v"] < 0.02 * spread["topic"]


def test_a_store_needs_no_language_model(world, tmp_path):
    tokens = {"train": 4096, "validation": 1024, "test": 1024}
    store = harvest(world, tmp_path / "s", layer=0, tokens=tokens, progress=False)
    batch = store.batch("validation", [0, 3])
    raw_BTD = world.activations(batch.tokens_BT)
    torch.testing.assert_close(batch.x_BTD / store.scale, raw_BTD, rtol=1e-3, atol=1e-3)
    assert store.massive_share == 0 and not batch.context.mask_BT[:, 0].any()
    with pytest.raises(WorldError, match="no language model; measure there only"):
        world.model()
    assert worlds.load(world.directory).fingerprint == world.fingerprint == store.fingerprint


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"modulus": 9}, "modulus is 9; allowed is a prime"),
        ({"noise": -1}, "noise is -1; allowed is a number from 0"),
        ({"n_topics": 0}, "n_topics is 0; allowed is a whole number from 1"),
        ({"steps": 3}, "steps is not an option of order; allowed are modulus, d_model"),
    ],
)
def test_bad_options_are_named(tmp_path, options, line):
    with pytest.raises(ValueError, match=line):
        worlds.build("order", tmp_path / "w", **options)


def test_another_world_in_the_directory_is_refused(world):
    with pytest.raises(
        WorldError, match=r"holds another world \(order of .*\); give another directory"
    ):
        worlds.build("order", world.directory, seed=1, **SMALL)


def test_worlds_are_found_by_their_line():
    assert {"gpt2", "gemma-2-2b", "local", "microworld", "order", "smollm2"} <= set(worlds.names())
