"""Dependency tables: hand-made series, known entropies, and the rate of false discoveries."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from lab.measures.succession.edges import (
    Counter,
    candidates,
    dependencies,
    direct,
    false_discovery,
    transfer_entropy,
)
from lab.measures.succession.events import Activity, exchanged, shuffled
from lab.measures.succession.steps import Text, pattern_detection
from lab.worlds.base import ChainEdge


def activity(series, pieces=None, onsets=False):
    """From [N, F] zeros and ones; ``pieces``: lengths of the documents."""
    made = np.asarray(series)
    piece = np.repeat(np.arange(len(pieces or [0])), pieces or [len(made)])
    whole = Activity(scipy.sparse.csc_array(made), piece)
    return whole.begins() if onsets else whole


def test_what_begins_by_hand():
    found = activity(np.array([[1.0, 2, 0, 1, 1, 1]]).T, [4, 2], onsets=True)
    # A document begins anew, so what is active there has started there.
    assert found.active_NF.toarray()[:, 0].tolist() == [1, 0, 0, 1, 1, 0]
    assert found.half(True).active_NF.toarray()[:, 0].tolist() == [1, 0]
    again = Activity(found.active_NF, np.array([0, 1, 1, 1, 2, 3])).begins()
    assert again.active_NF.toarray()[:, 0].tolist() == [1, 0, 0, 1, 1, 0]


def test_tables_count_what_they_say():
    rng = np.random.default_rng(0)
    series, pieces = (rng.random((60, 3)) < 0.4).astype(int), [25, 1, 34]
    edges = np.array([[0, 1, 1], [1, 2, 3], [2, 2, 2], [0, 2, 30]])
    counter = Counter(activity(series, pieces), edges)
    shift = np.array([7, 0, 11])
    for shifted in (None, shift):
        moved, start = series.copy(), 0
        for length, s in zip(pieces, shift, strict=True):
            if shifted is not None:
                moved[start : start + length] = np.roll(series[start : start + length], s, axis=0)
            start += length
        expected = np.zeros((4, 2, 2, 2))
        for e, (source, target, lag) in enumerate(edges):
            start = 0
            for length in pieces:
                for t in range(start + lag, start + length):
                    j = moved[t - lag, source]
                    expected[e, j, series[t, target], series[t - 1, target]] += 1
                start += length
        keep = np.array([True, False, True, True])
        assert np.array_equal(counter.tables(np.ones(4, bool), shifted), expected)
        assert np.array_equal(counter.tables(keep, shifted), expected[keep])


def test_shifts_range_from_none_to_one_below_the_length():
    counter = Counter(activity(np.ones((9, 1)), [4, 1, 2, 2]), np.array([[0, 0, 1]]))
    drawn = np.stack([counter.shifts(np.random.default_rng(seed)) for seed in range(200)])
    assert [sorted(set(column)) for column in drawn.T] == [[0, 1, 2, 3], [0], [0, 1], [0, 1]]


def test_transfer_entropy_by_hand():
    # i_t = j_{t−ℓ} with j even and i_{t−1} independent: one bit, all that there is.
    copied = np.zeros((2, 2, 2))
    copied[0, 0], copied[1, 1] = 1, 1
    independent = np.ones((2, 2, 2))
    # i_t = i_{t−1}: j adds nothing to the target's own past, although it equals i_t as well.
    persistent = np.zeros((2, 2, 2))
    persistent[0, 0, 0], persistent[1, 1, 1] = 5, 5
    # i_t = j xor i_{t−1}: nothing without the past, everything with it.
    xor = np.zeros((2, 2, 2))
    for j in (0, 1):
        for past in (0, 1):
            xor[j, j ^ past, past] = 3
    found = transfer_entropy(np.stack([copied, independent, persistent, xor]))
    assert found.tolist() == pytest.approx([1.0, 0.0, 0.0, 1.0])
    assert transfer_entropy(np.zeros((1, 2, 2, 2))).tolist() == [0.0]


def test_transfer_entropy_of_a_copied_sequence_is_its_entropy():
    rng = np.random.default_rng(0)
    p, n, lag = 0.2, 40_000, 3
    source = rng.random(n) < p
    series = np.stack([source, np.roll(source, lag)], 1)
    table = dependencies(
        activity(series, [n // 2, n // 2]), lags=(lag,), edges=np.array([[0, 1, lag]]), shifts=50
    )
    entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert table["te"][0] == pytest.approx(entropy, abs=0.02)
    assert table["C"][0] == pytest.approx(1.0)
    assert table["p"][0] == table["q"][0] == pytest.approx(1 / 51)  # never reached in 50 shifts


def test_candidates_by_hand():
    # 0 at every fifth token and 1 two later: n = 20 together, e = 20 · 20 / 98.
    series = np.zeros((100, 3))
    series[::5, 0], series[2::5, 1], series[50, 2] = 1, 1, 1
    found = candidates(activity(series), (1, 2, 3), 10, min_count=10, min_z=3)
    assert found[0].tolist() == [0, 1, 2] or found[0].tolist() == [1, 0, 3]
    assert {tuple(edge) for edge in found} == {(0, 1, 2), (1, 0, 3)}
    assert len(candidates(activity(series), (1, 2, 3), 10, min_count=21, min_z=3)) == 0
    assert len(candidates(activity(series), (1, 2, 3), 1, min_count=10, min_z=3)) == 1


def noise(seed, N=4000, F=12, documents=40):
    """Latents in bursts, at a rate that differs from document to document: no edge is true."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(2.0, 0.05, (documents, F))
    on = rng.random((documents, N // documents, F)) < rate[:, None]
    on[:, 1:] |= on[:, :-1] & (rng.random(on[:, 1:].shape) < 0.5)
    return on.reshape(N, F), [N // documents] * documents


def test_false_discoveries_without_any_dependence():
    """At q = .05 a table without a true edge should report any edge in 5% of cases; 10% at most
    are allowed. Bursts and topics are there, and the strongest of 528 pairs and lags are tested."""
    false = tested = small = 0
    for seed in range(40):
        series, pieces = noise(seed)
        table = dependencies(
            activity(series, pieces), max_edges=40, min_count=5, min_z=0, seed=seed
        )
        tested += len(table)
        small += int((table["p"] <= 0.05).sum())
        false += bool((table["q"] <= 0.05).any())
    assert tested > 1000
    assert false <= 4  # of 40 tables
    assert small / tested < 0.08  # p-values themselves are uniform or larger


def test_planted_edges_are_found_with_their_lags():
    series, pieces = noise(0)
    rng = np.random.default_rng(1)
    t = np.arange(len(series) - 5)
    for target, lag in ((10, 2), (11, 3)):
        source = 9 if target == 10 else 10
        start = series[t, source] & (rng.random(len(t)) < 0.8)
        series[t[start] + lag, target] = True
    table = dependencies(activity(series, pieces, onsets=True), lags=range(1, 6))
    table = direct(table[table["q"] <= 0.05])
    best = table[table["direct"]].head(2)
    assert {tuple(e) for e in best[["source", "target", "lag"]].values} == {(9, 10, 2), (10, 11, 3)}
    # 9 → 11 at lag 5 is there, but explained.
    through = table[(table["source"] == 9) & (table["target"] == 11) & (table["lag"] == 5)]
    assert len(through) == 1 and not through["direct"].iloc[0]


def test_q_is_benjamini_hochberg_by_hand():
    series, pieces = noise(3)
    edges = np.array([[0, 1, 1], [1, 2, 1], [2, 3, 1], [3, 4, 1]])
    table = dependencies(activity(series, pieces), edges=edges, shifts=50).sort_values("p")
    p = table["p"].to_numpy()
    expected = [min(4 / rank * p[rank - 1] for rank in range(k, 5)) for k in range(1, 5)]
    assert table["q"].tolist() == pytest.approx(expected)


def test_nothing_to_find_gives_an_empty_table():
    table = dependencies(activity(np.zeros((30, 2)), [10] * 3), shifts=5)
    assert len(table) == 0 and len(direct(table)) == 0
    with pytest.raises(ValueError, match="lags"):
        dependencies(activity(np.zeros((30, 2))), lags=(0, 1))


# ---- texts in which nothing depends ------------------------------------------------------------


def test_exchanged_documents_keep_bursts_and_kinds():
    # Documents 0 and 1 are of kind 0, 2 of kind 1 and alone; column 1 moves.
    rows = [[1, 0], [0, 1], [1, 1], [0, 0], [0, 1], [1, 1]]
    made, kinds = exchanged(
        activity(rows, [3, 2, 1]), np.array([0, 0, 0, 0, 0, 1]), np.array([False, True]),
        np.random.default_rng(0),
    )  # fmt: skip
    assert made.piece_N.tolist() == [0, 0, 1, 1] and kinds.tolist() == [0, 0, 0, 0]
    # Column 0 of its own document, column 1 of the other, both two tokens long.
    assert made.active_NF.toarray().astype(int).tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]


def test_shuffled_text_keeps_its_tokens():
    before = activity(np.eye(6), [3, 3])
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
    text = activity(rows, [40] * 100)
    found = false_discovery(text, np.zeros(4000, int), 3, "labels", range(1, 4), 0)
    assert [r["group"] for r in found] == ["labels|shuffled", "labels|exchanged"]
    assert all(r["value"] == 0 for r in found)
    assert [r["n"] for r in found] == [3, 3]


# ---- pattern detection --------------------------------------------------------------------------


def edge(source, target, low, high):
    return ChainEdge("step", source, target, low, high, 1.0)


def test_pattern_detection_by_hand():
    table = pd.DataFrame(
        [
            (7, 8, 3, 0.9),  # a → b, lag right
            (7, 8, 9, 0.2),
            (7, 9, 2, 0.5),  # a → c: not true
            (8, 9, 8, 0.4),  # b → c, lag wrong
        ],
        columns=["source", "target", "lag", "te"],
    )
    chains = [edge("a", "b", 2, 4), edge("b", "c", 2, 4)]
    rows = pattern_detection(table, chains, {"a": 7, "b": 8, "c": 9}, "abc")
    values = {r["metric"]: (r["value"], r["n"]) for r in rows}
    # Ranked a→b (true), a→c (false), b→c (true), then three ties at 0: AP = (1 + 2/3) / 2.
    assert values["chain_ap"] == (pytest.approx(5 / 6), 6)
    assert values["chain_ap_chance"] == (pytest.approx(2 / 6), 6)
    assert values["chain_precision"] == (pytest.approx(2 / 3), 3)
    assert values["chain_recall"] == (1.0, 2)
    assert values["chain_lag_accuracy"] == (0.5, 2)
    with pytest.raises(ValueError, match="no true edge"):
        pattern_detection(table, chains, {"c": 9}, "c")


def test_every_way_of_reading_steps_is_asked_for_all_arrows():
    """Where b has no event its arrows are missed, not taken out of the question."""
    table = pd.DataFrame({"source": [7], "target": [9], "lag": [3], "te": [0.5]})
    chains = [edge("a", "b", 2, 4), edge("b", "c", 2, 4), edge("a", "c", 2, 4)]
    for columns in ({"a": 7, "b": 8, "c": 9}, {"a": 7, "c": 9}):
        rows = pattern_detection(table, chains, columns, "abc")
        values = {r["metric"]: (r["value"], r["n"]) for r in rows}
        assert values["chain_recall"] == (pytest.approx(1 / 3), 3)
        assert values["chain_ap"][1] == 6 and values["chain_ap_chance"][0] == 0.5
        # a→c first, then 2 true among 5 ties: (1 + 2 · 3/6) / 3.
        assert values["chain_ap"][0] == pytest.approx(2 / 3)
    # Two classes that share an event have no edge between them.
    rows = pattern_detection(table.assign(target=7), chains, {"a": 7, "c": 7}, "abc")
    assert {r["metric"]: r["value"] for r in rows}["chain_recall"] == 0


def test_true_labels_recover_a_planted_chain():
    """The ceiling: labels as codes, through the whole path, give all edges and lags."""
    rng = np.random.default_rng(0)
    step = np.full((60, 100), -1)
    for row in step:
        t = rng.integers(0, 8)
        while t < 80:
            for kind in (0, 1, 2):
                row[t : t + 2] = kind
                t += 2 + rng.integers(1, 4)
            t += rng.integers(3, 12)
    empty = activity(np.zeros((6000, 1)), [100] * 60)
    steps = Text(empty, np.zeros(6000), step.flatten()).steps(3)
    assert (
        steps.active_NF.sum(0).tolist()
        == activity(step.reshape(-1, 1) == np.arange(3), [100] * 60, onsets=True)
        .active_NF.sum(0)
        .tolist()
    )
    table = dependencies(steps, lags=range(1, 8))
    table = direct(table[table["q"] <= 0.05])
    arrows = [edge("a", "b", 3, 5), edge("b", "c", 3, 5)]
    columns = {"a": 0, "b": 1, "c": 2}
    rows = pattern_detection(table[table["direct"]], arrows, columns, "abc")
    values = {r["metric"]: r["value"] for r in rows}
    assert values["chain_ap"] == values["chain_lag_accuracy"] == 1.0


def test_what_keeps_its_place_in_every_document_is_no_edge():
    """0 begins near the start of each document and 1 near the end of the opening, both by
    themselves: a shift in a circle cannot give that, another document does."""
    rng = np.random.default_rng(0)
    rows = np.zeros((100, 60, 2))
    rows[np.arange(100), rng.integers(0, 3, 100), 0] = 1
    rows[np.arange(100), 2 + rng.integers(1, 4, 100), 1] = 1
    table = dependencies(activity(rows.reshape(-1, 2), [60] * 100), lags=range(1, 6), shifts=200)
    assert len(table) > 0 and not (table["q"] <= 0.05).any()


def test_sources_are_put_into_another_document_of_their_kind():
    series = np.zeros((8, 2), int)
    series[0, 0] = series[5, 1] = 1  # document 0: source at place 0; document 1: target at place 1
    counter = Counter(activity(series, [4, 4]), np.array([[0, 1, 1]]))
    keep = np.ones(1, bool)
    assert counter.tables(keep)[0, 1, 1].sum() == 0
    assert counter.tables(keep, document_P=np.array([1, 0]))[0, 1, 1].sum() == 1
    kinds = np.repeat([0, 1], 4)
    drawn = [counter.others(np.random.default_rng(s), kinds).tolist() for s in range(9)]
    assert drawn == [[0, 1]] * 9
