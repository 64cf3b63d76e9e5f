"""Trackers of several settings over the same codes, by hand and on a text with two arrows."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
from eval_cases import read
from test_eval_dependencies import Codes, Store, World

from lab.measures.succession.steps import Match
from lab.measures.succession.tracking import between_steps, mean_over, measure


def test_strength_between_steps_is_the_mean_over_members():
    C_LFF = np.zeros((2, 4, 4))
    C_LFF[0, 0, 2], C_LFF[0, 1, 3], C_LFF[1, 3, 0] = 0.6, 0.2, 0.5
    matrix = lambda lag: scipy.sparse.csr_array(C_LFF[lag - 1])  # noqa: E731
    tracker = SimpleNamespace(n_latents=4, window=2, matrix=matrix)
    found = {7: Match((0, 1), (0.0, 0.0), 1.0), 9: Match((2, 3), (0.0, 0.0), 1.0)}
    rows = between_steps(tracker, mean_over(found, 4)).set_index(["source", "target", "lag"])
    assert len(rows) == 2
    assert rows.loc[(0, 1, 1), "C"] == pytest.approx((0.6 + 0.2) / 4)
    assert rows.loc[(1, 0, 2), "C"] == pytest.approx(0.5 / 4)


def test_the_window_bounds_the_lags_that_a_tracker_reads():
    """a → b is 3 tokens long, so that a window of 2 cannot have its lag right."""
    sae = Codes()
    sae.cfg = SimpleNamespace(d_sae=4, k=8, d_in=4)
    settings = ({"window": 4}, {"window": 2}, {"bits": 32}, {"learning": "rates"})
    options = {"track_tokens": 3000, "settings": settings}
    sizes = read(Store(), choose=2000, batch=8)
    found = measure({"s": sae}, sizes, World(), **options)["s"].rows
    value = {(r["metric"], r["group"]): r["value"] for r in found}
    assert value["tracker_lag_accuracy", "window=4"] == 1.0
    assert value["tracker_lag_accuracy", "window=2"] <= 0.5
    assert value["tracker_ap_chance", "window=4"] == pytest.approx(2 / 6)
    # n, its ages and sources, s; once: firings, sums, U, V, tokens and the step. 4 latents, at most
    # 4 successors, rank 64.
    ids, rest = 4 * 4 * (4 + 4) + 2 * 4 * 4, 2 * 4 * 4 + 2 * 4 * 64 * 4 + 4 + 8
    for group, window in (("window=4", 4), ("window=2", 2), ("bits=32", 8)):
        expected = window * (ids + 64 * 4) + rest
        assert value["tracker_mib", group] == pytest.approx(expected / 2**20)
    assert (
        0 < value["tracker_ap", "learning=rates"] < 1
        and value["tracker_recall", "learning=rates"] == 1
    )
