"""The matched-L0 driver: thresholds that give the L0 asked for, and what it says it did."""

from types import SimpleNamespace

import pytest
import torch
from eval_cases import Store

from lab.runs import matched
from lab.runs.evaluation import run_evaluation
from lab.runs.setting import Setting
from tsae import saes


class TrainStore(Store):
    d_model = 8


def built(name, k=4, **options):
    torch.manual_seed(0)
    sae = saes.build(name, d_in=8, d_sae=64, k=k, **options).eval()
    with torch.no_grad():
        if name == "batchtopk":
            sae.act.threshold.fill_(1.0)
        if sae.cfg.act == "jumprelu":
            parts = getattr(sae.act, "parts", [sae.act])
            for part in parts:
                part.log_threshold.copy_(torch.linspace(-2, 0, len(part.log_threshold)))
    return sae


def test_bisection_finds_a_known_root():
    # l0(s) = 10 − s falls through 4 at 6.
    assert matched.bisect(lambda s: 10 - s, 4.0, 0.0, 10.0) == pytest.approx(6, abs=0.01)


@pytest.mark.parametrize(
    ("name", "options"),
    [("batchtopk", {}), ("jumprelu", {}), ("l1", {}), ("conv", {"act": "jumprelu"})],
)
@pytest.mark.parametrize("asked", [3, 9])
def test_thresholds_reach_the_l0_within_two_percent(name, options, asked):
    sae, store = built(name, k=asked, **options), TrainStore(8)
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    found = matched.match_own(sae, store, limit_tokens=320)
    assert found.how == "threshold"
    assert matched.measured_l0(found.sae, store, 320) == pytest.approx(asked, rel=0.02)
    assert found.before == matched.measured_l0(sae, store, 320)
    assert (found.sae.meta["matched_l0"]["shift"] > 0) == (found.before > asked)
    assert all(torch.equal(before[key], value) for key, value in sae.state_dict().items())


def test_no_shift_changes_nothing():
    batch = next(TrainStore(4).batches("train", 4))
    for name in ("batchtopk", "jumprelu", "l1"):
        sae = built(name)
        same = matched.shifted(sae, 0.0).encode(batch.x_BTD, batch.context)
        assert torch.equal(same, sae.encode(batch.x_BTD, batch.context))


@pytest.mark.parametrize(
    ("name", "k", "how"),
    [("topk", 4, "by construction"), ("topk", 60, "not reached"), ("batchtopk", 60, "not reached")],
)
def test_a_topk_is_matched_by_construction_or_not_at_all(name, k, how):
    """Fewer than 60 of 64 latents have a positive pre-activation."""
    sae = built(name, k=k)
    found = matched.match_own(sae, TrainStore(4), limit_tokens=80)
    assert (found.how, found.before) == (how, matched.measured_l0(sae, TrainStore(4), 80))
    assert all(map(torch.equal, found.sae.state_dict().values(), sae.state_dict().values()))


class PagedStore(TrainStore):
    """With the first sequences of a split at hand, as the heat map asks for them."""

    def batch(self, split, indices):
        assert list(indices) == [0, 1]
        batch = next(self.batches(split, 2))
        self.read.pop()
        return batch


def test_an_evaluation_at_matched_l0_says_how_each_run_came_there():
    found = {name: built(name) for name in ("topk", "jumprelu")}
    for sae in found.values():
        sae.meta.update(world="fake", layer=1)
    store = PagedStore(8)
    world = SimpleNamespace(to_strings=lambda ids: [str(i) for i in ids])
    tables = run_evaluation(
        Setting(world, store), found, nulls=False, match=True, match_tokens=320,
        families=("core", "recovery", "probing"), limit_tokens=320, selection_tokens=320,
        family_options={"probing": {"min_count": 2}}, progress=False,
    )  # fmt: skip
    rows = tables["results"].set_index(["variant", "metric"])
    as_trained = rows.loc[[("topk", "l0_as_trained"), ("jumprelu", "l0_as_trained")]]
    assert as_trained["group"].tolist() == ["by construction", "threshold"]
    assert (
        as_trained["value"].iloc[0] == 4 and as_trained["value"].iloc[1] > 4.1
    )  # L0 of the moved one, on other tokens:
    assert rows.loc[("jumprelu", "l0"), "value"] == pytest.approx(4, rel=0.1)
    # What is scored are test documents (ids from 1000); thresholds and latents come from the others.
    assert (tables["documents"]["doc"] >= 1000).all() and len(tables["documents"])
    assert set(store.read) == {"train", "validation", "test"}
    store.read.clear()
    for name in found:
        made = matched.match_own(found[name], store, limit_tokens=320).sae
        assert made.cfg == found[name].cfg
        assert matched.measured_l0(made, store, 320) == pytest.approx(4, rel=0.02)
    assert set(store.read) == {"train"}
