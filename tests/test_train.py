"""The trainer: the laws of a step, logs, and its error lines."""

import json
import random

import numpy as np
import pytest
import torch
from fake_store import FakeStore

from tsae import saes
from tsae.errors import CheckpointError, UserError
from tsae.saes import SequenceContext
from tsae.store import Batch
from tsae.training import checkpoint, train
from tsae.training.train import TrainConfig

torch.set_num_threads(1)
STORE = FakeStore()
TINY = {"steps": 12, "batch_tokens": 64, "lr": 1e-2, "warmup_steps": 2, "eval_sequences": 4}
EVERY = {"log_every": 1, "eval_every": 5, "checkpoint_every": 4, "resample_every": 4}


def build(name="topk", seed=0, **options):
    torch.manual_seed(seed)
    if name == "stacked":  # its places share k
        options = {"window": 3, **options}
    return saes.build(name, d_in=16, d_sae=32, k=4, **options)


def build_without_drawing():
    with torch.random.fork_rng():
        return build("l1")


def config(**changes):
    return TrainConfig(**{**TINY, **EVERY, **changes})


def rows(directory):
    return [json.loads(line) for line in (directory / "train.jsonl").read_text().splitlines()]


def optimizer_of(sae):
    return torch.optim.AdamW(sae.parameters(), lr=1e-2, weight_decay=0.0, fused=True)


# ---- laws of a step --------------------------------------------------------------------------


@pytest.mark.parametrize("name", saes.names())
def test_decoder_rows_keep_unit_norm_and_gradients_are_tangent(name):
    sae, asked = build(name), config()
    optimizer = optimizer_of(sae)
    batch = STORE.batch("train", range(4))
    sae.train().initialise(STORE.mean_D)
    for step in range(5):
        sae.start_step(step, 5)
        before = sae.W_dec.detach().clone()
        train.training_step(sae, batch, optimizer, asked)
        radial = (sae.W_dec.grad * before).sum(1)
        torch.testing.assert_close(radial, torch.zeros(32), rtol=0, atol=1e-6)
        assert sae.W_dec.grad.norm() > 1e-3
        norms = sae.W_dec.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(32), rtol=0, atol=1e-6)
    optimizer.zero_grad()
    sae.loss(batch.x_BTD, batch.context)["total"].backward()
    radial = (sae.W_dec.grad * sae.W_dec).sum(1)
    assert radial.abs().max() > 1e-4  # unprojected, the law does not hold by itself


def test_clipping_scales_the_whole_gradient_to_the_bound():
    batch = STORE.batch("train", range(4))
    grads = {}
    for bound in (1e9, 1e-3):
        sae = build("topk")
        _, norm = train.training_step(
            sae, batch, optimizer_of(sae), config(grad_clip=16 * bound)
        )  # d = 16
        grads[bound] = (torch.cat([p.grad.flatten() for p in sae.parameters()]), float(norm))
    (whole, norm), (clipped, norm_again) = grads[1e9], grads[1e-3]
    assert norm == norm_again == pytest.approx(float(whole.norm()), rel=1e-5)
    assert float(clipped.norm()) == pytest.approx(1e-3, rel=1e-2)
    torch.testing.assert_close(clipped, whole * 1e-3 / (norm + 1e-6), rtol=1e-4, atol=1e-9)


def test_one_adam_step_by_hand():
    """Adam's first step moves every weight by lr * sign(gradient), whatever the gradient's size."""
    sae = build("topk")
    before = sae.b_dec.detach().clone()
    train.training_step(sae, STORE.batch("train", range(4)), optimizer_of(sae), config())
    torch.testing.assert_close(
        sae.b_dec.detach() - before, -1e-2 * sae.b_dec.grad.sign(), rtol=1e-3, atol=1e-6
    )


# ---- what a run writes -----------------------------------------------------------------------


@pytest.mark.parametrize("name", saes.names())
def test_training_learns_logs_and_saves(name, tmp_path):
    sae = build(name)
    result = train.train(sae, STORE, tmp_path, config(steps=60), progress=False, meta={"note": 1})
    log = rows(tmp_path)
    assert [row["step"] for row in log] == list(range(1, 61))
    assert [row["step"] for row in log if "test_fve" in row] == list(range(5, 61, 5))
    assert log[-1] == result.last
    assert log[-1]["tokens"] == 60 * 64
    assert log[-1]["test_fve"] > max(log[4]["test_fve"], 0.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae", "timing.jsonl", "train.jsonl"]

    saved = saes.load(tmp_path / "sae")
    for key, value in result.sae.state_dict().items():
        assert torch.equal(saved.state_dict()[key], value), key
    assert not result.sae.training
    assert saved.meta["world"] == "fake" and saved.meta["layer"] == 1 and saved.meta["note"] == 1
    assert saved.meta["run"]["train.lr"] == 1e-2

    # The same run again trains nothing and gives the same weights, even from another start.
    written = (tmp_path / "train.jsonl").read_bytes()
    again = train.train(build(name, seed=9), STORE, tmp_path, config(steps=60), progress=False)
    assert torch.equal(again.sae.W_dec, result.sae.W_dec) and again.last == result.last
    assert (tmp_path / "train.jsonl").read_bytes() == written


@pytest.mark.parametrize("name", ["topk", "conv", "glta"])
def test_positions_beyond_the_share_are_never_seen(name, tmp_path):
    """Half of 16 positions: what stands at 8 and later changes nothing, and 8 sequences make a
    step of 64 tokens."""
    store, other = FakeStore(), FakeStore()
    other.x[:, 8:] += torch.randn(other.x[:, 8:].shape)
    runs = [
        train.train(build(name), s, tmp_path / str(i), config(positions=0.5), progress=False)
        for i, s in enumerate((store, other))
    ]
    for a, b in zip(*(r.sae.state_dict().values() for r in runs), strict=True):
        assert torch.equal(a, b)
    assert rows(tmp_path / "0")[0]["tokens"] == 64


def test_the_decoder_bias_starts_at_the_mean(tmp_path):
    sae = train.train(build(), STORE, tmp_path, config(lr=1e-12), progress=False).sae
    torch.testing.assert_close(sae.b_dec.detach(), STORE.mean_D)
    assert STORE.mean_D.norm() > 1


def test_held_out_fve_and_l0_by_hand():
    """Errors 0 and (0, 1) around deviations (1, 0) and (0, 1) leave half of the variance."""

    class Half(saes.SAE):
        def forward(self, x_BTD, context=None):
            return saes.SAEOutput(
                x_BTD * torch.tensor([1.0, 0.0]), torch.eye(2)[None] * 3, None, {}
            )

    sae = Half(saes.SAEConfig(d_in=2, d_sae=2, k=1))
    x_BTD = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    batch = Batch(x_BTD, None, None, SequenceContext().filled(x_BTD), {})
    assert train.held_out(sae, batch, torch.zeros(2)) == {"test_fve": 0.5, "test_l0": 1.0}


def test_training_leaves_the_callers_generators_alone(tmp_path):
    states = checkpoint.rng_state()
    expected = (random.random(), np.random.rand(), float(torch.rand(1)))
    checkpoint.set_rng_state(states)
    train.train(build_without_drawing(), STORE, tmp_path, config(), progress=False)
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == expected


# ---- error lines -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("steps", 0, "a whole number of at least 1"),
        ("steps", 2.5, "a whole number of at least 1"),
        ("log_every", True, "a whole number of at least 1"),
        ("eval_every", -1, "a whole number of at least 0"),
        ("lr", float("nan"), "above 0 and finite"),
        ("grad_clip", 0.0, "above 0 and finite"),
        ("weight_decay", -0.1, "at least 0"),
        ("betas", (0.9, 1.0), r"two numbers in \[0, 1\)"),
        ("decay_share", 1.5, r"in \[0, 1\]"),
        ("warmup_steps", 13, "at most steps=12"),
        ("device", "gpu", "cpu, cuda or cuda:N"),
    ],
)
def test_a_bad_value_names_field_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError, match=rf"^{field}=.*must be {allowed}\.$"):
        config(**{field: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="torch sees no GPU here: use device='cpu'"):
        train.train(build(), STORE, tmp_path, config(device="cuda"), progress=False)


@pytest.mark.parametrize(
    ("sae_options", "store_options", "asked", "sentence"),
    [
        ({"d_in": 8}, {}, {}, "reads d_in=8, the store holds d_model=16"),
        ({}, {}, {"batch_tokens": 8}, "makes 0 sequences of 16 tokens"),
        ({}, {"n_train": 3}, {}, "makes 4 sequences of 16 tokens a batch, and the store has 3"),
        ({}, {"n_test": 0}, {}, "has no test sequences: harvest some, or set eval_every=0"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, sae_options, store_options, asked, sentence):
    sae = saes.build("topk", **{"d_in": 16, "d_sae": 32, "k": 4, **sae_options})
    with pytest.raises(UserError, match=sentence):
        train.train(sae, FakeStore(**store_options), tmp_path, config(**asked), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_sae_of_another_world_is_refused(tmp_path):
    sae = build()
    sae.meta = {"world": "elsewhere", "fingerprint": "e" * 64}
    with pytest.raises(CheckpointError, match="comes from world 'elsewhere'.*store from 'fake'"):
        train.train(sae, STORE, tmp_path, config(), progress=False)


def test_a_loss_that_is_not_finite_names_step_and_term_and_keeps_the_checkpoint(tmp_path):
    store = FakeStore()
    first = store.sampler("train", 4, 0)
    steps = [first.next_indices() for _ in range(6)]
    store.x[int(steps[5][0]), 3, 2] = float("nan")
    sentence = r"stopped at step 6: term 'mse' of the loss is nan; lower lr \(now .*\) or check"
    with pytest.raises(UserError, match=sentence):
        train.train(build(), store, tmp_path, config(), progress=False)
    assert checkpoint_step(tmp_path) == 4
    assert not (tmp_path / "sae").exists()


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move():
    sae = build()
    sae.W_enc.register_hook(lambda grad: grad * float("inf"))
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    with pytest.raises(FloatingPointError, match="term 'gradient' of the loss is"):
        train.training_step(sae, STORE.batch("train", range(4)), optimizer_of(sae), config())
    for name, parameter in sae.named_parameters():
        assert torch.equal(parameter, before[name]), name


def checkpoint_step(directory):
    path = directory / "checkpoint" / "state.pt"
    return torch.load(path, weights_only=True)["progress"][0]
