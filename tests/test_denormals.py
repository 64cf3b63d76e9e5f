"""Denormal numbers are 0 inside ``flushed``, and in every training step."""

import pytest
import torch

from tsae.kernels.denormals import flushed

TINY = 1e-39


def product() -> float:
    return float(torch.tensor(TINY) * 1.0)


def test_denormals_are_zero_inside_and_numbers_again_after():
    assert product() == pytest.approx(TINY, rel=1e-5)
    with flushed():
        assert product() == 0.0
        assert float(torch.tensor(1.2e-38) * 1.0) == pytest.approx(1.2e-38, rel=1e-5)
    assert product() == pytest.approx(TINY, rel=1e-5)


def test_nesting_and_errors_leave_what_was_set():
    with flushed(), pytest.raises(KeyError), flushed():
        raise KeyError
    assert product() == pytest.approx(TINY, rel=1e-5)
    torch.set_flush_denormal(True)
    try:
        with flushed():
            pass
        assert product() == 0.0
    finally:
        torch.set_flush_denormal(False)


def test_backward_runs_flushed():
    seen = []
    x = torch.ones((), requires_grad=True)
    y = x * 1.0
    y.register_hook(lambda grad: seen.append(product()))
    with flushed():
        y.backward()
    assert seen == [0.0]
