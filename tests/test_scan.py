"""The chunked scan against hand-worked numbers, the plain loop and its own definition."""

import pytest
import torch

from tsae.kernels.scan import scan, scan_reference

CHUNKS = (None, 1, 3, 4, 12, 50)


def case(seed=0, B=3, T=12, F=5):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(B, T, F, generator=g, dtype=torch.float64)
    delta = torch.rand(F, generator=g, dtype=torch.float64)
    delta[0], delta[1] = 0.0, 1.0
    keep = torch.rand(B, T, generator=g) > 0.2
    valid = torch.rand(B, T, generator=g) > 0.3
    keep[:, 0] = False
    keep[0, 1:], valid[1] = True, True
    return a, delta, keep, valid


@pytest.mark.parametrize("run", [scan_reference, *[lambda *a, c=c: scan(*a, c) for c in CHUNKS]])
def test_by_hand(run):
    a = torch.tensor([[1.0, 9.0, 3.0, 4.0, 5.0, 6.0]])[..., None]
    keep = torch.tensor([[False, True, True, True, False, True]])
    valid = torch.tensor([[True, False, True, True, True, True]])
    r = run(a, torch.tensor([0.5]), keep, valid)[0, :, 0]
    # m: 1, 1 (invalid: kept), 0.5 + 3, 1.75 + 4, 0 + 5 (forgotten before), …
    assert r.tolist() == [0.0, 1.0, 1.0, 3.5, 0.0, 5.0]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients_equal_the_plain_loop(chunk, seed):
    a, delta, keep, valid = case(seed)
    weight = torch.randn(a.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    results = []
    for run in (scan_reference, lambda *args: scan(*args, chunk)):
        inputs = a.clone().requires_grad_(), delta.clone().requires_grad_()
        r = run(*inputs, keep, valid)
        (r.sin() * weight).sum().backward()
        results.append([r.detach(), inputs[0].grad, inputs[1].grad])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)


def test_single_precision_equals_the_plain_loop():
    g = torch.Generator().manual_seed(2)
    a, delta = torch.rand(4, 128, 30, generator=g), torch.rand(30, generator=g)
    keep, valid = torch.rand(4, 128, generator=g) > 0.02, torch.rand(4, 128, generator=g) > 0.05
    plain = (1 - delta) * scan_reference(a, delta, keep, valid)
    for chunk in (None, 16):
        fast = (1 - delta) * scan(a, delta, keep, valid, chunk)
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)


def test_equals_its_closed_form():
    a, delta, keep, valid = case(3)
    r = scan(a, delta, keep, valid, 5)
    for b in range(a.shape[0]):
        for t in range(a.shape[1]):
            expected = torch.zeros(a.shape[2], dtype=torch.float64)
            for s in range(t):
                if valid[b, s] and keep[b, s + 1 : t + 1].all():
                    expected += delta ** int(valid[b, s + 1 : t].sum()) * a[b, s]
            torch.testing.assert_close(r[b, t], expected)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_nothing_leaks_across_a_reset(chunk):
    a, delta, keep, valid = case(4)
    keep[:, 6] = False
    before = scan(a, delta, keep, valid, chunk)
    a[:, :6] = 1e6
    assert torch.equal(scan(a, delta, keep, valid, chunk)[:, 6:], before[:, 6:])


def test_input_of_any_layout():
    a, delta, keep, valid = case(5)
    strided = a.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(scan(strided, delta, keep, valid, 4), scan(a, delta, keep, valid, 4))
    a.requires_grad_()
    scan(a, delta, keep, valid, 4).sum().backward()  # the gradient is an expanded scalar
    plain = a.detach().clone().requires_grad_()
    scan_reference(plain, delta, keep, valid).sum().backward()
    torch.testing.assert_close(a.grad, plain.grad)


def test_wrong_values_are_named():
    a, delta, keep, valid = case()
    with pytest.raises(ValueError, match="delta_F has shape"):
        scan(a, delta[:2], keep, valid)
    with pytest.raises(ValueError, match="valid_BT has shape"):
        scan(a, delta, keep, valid[:, 1:])
    with pytest.raises(ValueError, match="chunk=0"):
        scan(a, delta, keep, valid, 0)
