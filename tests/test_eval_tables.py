"""measure: one pass, every family, tidy tables."""

import math

import pytest
import torch
from eval_cases import Fake, Store, TableModel, World, measured, read, value

from lab.measures import DEFAULT, evaluate, modules, paired_bootstrap
from lab.measures.fidelity import splice
from lab.measures.nulls import ShuffledNull
from lab.measures.time import context
from tsae import saes


def oracle():
    """A latent per direction of the store's truth."""
    fast_slow = {"all": torch.arange(8), "slow": torch.arange(3), "fast": torch.arange(3, 8)}
    return Fake(lambda x, c: x.sub(1.5).clamp(min=0), 8, groups=fast_slow)


@pytest.fixture
def world(monkeypatch):
    model = TableModel()
    monkeypatch.setattr(splice, "models", model)
    monkeypatch.setattr(context, "models", model)
    return World(model)


def test_every_family_and_no_row_twice(world):
    out = measured({"sae": oracle()}, Store(), world)["sae"]
    keys = [(r["reading"], r["metric"], r["group"]) for r in out.rows]
    assert len(keys) == len(set(keys))
    assert {r for r in ("fve", "ce_score", "tss", "temporal_consistency", "mcc")} <= {
        m for _, m, _ in keys
    }
    assert all(set(r) == {"reading", "metric", "group", "value", "n"} for r in out.rows)
    own = [r for r in out.rows if r["reading"] == "own"]
    assert value(own, "ap", "document") == pytest.approx(1)
    assert value(own, "f1", "token") == pytest.approx(1)
    assert math.isinf(value(out.rows, "half_life", "slow"))  # they live as long as the document
    assert set(out.documents["metric"]) == {
        "fvu",
        "l0",
        "smoothness",
        "smoothness_normalised",
        "tss",
        "context_jaccard",
        "switch_auroc",
        "switch_delay",
        "ap",
        "auroc",
        "f1",
        "ce_delta",
        "births",
        "bits",
    }
    latents = out.tables["latents"].set_index("group")["latent"]
    assert latents["document:topic=a"] == 0
    assert set(out.tables["dwell"]["group"]) == {"all", "slow", "fast"}


def test_many_equals_one_at_a_time_and_shares_the_model(world):
    torch.manual_seed(0)
    static = saes.build("topk", d_in=8, d_sae=16, k=2).eval()
    both = measured({"a": oracle(), "b": static}, Store(8), world)
    calls = dict(world.model().calls)
    for name, sae in (("a", oracle()), ("b", static)):
        alone = measured({"sae": sae}, Store(8), world)["sae"]
        for x, y in zip(both[name].rows, alone.rows, strict=True):
            assert (x["metric"], x["group"], x["n"]) == (y["metric"], y["group"], y["n"])
            assert x["value"] == pytest.approx(y["value"], nan_ok=True)
    assert calls["clean"] == 2 and calls["edited"] == 6


def test_static_parent_equals_its_shuffled_null_and_bootstrap_agrees():
    torch.manual_seed(0)
    sae = saes.build("topk", d_in=8, d_sae=16, k=2).eval()
    both = {"topk": sae, "shuffled": ShuffledNull(sae)}
    out = measured(both, Store(), families=("core", "temporal"))
    frames = {name: t.documents.query("metric == 'fvu'") for name, t in out.items()}
    same = paired_bootstrap(frames["topk"], frames["shuffled"], n_boot=200)
    assert same.diff == pytest.approx(0, abs=1e-6)
    l0 = [value(t.rows, "l0") for t in out.values()]
    assert l0[0] == l0[1]


def test_families_are_checked(world):
    assert set(DEFAULT) <= set(modules())
    with pytest.raises(ValueError, match="'guessing' is unknown; allowed are absorption, "):
        measured({"sae": oracle()}, Store(), families=("guessing",))
    with pytest.raises(ValueError, match="'splice' needs a world"):
        measured({"sae": oracle()}, Store(), families=("splice",))
    with pytest.raises(ValueError, match="'effects' has no option 'n'; allowed are n_latents"):
        measured({"sae": oracle()}, Store(), options={"effects": {"n": 1}})
    rows = evaluate(oracle(), Store(), families=("core",)).rows
    assert "smoothness" not in {r["metric"] for r in rows}


def test_limit_is_in_valid_tokens():
    out = measured({"sae": oracle()}, Store(), families=("core",), test=81, batch=1)["sae"]
    assert out.rows[0]["n"] == 120  # sequences of 40 valid tokens, whole


@pytest.mark.parametrize("memory_mb", [0, 0.012, 100])
def test_a_dictionary_encodes_a_split_once_while_its_codes_fit(memory_mb):
    """0.012 MiB hold the first batch alone; what is kept changes no number."""
    calls = []
    sae = oracle()
    sae.codes = lambda x, c: calls.append(1) or x.sub(1.5).clamp(min=0)
    reading = read(Store())
    reading._left = memory_mb * 2**20
    passes = [list(reading.tokens(sae, "test", limit)) for limit in (10**6, 10**6, 170)]
    assert len(calls) == {0: 14, 0.012: 12, 100: 6}[memory_mb]
    for first, again in zip(passes[0], passes[1], strict=True):
        assert torch.equal(first.z_NF, again.z_NF) and torch.equal(first.x_hat_ND, again.x_hat_ND)
        assert torch.equal(first.id_N, again.id_N)
    assert len(passes[2]) == 2  # batches of 160 valid tokens
    reading.forget(sae)
    list(reading.tokens(sae, "test", 1))
    assert reading._left <= memory_mb * 2**20 and len(calls) in (15, 13, 7)
