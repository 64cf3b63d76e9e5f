"""The paired bootstrap and the mean over seeds."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lab.measures.stats import holm, paired_bootstrap


def rows(num, den, group="all", seed=0, first_doc=0):
    doc = np.arange(len(num)) + first_doc
    return pd.DataFrame({"doc": doc, "num": num, "den": den, "group": group, "seed": seed})


def test_identical_inputs_give_exactly_zero():
    a = rows(np.arange(20) * 0.37, np.arange(20) + 1.0)
    assert paired_bootstrap(a, a.copy())[:3] == (0, 0, 0)


def test_a_constant_difference_has_no_width():
    den = np.array([3.0, 1, 5, 2])
    b = rows(den * 0.25, den)
    a = rows(den * 0.35, den)
    found = paired_bootstrap(a, b)
    assert found[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert found.n_documents == 4


def test_two_documents_by_hand():
    """Resamples (2,0), (1,1), (0,2) have differences 1, ½, 0 with chances ¼, ½, ¼: variance 1/8."""
    found = paired_bootstrap(rows([1.0, 0], [1.0, 1]), rows([0.0, 0], [1.0, 1]), n_boot=20_000)
    half = 12.706 * math.sqrt(1 / 8)  # t with one degree of freedom
    assert found[:3] == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=0.1)
    assert math.isnan(found.p) and found.n_seeds == 1


def test_ratio_of_sums_then_mean_over_groups_and_seeds():
    a = pd.concat(
        [
            rows([1.0, 3], [2.0, 2], "x"),  # 4/4
            rows([1.0, 0], [4.0, 0], "y"),  # 1/4
            rows([2.0, 0], [2.0, 2], "x", seed=1),  # 1/2
            rows([0.0, 0], [1.0, 1], "y", seed=1),  # 0
        ]
    )
    b = a.assign(num=0.0)
    found = paired_bootstrap(a, b)
    assert found.diff == pytest.approx((1 + 1 / 4 + 1 / 2 + 0) / 4)
    assert (found.n_documents, found.n_seeds) == (2, 2)


def test_against_a_plain_loop():
    """The matrix form equals resampling documents one after another, with the same draws."""
    g = np.random.default_rng(1)
    num_a, num_b, den = g.random((3, 12, 2))
    a, b = (
        pd.concat([rows(n[:, j], den[:, j] + 0.5, f"g{j}") for j in range(2)])
        for n in (num_a, num_b)
    )
    found = paired_bootstrap(a, b, n_boot=300, seed=7)
    weights = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=300)
    values = []
    for w in weights:
        pick = np.repeat(np.arange(12), w)
        ratio = [
            (n[pick, j].sum() - m[pick, j].sum()) / (den[pick, j] + 0.5).sum()
            for j in range(2)
            for n, m in [(num_a, num_b)]
        ]
        values.append(np.mean(ratio))
    half = stats.t.ppf(0.975, 11) * np.std(values)
    assert found.hi - found.diff == pytest.approx(half, rel=1e-9)


def test_width_matches_the_standard_error_of_a_mean():
    x = np.random.default_rng(0).normal(0.3, 1, 400)
    found = paired_bootstrap(rows(x, np.ones(400)), rows(np.zeros(400), np.ones(400)))
    se = x.std() / 20
    assert (found.hi - found.lo) / (2 * 1.96 * se) == pytest.approx(1, abs=0.06)


def test_seeds_count_by_student():
    """Differences .1, .2, .6 without spread over documents: mean .3 ± t₂ · s / √3."""
    one = np.ones(50)
    a = pd.concat([rows(one * v, one, seed=s) for s, v in enumerate((0.1, 0.2, 0.6))])
    found = paired_bootstrap(a, a.assign(num=0.0))
    half = 4.3027 * math.sqrt(0.07 / 3)
    assert found[:3] == pytest.approx((0.3, 0.3 - half, 0.3 + half), rel=1e-3)
    test = stats.ttest_1samp([0.1, 0.2, 0.6], 0)
    assert found.p == pytest.approx(test.pvalue) and found.n_seeds == 3


def test_models_count_where_there_are_several():
    """Two models whose documents are their own: .1 and .5, whatever their seeds."""
    one = np.ones(50)
    a = pd.concat(
        [rows(one * v, one, seed=s).assign(model=m)
         for s, m, v in ((0, 0, 0.0), (1, 0, 0.2), (0, 1, 0.4), (1, 1, 0.6))]
    )  # fmt: skip
    found = paired_bootstrap(a, a.assign(num=0.0))
    assert (found.n_documents, found.n_seeds) == (100, 2)
    assert found[:3] == pytest.approx((0.3, 0.3 - 12.706 * 0.2, 0.3 + 12.706 * 0.2), rel=1e-3)


def test_intervals_cover_the_truth():
    """Two systems that are the same, over three seeds and 40 documents: p < .05 in about 5%."""
    g, wrong = np.random.default_rng(0), 0
    for trial in range(400):
        sides = []
        for _ in range(2):
            value = g.normal(0, 0.3, (3, 1)) + g.normal(0, 1, (3, 40))
            sides.append(pd.concat([rows(value[s], np.ones(40), seed=s) for s in range(3)]))
        wrong += paired_bootstrap(*sides, n_boot=100, seed=trial).p < 0.05
    assert wrong / 400 <= 0.08  # 5%, and three standard errors


def test_holm_by_hand():
    """.01 · 4, .02 · 3, then .03 · 2 = .06 as well, .5 · 1; NaN is no member."""
    found = holm(np.array([0.5, 0.01, np.nan, 0.03, 0.02]))
    assert found == pytest.approx([0.5, 0.04, np.nan, 0.06, 0.06], nan_ok=True)


def test_documents_missing_on_one_side_count_as_empty():
    a = rows([2.0, 1], [2.0, 2])
    b = rows([1.0], [2.0])
    assert paired_bootstrap(a.assign(metric="ap"), b).diff == pytest.approx(1 / 4)
    assert paired_bootstrap(a, b).diff == pytest.approx(3 / 4 - 1 / 2)


def test_reconstruction_is_compared_on_the_same_documents_only():
    a = rows([2.0, 1], [2.0, 2]).assign(metric="fvu")
    with pytest.raises(ValueError, match="same documents"):
        paired_bootstrap(a, a.iloc[:1])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.assign(group="other"), "seeds and groups"),
        (lambda r: r.assign(seed=3), "seeds and groups"),
        (lambda r: r.assign(doc=r["doc"] + 100), "documents"),
        (lambda r: r.drop(columns="den"), "lack den"),
        (lambda r: r.iloc[:0], "lack any row"),
        (lambda r: r.assign(den=0.0), "nothing to compare"),
        (lambda r: r.assign(metric=["fvu", "l0", "l0"]), "mix metrics"),
    ],
)
def test_unfair_comparisons_are_refused(change, match):
    a = rows([1.0, 2, 3], [3.0, 3, 3])
    with pytest.raises(ValueError, match=match):
        paired_bootstrap(a, change(a))
