"""The structure sweep: its gains by hand, and what i.i.d. text leaves of the labels."""

import numpy as np
import pandas as pd
import pytest

from lab.runs import structure
from lab.worlds.microworld.config import MicroworldConfig
from lab.worlds.microworld.text import MicroworldText


def documents():
    """conv and its null against topk over 40 documents that are all alike: every gain is exact.

    FVU 0.2, 0.3, 0.4; F1 of a document label 0.8, 0.7, 0.5, of its frequency-matched null 0.6,
    0.6, 0.5.
    """
    rows = []
    for variant, fvu, f1, null in (
        ("conv", 0.2, 0.8, 0.6),
        ("shuffled(conv)", 0.3, 0.7, 0.6),
        ("topk", 0.4, 0.5, 0.5),
    ):
        for metric, group, num in (
            ("fvu", "all", fvu),
            ("recovery_f1", "document:topic=a", f1),
            ("recovery_f1_matched", "document:topic=a", null),
        ):
            rows += [(variant, 0, metric, group, doc, num, 1.0) for doc in range(40)]
    return pd.DataFrame(rows, columns=["variant", "seed", "metric", "group", "doc", "num", "den"])


def test_gains_by_hand():
    gains = structure._gains(documents(), "topk", 50).set_index(["baseline", "metric"])
    assert set(gains["variant"]) == {"conv"}
    expected = {
        ("topk", "fve"): 0.2,
        ("topk", "document F1"): 0.3,
        ("topk", "document F1 excess"): 0.2,
        ("shuffled(conv)", "fve"): 0.1,
        ("shuffled(conv)", "document F1"): 0.1,
        ("shuffled(conv)", "document F1 excess"): 0.1,
    }
    assert dict(gains["diff"]) == pytest.approx(expected)
    assert (gains["hi"] - gains["lo"]).max() == pytest.approx(0, abs=1e-12)


def test_more_fve_is_a_gain_with_its_interval_the_right_way_round():
    table = documents()
    fvu = (table["metric"] == "fvu") & (table["variant"] == "conv")
    table.loc[fvu, "num"] += np.linspace(-0.1, 0.1, 40)
    gain = structure._gains(table, "topk", 200).set_index(["baseline", "metric"]).loc["topk", :]
    lo, diff, hi = gain.loc["fve", ["lo", "diff", "hi"]]
    assert lo < diff < hi and diff == pytest.approx(0.2)


def test_a_sweep_needs_its_baseline(tmp_path):
    with pytest.raises(ValueError, match="'topk', against which"):
        structure.run_structure(
            tmp_path, strengths=[0], runs=[{"variant": "conv"}], options={}, tokens={}
        )


def text(temporal):
    world = MicroworldText(MicroworldConfig(n_entities=4, temporal=temporal))
    return [world.document("train", i, i) for i in range(60)]


def repeats(documents, name):
    """Share of neighbouring tokens with the same class, among those that have one."""
    same = total = 0
    for document in documents:
        label = document.labels[name]
        both = (label[1:] >= 0) & (label[:-1] >= 0)
        same, total = same + (label[1:] == label[:-1])[both].sum(), total + both.sum()
    return same / total


def test_without_structure_labels_stay_defined_and_lose_their_time_scale():
    ordered, loose = text(1.0), text(0.0)
    assert repeats(ordered, "domain") == 1.0 and repeats(ordered, "theme") > 0.9
    # Eight domains in equal shares: two i.i.d. draws agree one time in eight.
    assert repeats(loose, "domain") == pytest.approx(1 / 8, abs=0.02)
    for name in ordered[0].labels:
        frequent = [
            np.concatenate([d.labels[name] for d in part]) >= 0 for part in (ordered, loose)
        ]
        assert frequent[0].mean() == pytest.approx(frequent[1].mean(), abs=0.06)
    assert all(set(np.unique(d.boundary)) == {0, 3} for d in loose)
    half = text(0.5)
    # Kept pairs (a quarter) agree always, the others one time in eight.
    assert repeats(half, "domain") == pytest.approx(0.25 + 0.75 / 8, abs=0.02)
