"""What adaptation learned, against hand-worked numbers."""

import pytest
import torch
from eval_cases import Fake, Store, measured, value

from lab import measures as evals
from tsae import saes


def adapting(**options):
    return saes.build("glta", d_in=8, d_sae=16, k=3, **options).eval()


def test_numbers_by_hand():
    sae = adapting(tau=1.0, theta=3.0, scope="feature")
    sae.var_F.copy_(torch.tensor([1.0, 16.0]).repeat(8))  # geometric mean 4: s = 1/4, 4
    with torch.no_grad():
        sae.raw_theta[8:] = -3.0 / sae.cfg.adaptation_lr
    found = {"a": sae, "null": evals.ShuffledNull(sae), "static": Fake(lambda x, c=None: x, 8)}
    tables = measured(found, Store(6), families=("adaptation",))
    rows = tables["a"].rows
    assert value(rows, "adaptation_theta") == 0
    assert value(rows, "adaptation_tau") == 1
    # delta = 2^-s, so that the half-life is 1 / s: 4 and 1/4 tokens.
    assert value(rows, "adaptation_half_life", "q=0.5") == pytest.approx(2.125)
    assert not tables["null"].rows and not tables["static"].rows
