"""Runs and survival, by hand and against a known process."""

import math

import pytest
import torch

from lab.measures.time.lifecycle import LifecycleTracker, half_life, kaplan_meier, mean_dwell, runs

# pieces:   0 0 0 0 0 1 1 1 1
PIECE = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1])
ACTIVE = torch.tensor(
    [
        [1, 1, 0, 1, 0, 0, 1, 1, 0],  # gap of 1 inside piece 0; none across
        [0, 0, 0, 1, 1, 1, 1, 0, 0],  # 2 tokens cut off at the end of piece 0, then 2 more
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
).T.bool()


def test_runs_by_hand():
    run = runs(ACTIVE, PIECE)
    rows = list(zip(*(run[k].tolist() for k in run), strict=True))
    # latent, start, length, born, ended
    assert rows == [
        (0, 0, 2, False, True),
        (0, 3, 1, True, True),
        (0, 6, 2, True, True),
        (1, 3, 2, True, False),
        (1, 5, 2, False, True),
        (3, 8, 1, True, False),
    ]


def test_tracker_by_hand():
    life = LifecycleTracker(4, 5)
    life.update(ACTIVE, PIECE)
    assert life.births_F.tolist() == [2, 1, 0, 1]
    assert life.deaths_F.tolist() == [3, 1, 0, 0]
    assert life.links == 7
    assert life.ended_FL[0].tolist() == [0, 1, 2, 0, 0, 0]
    assert life.censored_FL[1].tolist() == [0, 0, 1, 0, 0, 0]
    assert life.gaps_FL[0].tolist() == [0, 1, 0, 0, 0, 0]
    table = life.table()
    assert table.to_dict("list") == {
        "dwell": [1, 2],
        "count": [2, 4],
        "censored": [1, 1],
    }
    assert life.half_life(torch.tensor([0])) == 2  # S(1) = 2/3, S(2) = 0
    assert life.mean_dwell(torch.tensor([0])) == pytest.approx(1 + 2 / 3)


def test_two_updates_equal_one_when_pieces_are_whole():
    whole, parts = LifecycleTracker(4, 5), LifecycleTracker(4, 5)
    whole.update(ACTIVE, PIECE)
    parts.update(ACTIVE[:5], PIECE[:5])
    parts.update(ACTIVE[5:], PIECE[5:])
    for name in ("ended_FL", "censored_FL", "births_F", "deaths_F", "gaps_FL"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_kaplan_meier_by_hand():
    ended = torch.tensor([0, 2, 1, 1, 0])
    censored = torch.tensor([0, 0, 1, 0, 1])
    # at risk: 6 at 1 token; 2 + 1 at 2 (the run cut there is not); 2 at 3; none at 4
    survival = kaplan_meier(ended, censored)
    assert survival.tolist() == pytest.approx([1, 4 / 6, 4 / 9, 2 / 9, 2 / 9])
    assert float(half_life(survival)) == 2
    assert float(mean_dwell(survival)) == pytest.approx(1 + 4 / 6 + 4 / 9 + 2 / 9)


def test_half_life_is_infinite_when_most_runs_are_cut():
    survival = kaplan_meier(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 3]))
    assert float(half_life(survival)) == math.inf


@pytest.mark.parametrize(("p_end", "window"), [(0.25, 8), (0.25, 64), (0.1, 12)])
def test_geometric_dwell_times_give_their_median(p_end, window):
    """P(dwell > d) = (1 − p)^d, so the median is the first d with (1 − p)^d ≤ ½, however cut."""
    g = torch.Generator().manual_seed(0)
    n_pieces = 6000
    state = torch.zeros(n_pieces, window, dtype=torch.bool)
    now = torch.rand(n_pieces, generator=g) < 0.5
    for t in range(window):
        u = torch.rand(n_pieces, generator=g)
        now = torch.where(now, u > p_end, u < 0.3)
        state[:, t] = now
    life = LifecycleTracker(1, window)
    life.update(state.reshape(-1, 1), torch.arange(n_pieces).repeat_interleave(window))
    expected = math.ceil(math.log(0.5) / math.log(1 - p_end))
    assert life.half_life(torch.tensor([0])) == expected


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="max_length=3"):
        LifecycleTracker(1, 3).update(torch.ones(5, 1).bool(), torch.zeros(5).long())
