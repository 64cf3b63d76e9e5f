"""The scan against hand-worked numbers, the plain loop and its own definition."""

import pytest
import torch

from tsae.kernels.scan import scan


def plain(a_BTF, delta_F, keep_BT, valid_BT):
    """The recurrence of the module, one token at a time."""
    m_BF, before = torch.zeros_like(a_BTF[:, 0]), []
    for a_BF, keep_B, valid_B in zip(a_BTF.unbind(1), keep_BT.t(), valid_BT.t(), strict=True):
        before.append(keep_B[:, None] * m_BF)
        m_BF = torch.where(valid_B[:, None], delta_F * before[-1] + a_BF, before[-1])
    return torch.stack(before, 1)


def case(seed=0, B=3, T=12, F=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(B, T, F, generator=g, dtype=dtype)
    delta = torch.rand(F, generator=g, dtype=dtype)
    delta[0], delta[1] = 0.0, 1.0
    keep = torch.rand(B, T, generator=g) > 0.2
    valid = torch.rand(B, T, generator=g) > 0.3
    keep[:, 0] = False
    keep[0, 1:], valid[1] = True, True
    return a, delta, keep, valid


@pytest.mark.parametrize("run", [plain, scan])
def test_by_hand(run):
    a = torch.tensor([[1.0, 9.0, 3.0, 4.0, 5.0, 6.0]])[..., None]
    keep = torch.tensor([[False, True, True, True, False, True]])
    valid = torch.tensor([[True, False, True, True, True, True]])
    r = run(a, torch.tensor([0.5]), keep, valid)[0, :, 0]
    # m: 1, 1 (invalid: kept), 0.5 + 3, 1.75 + 4, 0 + 5 (forgotten before), …
    assert r.tolist() == [0.0, 1.0, 1.0, 3.5, 0.0, 5.0]


@pytest.mark.parametrize(
    "given", [case(0), case(1), case(2, T=2), case(3, 4, 128, 30, torch.float32)]
)
def test_values_and_gradients_equal_the_plain_loop(given):
    a, delta, keep, valid = given
    weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(9)).to(a)
    results = []
    for run in (plain, scan):
        inputs = a.clone().requires_grad_(), delta.clone().requires_grad_()
        r = run(*inputs, keep, valid)
        (r.sin() * weight).sum().backward()
        results.append([r.detach(), inputs[0].grad, inputs[1].grad])
    near = (
        {"rtol": 1e-10, "atol": 1e-12} if a.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    )
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, **near)


def test_equals_its_closed_form():
    a, delta, keep, valid = case(3)
    r = scan(a, delta, keep, valid)
    for b in range(a.shape[0]):
        for t in range(a.shape[1]):
            expected = torch.zeros(a.shape[2], dtype=torch.float64)
            for s in range(t):
                if valid[b, s] and keep[b, s + 1 : t + 1].all():
                    expected += delta ** int(valid[b, s + 1 : t].sum()) * a[b, s]
            torch.testing.assert_close(r[b, t], expected)


def test_nothing_leaks_across_a_reset():
    a, delta, keep, valid = case(4)
    keep[:, 6] = False
    before = scan(a, delta, keep, valid)
    a[:, :6] = 1e6
    assert torch.equal(scan(a, delta, keep, valid)[:, 6:], before[:, 6:])


def test_input_of_any_layout():
    a, delta, keep, valid = case(5)
    strided = a.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(scan(strided, delta, keep, valid), scan(a, delta, keep, valid))
    results = []
    for run in (scan, plain):  # the gradient is an expanded scalar
        given = a.clone().requires_grad_()
        run(given, delta, keep, valid).sum().backward()
        results.append(given.grad)
    torch.testing.assert_close(*results)
