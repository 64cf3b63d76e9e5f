"""Trackers of several settings over the same codes, and texts without chains, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
from test_eval_dependencies import Codes, Store, World

from lab.measures.succession.events import Activity, Counter
from lab.measures.succession.steps import Match
from lab.measures.succession.tracking import between_steps, measure, named
from lab.measures.succession.unchained import exchanged, false_discovery, shuffled


def activity(rows, piece):
    return Activity(scipy.sparse.csc_array(np.array(rows, bool)), np.array(piece))


def test_strength_between_steps_is_the_mean_over_members():
    C_LFF = np.zeros((2, 4, 4))
    C_LFF[0, 0, 2], C_LFF[0, 1, 3], C_LFF[1, 3, 0] = 0.6, 0.2, 0.5
    matrix = lambda lag: scipy.sparse.csr_array(C_LFF[lag - 1])  # noqa: E731
    tracker = SimpleNamespace(n_latents=4, window=2, matrix=matrix)
    found = {7: Match((0, 1), (0.0, 0.0), 1.0), 9: Match((2, 3), (0.0, 0.0), 1.0)}
    table = between_steps(tracker, found, np.array([0.1, 0.1, 0.3, 0.1]))
    rows = table.set_index(["source", "target", "lag"])
    assert len(rows) == 2
    assert rows.loc[(0, 1, 1), "C"] == pytest.approx((0.6 + 0.2) / 4)
    assert rows.loc[(1, 0, 2), "C"] == pytest.approx(0.5 / 4)


def test_the_window_bounds_the_lags_that_a_tracker_reads():
    """a → b is 3 tokens long, so that a window of 2 cannot have its lag right."""
    sae = Codes()
    sae.cfg = SimpleNamespace(d_sae=4, k=2, d_in=4)
    options = {"limit_tokens": 2000, "selection_tokens": 0, "batch_size": 8, "seed": 0}
    options |= {"device": "cpu", "progress": False, "track_tokens": 3000, "lr": 1e-3}
    settings = ({"window": 4}, {"window": 2}, {"bits": 32})
    found = measure({"s": sae}, Store(), World(), settings=settings, **options)["s"].rows
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
    assert named({"alpha": 0.05}) == "alpha=0.05" and named({}) == "base"


def test_exchanged_documents_keep_bursts_and_kinds():
    # Documents 0 and 1 are of kind 0, 2 of kind 1 and alone; column 1 moves.
    rows = [[1, 0], [0, 1], [1, 1], [0, 0], [0, 1], [1, 1]]
    made = exchanged(
        activity(rows, [0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 0, 0, 1]), np.array([False, True]),
        np.random.default_rng(0),
    )  # fmt: skip
    assert made.piece_N.tolist() == [0, 0, 1, 1]
    # Column 0 of its own document, column 1 of the other, both two tokens long.
    assert made.active_NF.toarray().astype(int).tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]


def test_shuffled_text_keeps_its_tokens():
    before = activity(np.eye(6), [0, 0, 0, 1, 1, 1])
    after = shuffled(before, np.random.default_rng(1))
    assert after.piece_N.tolist() == before.piece_N.tolist()
    assert after.active_NF.sum(0).tolist() == [1] * 6
    assert not np.array_equal(after.active_NF.toarray(), before.active_NF.toarray())


def test_a_chain_is_gone_from_texts_without_chains():
    rng = np.random.default_rng(0)
    rows = np.zeros((4000, 4))
    for start in rng.choice(3990, 400, replace=False):
        rows[start, 0] = rows[start + 2, 1] = 1  # 0 → 1 after two tokens
        rows[rng.integers(4000), 2 + rng.integers(2)] = 1
    text = activity(rows, np.arange(4000) // 40)
    found = false_discovery(text, np.zeros(4000, int), 3, "labels", lags=range(1, 4), seed=0)
    assert [r["group"] for r in found[::2]] == ["labels|shuffled", "labels|exchanged"]
    assert all(r["value"] == 0 for r in found)
    assert [r["n"] for r in found[::2]] == [3, 3]


def test_an_offset_of_nothing_is_drawn_only_from_least_0():
    counter = Counter(activity(np.eye(4), [0, 0, 1, 2]), np.array([[0, 1, 1]]))
    drawn = {
        least: np.stack([counter.shifts(np.random.default_rng(s), least) for s in range(40)])
        for least in (0, 1)
    }
    assert set(drawn[0][:, 0]) == {0, 1} and set(drawn[1][:, 0]) == {1}
    assert (drawn[0][:, 1:] == 0).all() and (drawn[1][:, 1:] == 0).all()  # documents of one token
