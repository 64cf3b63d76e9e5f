"""Globally learned temporal adaptation against hand-worked numbers and its laws."""

import pytest
import torch

from tsae import saes
from tsae.saes import SequenceContext


def tiny(F=1, **options):
    """One dimension, every latent reads x as it is; delta = 1/2 where s = 1."""
    defaults = {
        "act": "relu", "k": 1, "theta": 1.0, "variance_scaling": False, "feed": "relu",
        "objective": "reconstruct",
    }  # fmt: skip
    sae = saes.build("glta", d_in=1, d_sae=F, **{**defaults, **options}).eval()
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.W_dec.fill_(1.0)
    return sae


def test_adaptation_by_hand():
    x = torch.tensor([2.0, 4.0, 9.0, 1.0, 3.0, 3.0]).view(1, 6, 1)
    boundary = torch.tensor([[3, 0, 0, 2, 3, 1]], dtype=torch.uint8)
    mask = torch.tensor([[True, True, False, True, True, True]])
    context = SequenceContext(mask, boundary)
    # m: 1, 2.5, 2.5 (invalid), 1.75, 1.5 (new document), …; a section does not reset it
    z = tiny().encode(x, context)[0, :, 0]
    assert z.tolist() == pytest.approx([2.0, 3.0, 0.0, 0.0, 3.0, 1.5])
    z = tiny(theta=-2.0).encode(x, context)[0, :, 0]
    assert z.tolist() == pytest.approx([2.0, 6.0, 0.0, 6.0, 3.0, 6.0])


def test_variance_spreads_rate_and_strength():
    sae = tiny(F=2, variance_scaling=True, tau=1.0, theta=3.0)
    sae.var_F.copy_(torch.tensor([1.0, 16.0]))
    delta, theta = sae.adaptation()  # geometric mean 4: s = 1/4, 4
    assert delta.tolist() == pytest.approx([2**-0.25, 2**-4])
    assert theta.tolist() == pytest.approx([1.5, 6.0])
    sae.set_adaptation(tau=0.5)  # s = 1/2, 2
    assert sae.adaptation()[0].tolist() == pytest.approx([2**-0.5, 2**-2])
    sae.set_adaptation(tau=0.0)
    assert sae.adaptation()[1].tolist() == pytest.approx([3.0, 3.0])


def test_variances_are_averaged_over_valid_tokens_and_frozen_for_inference(tmp_path):
    sae = tiny(F=2, variance_scaling=True, variance_ema=0.75, theta=0.5).train()
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, -1.0]]))
    x = torch.tensor([0.0, 4.0, 99.0, -2.0]).view(1, 4, 1)
    context = SequenceContext(torch.tensor([[True, True, False, True]]))
    sae.loss(x, context)
    # a = (0, 4, 0) and (0, 0, 2): means 4/3 and 2/3, variances 32/9 and 8/9
    assert sae.var_F.tolist() == pytest.approx([32 / 9, 8 / 9])
    sae.loss(x / 2, context)
    assert sae.var_F.tolist() == pytest.approx([32 / 9 * 0.8125, 8 / 9 * 0.8125])
    seen = sae.var_F.clone()
    sae.eval().loss(5 * x, context)
    sae.encode(5 * x, context)
    assert torch.equal(sae.var_F, seen)
    sae.save(tmp_path / "sae")
    assert torch.equal(saes.load(tmp_path / "sae").var_F, seen)


def test_selection_sees_the_adapted_latents():
    options = {"variance_scaling": False, "objective": "reconstruct", "feed": "relu"}
    sae = saes.build("glta", d_in=2, d_sae=2, k=1, theta=1.0, **options).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
    x = torch.tensor([[[4.0, 0.0], [5.0, 4.0]]])
    # m_0 = (2, 0): the second token's (5, 4) becomes (3, 4), and the other latent wins.
    assert sae.encode(x).tolist() == [[[4.0, 0.0], [0.0, 4.0]]]
    # Errors (0, 0) and (5, 0): 25 over 4 numbers.
    terms = sae.loss(x)
    assert float(terms["mse"].detach()) == pytest.approx(25 / 4)
    assert float(terms["penalty"].detach()) == pytest.approx(1e-3)
    assert float(terms["total"].detach()) == pytest.approx(25 / 4 + 1e-3)


def test_penalty_is_the_mean_over_latents():
    sae = tiny(F=3, scope="feature", penalty=0.1, beta=1.0, theta=2.0)
    term = sae.loss(torch.ones(1, 2, 1))["penalty"]
    assert float(term.detach()) == pytest.approx(0.1 * (1 + 4))


def test_decaying_temperature():
    sae = tiny(tau="decay", tau_start=1.0, tau_end=0.01)
    seen = []
    for step in (0, 5, 10):
        sae.start_step(step, 10)
        seen.append(float(sae.tau))
    assert seen == pytest.approx([1.0, 0.1, 0.01])
    sae.set_adaptation(tau=0.3)
    assert float(sae.tau) == pytest.approx(0.3)


def learned(seed=0, **options):
    """A model with every part of adaptation away from its start."""
    torch.manual_seed(seed)
    options = {"feed": "relu", "objective": "reconstruct", **options}
    sae = saes.build("glta", d_in=6, d_sae=20, k=4, theta=0.4, **options).eval()
    sae.var_F.copy_(torch.rand(20) + 0.05)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return sae


@pytest.mark.parametrize("scope", ["global", "feature"])
@pytest.mark.parametrize("tau", [0.0, 1.0, "learned"])
def test_encode_equals_the_recurrence(scope, tau):
    sae = learned(scope=scope, tau=tau, act="relu")
    x = torch.randn(2, 40, 6)
    boundary = torch.zeros(2, 40, dtype=torch.uint8)
    boundary[0, 11], boundary[1, 30], boundary[1, 5] = 3, 3, 2
    mask = torch.rand(2, 40) > 0.2
    z = sae.encode(x, SequenceContext(mask, boundary))
    beta = sae.beta.detach().expand(20)
    theta = sae.theta.detach().expand(20)
    s = (sae.var_F / sae.var_F.log().mean().exp()) ** float(sae.tau.detach())
    delta = torch.exp(-torch.log1p(beta.exp()) * s)
    for b in range(2):
        m = torch.zeros(20)
        for t in range(40):
            if boundary[b, t] == 3:
                m = torch.zeros(20)
            if not mask[b, t]:
                assert z[b, t].abs().max() == 0
                continue
            pre = ((x[b, t] - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()
            expected = (pre - theta * s.sqrt() * m).clamp_min(0.0)
            torch.testing.assert_close(z[b, t], expected, atol=1e-5, rtol=1e-5)
            m = delta * m + (1 - delta) * pre.clamp_min(0.0)
    stream = sae.stream(2)
    steps = [stream.step(x[:, t], boundary[:, t], mask[:, t]) for t in range(40)]
    torch.testing.assert_close(torch.stack(steps, 1), z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("objective", "feed"), [("predict", "codes"), ("price", "relu")])
@pytest.mark.parametrize("act", ["relu", "topk"])
def test_gradients_equal_finite_differences(act, objective, feed):
    sae = learned(act=act, tau="learned", objective=objective, feed=feed).double()
    sae.set_adaptation(p=0.3)
    torch.manual_seed(1)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    sae.loss(x)["total"].backward()
    for parameter in (sae.raw_beta, sae.raw_theta, sae.raw_tau):
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                parameter.add_(step)
                values.append(float(sae.loss(x)["total"]))
            parameter.add_(1e-5)
        assert float(parameter.grad) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_memory_explains_first_and_the_code_carries_the_surprise():
    sae = tiny(objective="predict", theta=0.0, feed="codes")
    sae.set_adaptation(p=0.5)
    out = sae(torch.tensor([2.0, 4.0, 1.0]).view(1, 3, 1))
    # m: 1, then 2.5 from the static codes 2 and 4; half of it is explained.
    assert out.beside["x_p"][0, :, 0].tolist() == pytest.approx([0.0, 0.5, 1.25])
    assert out.z[0, :, 0].tolist() == pytest.approx([2.0, 3.5, 0.0])
    assert out.x_hat[0, :, 0].tolist() == pytest.approx([2.0, 4.0, 1.25])


def test_the_price_of_births_by_hand():
    sae = tiny(objective="price", price=2.0, theta=0.0, train_adaptation=False)
    terms = sae.loss(torch.tensor([2.0, 4.0, 1.0, 3.0]).view(1, 4, 1))
    assert float(terms["births"]) == pytest.approx(2 * (2 + 2) / 4)


def test_the_temperature_never_falls_below_zero():
    sae = tiny(tau="learned", variance_scaling=True)
    sae.set_adaptation(tau=-0.25)
    assert float(sae.tau) == 0.25


def test_extreme_rates_stay_finite():
    sae = learned(act="topk", tau=1.0, scope="global").train()
    sae.variance_steps.fill_(10**6)
    sae.var_F.copy_(torch.logspace(-12, 6, 20))
    delta, _ = sae.adaptation()
    assert float(delta.min().detach()) == 0 and float(delta.max().detach()) > 0.99
    sae.loss(torch.randn(2, 30, 6))["total"].backward()
    assert all(p.grad.isfinite().all() for p in sae.parameters())


def test_persistence_lowers_the_loss_where_latents_last():
    """x[t] = noise + what the document is about: the past of a latent says it is on."""
    torch.manual_seed(0)
    sae = saes.build("glta", d_in=16, d_sae=16, k=2, act="topk", penalty=0.0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(16))
        sae.W_dec.copy_(torch.eye(16))
    topic = 2.0 * torch.eye(16)[torch.randint(16, (64,))]
    x = topic[:, None] + torch.randn(64, 24, 16)
    clean = topic[:, None].expand_as(x)

    def found(theta):
        sae.set_adaptation(theta=theta)
        return float((sae.encode(x)[clean > 0] > 0).float().mean())

    assert found(-1.0) > found(0.0) > found(1.0)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"scope": "local"}, "global or feature"),
        ({"tau": "fixed"}, "a number of at least 0, learned or decay"),
        ({"tau": True}, "tau=True"),
        ({"tau": -0.5}, "tau=-0.5"),
        ({"objective": "none"}, "one of predict, price, reconstruct"),
        ({"feed": "z"}, "codes or relu"),
        ({"tau_end": 0.0}, "tau_end=0.0"),
        ({"variance_ema": 1.0}, "variance_ema=1.0"),
        ({"penalty": -1.0}, "penalty=-1.0"),
        ({"adaptation_lr": 0.0}, "adaptation_lr=0.0"),
    ],
)
def test_bad_values_say_what_is_allowed(options, needle):
    with pytest.raises(ValueError, match=needle):
        saes.build("glta", d_in=4, d_sae=8, k=2, **options)


@pytest.mark.parametrize("act", ["topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("scope", ["global", "feature"])
def test_theta_0_is_the_static_parent_to_the_bit(act, scope):
    torch.manual_seed(3)
    static = saes.build(act, d_in=6, d_sae=20, k=4).eval()
    sae = saes.build("glta", d_in=6, d_sae=20, k=4, act=act, scope=scope, beta=0.7).eval()
    left = sae.load_state_dict(static.state_dict(), strict=False)
    assert not left.unexpected_keys
    x = 3 * torch.randn(3, 17, 6)
    boundary = (torch.rand(3, 17) > 0.8).to(torch.uint8) * 3
    context = SequenceContext(torch.rand(3, 17) > 0.1, boundary)
    ours, theirs = sae(x, context), static(x, context)
    assert torch.equal(ours.z, theirs.z) and torch.equal(ours.x_hat, theirs.x_hat)
    assert torch.equal(ours.pre, theirs.pre)


def test_adaptation_moves_with_a_rate_of_its_own():
    """Adam's first step is lr in every parameter, whatever its gradient."""
    torch.manual_seed(4)
    start = {"theta": 0.5, "beta": -0.25, "tau": "learned", "tau_start": 0.75}
    sae = saes.build("glta", d_in=6, d_sae=20, k=4, adaptation_lr=16.0, **start).train()
    sae.track_variance(torch.rand(30, 20), torch.ones(30))

    def values():
        return [getattr(sae, name).item() for name in ("theta", "beta", "tau")]

    assert values() == [0.5, -0.25, 0.75]
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    W_enc = sae.W_enc.detach().clone()
    sae.loss(torch.randn(4, 9, 6))["total"].backward()
    optimizer.step()
    assert (sae.W_enc - W_enc).abs().max().item() == pytest.approx(1e-3, rel=1e-2)
    moved = [
        abs(after - before) for after, before in zip(values(), (0.5, -0.25, 0.75), strict=True)
    ]
    assert moved == pytest.approx([16e-3] * 3, rel=1e-2)


def test_set_adaptation():
    sae = tiny(F=3, scope="feature")
    sae.set_adaptation(theta=-0.3, tau=0.25)
    assert sae.theta.tolist() == pytest.approx([-0.3] * 3)
    assert float(sae.tau) == 0.25 and sae.beta.tolist() == [0.0] * 3
