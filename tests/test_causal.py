"""The causal variant once its C is filled: definition, laws, training, resume."""

import json

import pytest
import torch
from fake_store import FakeStore
from test_resume import Killed, MortalStore, same_files
from test_saes import ACTS, check_laws, text
from test_train import config

from tsae import saes
from tsae.saes import SequenceContext
from tsae.saes.encoding import Tokens
from tsae.training import train

STORE = FakeStore(n_train=22)


def filled(act="topk", **options):
    """An SAE with feedback and a C of two batches, in eval mode."""
    torch.manual_seed(0)
    options = {"rank": 3, "alpha": 0.5, "feedback": True, "window": 3, "successors": 6, **options}
    sae = saes.build("causal", d_in=8, d_sae=24, k=4, act=act, **options).train()
    for seed in (5, 6):
        sae.loss(*text(seed, B=6, T=20))
    with torch.no_grad():
        if options["feedback"]:
            sae.rho.fill_(0.7)
    return sae.eval()


def test_codes_equal_their_definition():
    sae = filled(bits=32, tracked=24)
    x, context = text()
    z = sae.encode(x, context)
    static = saes.build("topk", d_in=8, d_sae=24, k=4).eval()
    own = {k: v for k, v in sae.state_dict().items() if not k.startswith(("tracker", "rho"))}
    static.load_state_dict(own)
    z0, pre0 = static.encode(x, context), static(x, context).pre
    C = [torch.tensor(sae.tracker.matrix(lag).toarray()) for lag in (1, 2, 3)]
    document = (context.filled(x).boundary_BT == 3).cumsum(1)
    expected = pre0.clone()
    for b in range(3):
        for t in range(14):
            for lag in (1, 2, 3):
                if t >= lag and document[b, t] == document[b, t - lag]:
                    expected[b, t] += 0.7 * z0[b, t - lag] @ C[lag - 1].float()
    torch.testing.assert_close(sae(x, context).pre, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(z, z0)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("act", ACTS)
def test_laws_hold_with_feedback_at_work(act, bits):
    sae, (x, context) = filled(act, bits=bits), text()
    alone = filled(act, feedback=False).encode(x, context)
    assert not torch.allclose(sae.encode(x, context), alone)
    check_laws(sae)


@pytest.mark.parametrize("act", ACTS)
def test_without_feedback_the_tracker_changes_no_code(act):
    sae = filled(act, feedback=False)
    parent = saes.build({"relu": "l1"}.get(act, act), d_in=8, d_sae=24, k=4).eval()
    parent.load_state_dict(
        {k: v for k, v in sae.state_dict().items() if not k.startswith("tracker")}
    )
    x, context = text()
    assert torch.equal(sae.encode(x, context), parent.encode(x, context))
    assert sae.tracker.updates == 2 and sae.tracker.matrix(1).nnz > 0


@pytest.mark.parametrize("feedback", [False, True])
def test_C_moves_in_training_alone_and_once_a_step(feedback):
    sae = filled(feedback=feedback)
    state = {k: v.clone() for k, v in sae.tracker.state_dict().items()}
    x, context = text(7)
    sae.loss(x, context)
    sae(x, context)
    assert all(torch.equal(v, state[k]) for k, v in sae.tracker.state_dict().items())
    sae.train()
    sae.encode(x, context)
    assert sae.tracker.updates == 2
    sae.loss(x, context)
    assert sae.tracker.updates == 3


def test_no_pair_crosses_a_document_or_an_invalid_token():
    sae = filled(feedback=False, window=2)
    sae.tracker.load_state_dict(
        {k: torch.zeros_like(v) if not k.startswith("relation") else v
         for k, v in sae.tracker.state_dict().items()}
    )  # fmt: skip
    sae.train()
    x = torch.randn(2, 4, 8)
    context = SequenceContext(None, torch.full((2, 4), 3, dtype=torch.uint8))
    sae.loss(x, context)
    assert sae.tracker.matrix(1).nnz == sae.tracker.matrix(2).nnz == 0
    mask = torch.tensor([[True, False, True, False]] * 2)
    sae.loss(x, SequenceContext(mask))
    assert sae.tracker.matrix(1).nnz == 0 and sae.tracker.matrix(2).nnz > 0


def test_prior_in_training_is_of_C_before_the_batch():
    sae = filled(bits=32)
    x, context = text(8)
    with torch.no_grad():
        before = sae(x, context).pre.flatten(0, 1)
    sae.train()
    step = Tokens(sae, x, context.filled(x), learn=True, sparse=True)
    torch.testing.assert_close(sae.encoding(step).pre, before)


@pytest.mark.parametrize("act", ACTS)
def test_gradient_of_rho_is_the_numerical_one(act):
    sae = filled(act).train()
    x, context = text(8)

    def mse(rho):
        twin = filled(act).train()
        with torch.no_grad():
            twin.rho.fill_(rho)
        return twin, twin.loss(x, context)["mse"]

    sae, loss = mse(0.3)
    loss.backward()
    step = 1e-3
    with torch.no_grad():
        slope = (mse(0.3 + step)[1] - mse(0.3 - step)[1]) / (2 * step)
    # Which latents are active may change within the step; their codes then enter with a jump.
    assert sae.rho.grad.item() == pytest.approx(slope.item(), rel=0.05, abs=0.02)


def test_loss_of_W_moves_W_alone_and_the_rest_does_not():
    sae = filled().train()
    terms = sae.loss(*text(8))
    terms["relation"].backward(retain_graph=True)
    moved = {name for name, p in sae.named_parameters() if p.grad is not None}
    assert moved == {f"tracker.relation.{name}" for name in ("U_FR", "V_FR", "s_LR")}
    sae.zero_grad(set_to_none=True)
    terms["mse"].backward()
    moved = {name for name, p in sae.named_parameters() if p.grad is not None}
    assert not any(name.startswith("tracker") for name in moved) and "rho" in moved


def make():
    torch.manual_seed(0)
    return saes.build(
        "causal", d_in=16, d_sae=32, k=4, rank=4, feedback=True, successors=7, pairs=500
    )


def test_killed_and_resumed_with_feedback_equals_one_run(tmp_path):
    whole = train.train(make(), STORE, tmp_path / "whole", config(), progress=False).sae
    with pytest.raises(Killed):
        train.train(make(), MortalStore(7), tmp_path / "torn", config(), progress=False)
    train.train(make(), STORE, tmp_path / "torn", config(), progress=False)
    same_files(tmp_path / "torn", tmp_path / "whole")
    loaded = saes.load(tmp_path / "torn" / "sae")
    assert loaded.tracker.updates == 12 and loaded.tracker.matrix(1).nnz > 0
    batch = STORE.batch("test", [0, 1])
    z = whole.encode(batch.x_BTD, batch.context)
    assert torch.equal(loaded.encode(batch.x_BTD, batch.context), z)


@pytest.mark.parametrize("act", ACTS)
def test_without_feedback_training_is_the_static_saes_bit_for_bit(act, tmp_path):
    """Neither the gradient of W nor its draws reach the SAE; the clip is at work in every step."""
    trained, logs = [], []
    for name in ({"relu": "l1"}.get(act, act), "causal"):
        torch.manual_seed(0)
        sae = saes.build(name, d_in=16, d_sae=32, k=4, **({"act": act} if name == "causal" else {}))
        asked = config(grad_clip=0.1, resample_every=5)
        trained.append(train.train(sae, STORE, tmp_path / name, asked, progress=False).sae)
        log = (tmp_path / name / "train.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in log])
    static, causal = trained
    for name, value in static.state_dict().items():
        assert torch.equal(causal.state_dict()[name], value), name
    assert all(row["grad_norm"] > 0.1 / 16 for row in logs[0])
    for ours, theirs in zip(*logs, strict=True):
        assert {key: theirs[key] for key in ours if key != "total"} == {
            key: value for key, value in ours.items() if key != "total"
        }
