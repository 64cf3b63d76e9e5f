"""evaluate and evaluate_many: one pass, every family, tidy tables."""

import math

import pytest
import torch
from eval_cases import Fake, Store, TableModel, World, value

from lab.measures import FAMILIES, evaluate, evaluate_many, paired_bootstrap
from lab.measures.fidelity import core
from lab.measures.nulls import EmaNull, ShuffledNull
from lab.measures.time import consistency
from tsae import saes


def oracle():
    """A latent per direction of the store's truth."""
    fast_slow = {"all": torch.arange(8), "slow": torch.arange(3), "fast": torch.arange(3, 8)}
    return Fake(lambda x, c: x.sub(1.5).clamp(min=0), 8, groups=fast_slow)


@pytest.fixture
def world(monkeypatch):
    model = TableModel()
    monkeypatch.setattr(core, "models", model)
    monkeypatch.setattr(consistency, "models", model)
    return World(model)


def test_every_family_and_no_row_twice(world):
    out = evaluate(oracle(), Store(), world, progress=False, batch_size=4)
    keys = [(r["metric"], r["group"]) for r in out.results]
    assert len(keys) == len(set(keys))
    assert {r for r in ("fve", "ce_score", "tss", "temporal_consistency", "mcc")} <= {
        m for m, _ in keys
    }
    assert all(set(r) == {"metric", "group", "value", "n"} for r in out.results)
    assert value(out.results, "recovery_f1", "document") == 1
    assert value(out.results, "recovery_f1", "token") == 1
    assert value(out.results, "autocorrelation", "slow:lag=1") > 0.9
    assert math.isinf(value(out.results, "half_life", "slow"))  # they live as long as the document
    assert set(out.documents["metric"]) == {
        "fvu",
        "l0",
        "smoothness",
        "recovery_f1",
        "recovery_f1_matched",
        "ce_sae",
        "ce_clean",
    }
    assert out.latents["document:topic=a"] == 0
    assert set(out.dwell["group"]) == {"all", "slow", "fast"}


def test_many_equals_one_at_a_time_and_shares_the_model(world):
    torch.manual_seed(0)
    static = saes.build("topk", d_in=8, d_sae=16, k=2).eval()
    both = evaluate_many({"a": oracle(), "b": static}, Store(8), world, progress=False)
    calls = dict(world.model().calls)
    for name, sae in (("a", oracle()), ("b", static)):
        alone = evaluate(sae, Store(8), world, progress=False)
        for x, y in zip(both[name].results, alone.results, strict=True):
            assert (x["metric"], x["group"], x["n"]) == (y["metric"], y["group"], y["n"])
            assert x["value"] == pytest.approx(y["value"], nan_ok=True)
    assert calls["clean"] == 1 and calls["edited"] == 3


def test_static_parent_equals_its_shuffled_null_and_bootstrap_agrees():
    torch.manual_seed(0)
    sae = saes.build("topk", d_in=8, d_sae=16, k=2).eval()
    out = evaluate_many(
        {"topk": sae, "shuffled": ShuffledNull(sae), "ema": EmaNull(sae, 0.8)},
        Store(),
        families=("core", "temporal"),
        progress=False,
    )
    frames = {name: t.documents.query("metric == 'fvu'") for name, t in out.items()}
    same = paired_bootstrap(frames["topk"], frames["shuffled"], n_boot=200)
    assert same.diff == pytest.approx(0, abs=1e-6)
    worse = paired_bootstrap(frames["ema"], frames["topk"], n_boot=200)
    assert worse.differs and worse.lo > 0
    l0 = [value(t.results, "l0") for t in out.values()]
    assert l0[0] == l0[1] == l0[2]


def test_families_are_checked(world):
    assert len(FAMILIES) == 6
    with pytest.raises(ValueError, match="'guessing'; allowed are core, splice"):
        evaluate(oracle(), Store(), families=("guessing",), progress=False)
    with pytest.raises(ValueError, match="give world="):
        evaluate(oracle(), Store(), families=("splice",), progress=False)
    out = evaluate(oracle(), Store(), families=("core",), progress=False)
    assert "smoothness" not in {r["metric"] for r in out.results}


def test_limit_is_in_valid_tokens():
    out = evaluate(oracle(), Store(), families=("core",), limit_tokens=81, batch_size=1)
    assert out.results[0]["n"] == 120  # sequences of 40 valid tokens, whole
