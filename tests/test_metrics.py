"""The one table of measures: verdicts worked out by hand, and names that mean one thing."""

import pytest

from lab.results.metrics import METRICS, Metric, metric, verdict
from lab.results.systems import SYSTEMS, display, inside, ordered


@pytest.mark.parametrize(
    ("name", "lo", "hi", "said"),
    [
        ("fve", 0.001, 0.02, "better"),
        ("fve", -0.02, -0.001, "worse"),
        ("fve", -0.004, 0.004, "equivalent"),
        ("fve", 0.001, 0.0049, "equivalent"),  # real, and too small to matter
        ("fve", -0.001, 0.02, "undecided"),
        ("fve", 0.0, 0.02, "undecided"),
        ("bits", 1.5, 3.0, "worse"),  # fewer bits are better
        ("bits", -3.0, -1.5, "better"),
        ("ap", 0.01, 0.03, "better"),
        ("ap", -0.019, 0.019, "equivalent"),
    ],
)
def test_a_verdict_is_the_interval_against_zero_and_the_smallest_effect(name, lo, hi, said):
    assert verdict(name, lo, hi) == said


def test_a_quantity_without_a_better_side_has_no_verdict():
    with pytest.raises(ValueError, match="better=0 is not allowed"):
        verdict("l0", 1.0, 2.0)


def test_a_metric_is_checked_and_an_unknown_one_has_no_direction():
    with pytest.raises(ValueError, match="better=2"):
        Metric("x", "x", better=2)
    assert metric("a_new_one") == Metric("a_new_one", "a new one", phrase="a new one")
    assert METRICS["smoothness"].arrow == "↓" and METRICS["fve"].arrow == "↑"
    assert all(found.smallest_effect > 0 for found in METRICS.values() if found.better)


def test_no_two_systems_share_a_look_or_a_name():
    for field in ("name", "colour"):
        values = [getattr(system, field) for system in SYSTEMS.values()]
        assert len(set(values)) == len(values), field


def test_readings_stand_after_systems_and_are_named_for_them():
    assert display("ema(topk)") == "EMA(TopK)" and inside("average(conv)") == "conv"
    names = ["ema(topk)", "slowfast", "shuffled(conv)", "l1", "unknown", "topk"]
    assert ordered(names) == ["l1", "topk", "slowfast", "unknown", "ema(topk)", "shuffled(conv)"]
