"""What adaptation learned, against hand-worked numbers and its laws."""

import math

import eval_cases
import pytest
import torch
from eval_cases import Fake, Store, value

from lab import measures as evals
from lab.measures.time import adaptation
from tsae import saes

GRIDS = {"theta": (-0.5, 0.0, 0.5), "beta": (0.0,), "tau": (0.0, 1.0)}


def trained(seed=0, world_seed=None, **options):
    torch.manual_seed(0 if world_seed is None else world_seed)
    sae = saes.build("glta", d_in=8, d_sae=16, k=3, **options).eval()
    sae.meta["seed"] = seed
    return sae


def test_numbers_by_hand():
    sae = trained(tau=1.0, theta=3.0, scope="feature")
    sae.var_F.copy_(torch.tensor([1.0, 16.0]).repeat(8))  # geometric mean 4: s = 1/4, 4
    with torch.no_grad():
        sae.raw_theta[8:] = -3.0 / sae.cfg.adaptation_lr
    rows = adaptation.numbers(sae)
    assert value(rows, "adaptation_theta") == 0
    assert value(rows, "adaptation_theta", "sd") == pytest.approx(3 * math.sqrt(16 / 15))
    assert value(rows, "adaptation_tau") == 1
    # delta = 2^-s, so that the half-life is 1 / s: 4 and 1/4 tokens.
    assert value(rows, "adaptation_half_life", "mean") == pytest.approx(2.125)
    assert value(rows, "adaptation_delta", "q=0.05") == pytest.approx(2**-4)
    assert value(rows, "adaptation_strength", "q=0.95") == pytest.approx(6)
    table = adaptation.per_latent(sae)
    assert table.iloc[1].tolist() == pytest.approx([1, 16, 4, 2**-4, 6])
    assert table["theta"].iloc[8:10].tolist() == pytest.approx([-1.5, -6])


def measured(found, **options):
    options = {"sensitivity_tokens": 200, "grids": GRIDS, **options}
    given = {"families": ("adaptation",), "options": {"adaptation": options}}
    return eval_cases.measured(found, Store(6), **given, test=400)


def test_others_and_nulls_are_left_out_and_the_first_seed_alone_is_bent():
    sae = trained()
    found = {
        "a": sae,
        "b": trained(1),
        "feature": trained(scope="feature"),
        "null": evals.ShuffledNull(sae),
        "static": Fake(lambda x, context=None: x, 8),
    }
    tables = measured(found)
    assert not tables["null"].rows and not tables["static"].rows
    assert [name for name in found if "sensitivity" in tables[name].tables] == ["a"]
    assert len(tables["feature"].tables["adaptation"]) == 16


def test_responses_touch_what_they_should():
    sae = trained(theta=0.25, tau=0.5, act="relu")
    sae.var_F.copy_(torch.rand(16, generator=torch.Generator().manual_seed(1)) + 0.1)
    before = {name: v.clone() for name, v in sae.state_dict().items()}
    tables = measured({"a": sae}, sensitivity_tokens=10**6)["a"].tables
    assert all(torch.equal(v, before[name]) for name, v in sae.state_dict().items())
    curves = tables["sensitivity"].set_index(["parameter", "metric", "setting"])["value"]
    learned = tables["sensitivity"].query("learned").set_index(["parameter", "metric"])["setting"]
    assert learned["theta", "fve"] == 0.25 and learned["beta", "fve"] == 0.0
    core = eval_cases.measured({"sae": sae}, Store(6), families=("core",))["sae"]
    fve = value(core.rows, "fve")
    for parameter, setting in (("theta", 0.25), ("beta", 0.0), ("tau", 0.5)):
        assert curves[parameter, "fve", setting] == pytest.approx(fve)
        assert curves[parameter, "turnover", setting] == 0
    static = saes.build("l1", d_in=8, d_sae=16, k=3).eval()
    static.load_state_dict(sae.state_dict(), strict=False)
    core = eval_cases.measured({"sae": static}, Store(6), families=("core",))["sae"]
    assert curves["theta", "fve", 0.0] == pytest.approx(value(core.rows, "fve"))
    assert curves["theta", "l0", 0.0] == pytest.approx(value(core.rows, "l0"))
    # What has been said weighs less: fewer latents pass 0, and more with persistence.
    assert curves["theta", "l0", 0.5] < curves["theta", "l0", 0.0] < curves["theta", "l0", -0.5]
    assert {"smoothness", "ap_document"} <= set(tables["sensitivity"]["metric"])
