"""What a store holds: layout, normalisation, massive activations, splits."""

import hashlib

import numpy as np
import pytest
import torch
from fake_world import CONFIG, SPECS, D, FakeWorld, T, contents, embed, make, one_sentence

from tsae import models
from tsae.errors import StoreError, WorldError
from tsae.sequences import Sequence
from tsae.store import harvest, layout


def test_everything_comes_back_in_order(tmp_path):
    store = make(tmp_path / "s")
    assert (store.world, store.fingerprint, store.layer) == ("fake", "f" * 64, 1)
    assert (store.seq_len, store.d_model, store.label_specs) == (T, D, SPECS)
    assert store.n_sequences("train") == 12 and store.n_tokens("test") == 28
    expected = list(FakeWorld().sequences("test"))
    picked = [6, 0, 5]
    batch = store.batch("test", picked)
    for b, i in enumerate(picked):
        sequence = expected[i]
        assert batch.tokens_BT[b].tolist() == sequence.tokens.tolist()
        assert batch.doc_BT[b].tolist() == sequence.doc.tolist()
        assert batch.context.boundary_BT[b].tolist() == [3, 3, 0, 1]
        assert batch.context.mask_BT[b].tolist() == [False, True, True, True]
        for name, label_T in sequence.labels.items():
            assert batch.labels[name][b].tolist() == label_T.tolist()
    raw_BTD = batch.x_BTD / store.scale
    torch.testing.assert_close(raw_BTD, embed(batch.tokens_BT), rtol=1e-6, atol=1e-6)
    kinds = [batch.x_BTD.dtype, batch.tokens_BT.dtype, batch.context.boundary_BT.dtype]
    assert kinds == [torch.float32, torch.int64, torch.uint8]
    assert batch.to("meta").context.mask_BT.device.type == "meta"


def test_shards_are_what_the_layout_says(tmp_path):
    store = make(tmp_path / "s")
    shards = store.manifest["shards"]
    assert [s["sequences"] for s in shards["train"]] == [5, 5, 2]
    assert [s["sequences"] for s in shards["test"]] == [5, 2]
    # 5 sequences of 4 tokens, d = 3: x 120 bytes, tokens 80, doc 80, boundary 20, validity 20,
    # labels 80, statistics 40, each padded to 64.
    assert shards["train"][0]["bytes"] == 128 + 128 + 128 + 64 + 64 + 128 + 64
    for entry in [*shards["train"], *shards["test"]]:
        data = (tmp_path / "s" / entry["file"]).read_bytes()
        assert len(data) == entry["bytes"]
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    raw = np.frombuffer((tmp_path / "s" / "train-00001.bin").read_bytes()[:24], np.float16)
    # Sequence 5: BOS, then token 16 = (2, 1, 1), ...
    assert raw[:6].tolist() == [30000, 0, 0, 2, 1, 1]


def table(values):
    """A world of one sequence and a model that gives ``values`` [4, 3] in it; BOS is 99."""

    class World(FakeWorld):
        def sequences(self, split, limit_tokens=None):
            yield Sequence(
                np.arange(5, dtype=np.int32),
                np.array([-1, 0, 0, 0, 0], np.int32),
                np.zeros(5, np.uint8),
                {name: np.zeros(5, np.int16) for name in SPECS},
            )

    x_TD = torch.tensor([[99.0] * 3, *values])
    return World(seq_len=5), lambda tokens_BT: x_TD[tokens_BT]


def test_normalisation_by_hand(tmp_path):
    # Valid tokens (1,1,1), (3,1,1), (1,3,1), (3,3,1): mean (2,2,1), squared distance 1 + 1 each, so
    # E|x - mean|^2 = 2, scale = sqrt(3 / 2), and the mean in normalised units is sqrt(1.5) (2,2,1).
    world, residual = table([[1.0, 1, 1], [3, 1, 1], [1, 3, 1], [3, 3, 1]])
    store = make(tmp_path / "s", world, residual, train=5, test=0)
    assert store.scale == pytest.approx(1.5**0.5, rel=1e-12)
    torch.testing.assert_close(store.mean_D, 1.5**0.5 * torch.tensor([2.0, 2, 1]))
    x_TD = store.batch("train", [0]).x_BTD[0, 1:]
    assert (x_TD - store.mean_D).square().sum(-1).mean().item() == pytest.approx(3, rel=1e-6)
    # Norms: sqrt 3, sqrt 11, sqrt 11, sqrt 19; BOS at 171 is left out of the median.
    assert store.median_norm == pytest.approx(11**0.5, rel=1e-6)
    assert store.massive_share == 0


def test_massive_tokens_are_masked_and_left_out(tmp_path):
    # Median norm of (1, 1, 1, 10.5) is 1: the last is massive, 10 times the median would not be.
    world, residual = table([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 10.5, 0]])
    store = make(tmp_path / "s", world, residual, train=5, test=0)
    assert store.batch("train", [0]).context.mask_BT.tolist() == [[False, True, True, True, False]]
    assert store.massive_share == 1 / 4
    # Over the unit vectors: mean 1/3 each, E|x|^2 = 1, variance 1 - 1/3 = 2/3, scale^2 = 3 / (2/3).
    assert store.scale == pytest.approx(4.5**0.5, rel=1e-12)
    world, residual = table([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 10, 0]])
    store = make(tmp_path / "at", world, residual, train=5, test=0)
    assert store.massive_share == 0


def test_median_is_that_of_the_text(tmp_path):
    # Norms 1, 1, 3, 3; with BOS, at 171, the median would be 3.
    world, residual = table([[1.0, 0, 0], [0, 1, 0], [0, 0, 3], [0, 3, 0]])
    assert make(tmp_path / "s", world, residual, train=5, test=0).median_norm == 2


def test_normalisation_over_many_shards_is_that_of_all_tokens(tmp_path):
    store = make(tmp_path / "s", train=40 * T)
    tokens = torch.arange(1, 121)
    x_ND = embed(tokens[None])[0].double()
    variance = (x_ND - x_ND.mean(0)).square().sum(-1).mean()
    assert store.scale == pytest.approx((D / variance.item()) ** 0.5, rel=1e-9)
    torch.testing.assert_close(store.mean_D, (x_ND.mean(0) * store.scale).float())
    parts = [batch.x_BTD[batch.context.mask_BT] for batch in store.batches("train", 7)]
    assert (torch.cat(parts) - store.mean_D).square().sum(-1).mean().item() == pytest.approx(D)


def test_bfloat16_keeps_what_float16_cannot(tmp_path):
    def large(tokens_BT):
        return 65536.0 * embed(tokens_BT)

    with pytest.raises(StoreError, match="beyond float16.*bfloat16") as error:
        make(tmp_path / "h", residual=large, dtype="float16")
    one_sentence(error)
    store = make(tmp_path / "h", residual=large, dtype="bfloat16")  # nothing was in it yet
    x_BTD = store.batch("train", [3]).x_BTD / store.scale
    torch.testing.assert_close(x_BTD, large(torch.tensor([[0, 10, 11, 12]])), rtol=4e-3, atol=0)


def test_dtype_is_chosen_by_what_was_seen(tmp_path, capsys):
    def late(tokens_BT):
        """Fits float16 in the first two shards of train, not in the third."""
        x_BTD = embed(tokens_BT)
        return x_BTD * (1 + 65536.0 * (tokens_BT >= 31)[..., None] * (tokens_BT < 1000)[..., None])

    store = make(tmp_path / "s", residual=late)
    line = (
        "The residual at layer 1 of fake reaches 3.932e+05, beyond float16: stored as bfloat16.\n"
    )
    assert capsys.readouterr().err == line
    assert store.manifest["dtype"] == "bfloat16"
    asked = make(tmp_path / "asked", residual=late, dtype="bfloat16")
    assert contents(tmp_path / "s") == contents(tmp_path / "asked")
    assert asked.n_sequences("train") == 12
    again = make(tmp_path / "s", residual=None)  # all is there, in whichever format
    assert again.manifest == store.manifest and capsys.readouterr().err == ""
    # A store that was finished in float16 goes the same way when more tokens do not fit.
    assert make(tmp_path / "grown", train=10 * T, residual=late).manifest["dtype"] == "float16"
    grown = make(tmp_path / "grown", train=12 * T, test=0, residual=late)
    assert contents(tmp_path / "grown") == contents(tmp_path / "s")
    assert grown.n_sequences("test") == 7
    assert make(tmp_path / "half").manifest["dtype"] == "float16"


def test_world_without_labels(tmp_path):
    store = make(tmp_path / "s", FakeWorld(label_specs={}))
    assert store.label_specs == {} and store.batch("train", [0]).labels == {}


def test_harvest_reads_the_layer_of_the_model(tmp_path, monkeypatch):
    seen = []

    def residual(model, tokens_BT, layer):
        seen.append((model, layer))
        return embed(tokens_BT)

    monkeypatch.setattr(models, "residual", residual)
    world = FakeWorld(model=lambda device: f"model on {device}")
    options = dict(tokens={"train": 6 * T}, progress=False, **CONFIG)
    store = harvest(world, tmp_path / "s", layer=2, **options)
    assert set(seen) == {("model on cpu", 2)} and store.layer == 2
    assert store.manifest["hook"] == "blocks.2.hook_out"
    with pytest.raises(WorldError, match="layers 0..2"):
        harvest(world, tmp_path / "t", layer=99, **options)
    finished = harvest(FakeWorld(), tmp_path / "s", layer=2, **options)  # needs no model
    assert finished.manifest == store.manifest


def test_splits_share_no_document(tmp_path):
    store = make(tmp_path / "s")
    train, test = ({*store.batch(s, range(7)).doc_BT.flatten().tolist()} for s in ("train", "test"))
    assert train & test == {-1}


def test_sections_are_aligned_and_do_not_overlap():
    manifest = {"seq_len": 5, "d_model": 7, "labels": [{}] * 3}
    found = layout.sections(3, manifest)
    ends = [0]
    for offset, kind, shape in found.values():
        assert offset % 64 == 0 and 0 <= offset - ends[-1] < 64
        ends.append(offset + int(np.prod(shape)) * kind.itemsize)
    assert layout.shard_bytes(3, manifest) == found["end"][0] == ends[-1]
