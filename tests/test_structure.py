"""The structure sweep: its gains by hand, and which labels i.i.d. tokens leave alone."""

import numpy as np
import pandas as pd
import pytest

from lab.runs import structure
from lab.worlds.microworld.config import MicroworldConfig
from lab.worlds.microworld.text import LABELS, MicroworldText


def documents():
    """conv and its null against topk over 40 documents that are all alike: every gain is exact.

    FVU 0.2, 0.3, 0.4; AP of document labels 0.8, 0.7, 0.5.
    """
    rows = []
    for variant, fvu, ap in (("conv", 0.2, 0.8), ("shuffled(conv)", 0.3, 0.7), ("topk", 0.4, 0.5)):
        for metric, group, num in (("fvu", "all", fvu), ("ap", "document", ap)):
            rows += [(variant, 0, metric, group, doc, num, 1.0) for doc in range(40)]
    columns = ["variant", "seed", "metric", "group", "doc", "num", "den"]
    return pd.DataFrame(rows, columns=columns).assign(ablation="temporal=0.5")


def test_gains_by_hand():
    """More FVE is a gain, and its interval is the right way round."""
    table = documents()
    gains = structure.gains(table, "topk", 50).set_index(["baseline", "metric"])
    assert set(gains["variant"]) == {"conv"} and set(gains["temporal"]) == {0.5}
    expected = {
        ("topk", "fve"): 0.2,
        ("topk", "ap"): 0.3,
        ("shuffled(conv)", "fve"): 0.1,
        ("shuffled(conv)", "ap"): 0.1,
    }
    assert dict(gains["diff"]) == pytest.approx(expected)
    assert (gains["hi"] - gains["lo"]).max() == pytest.approx(0, abs=1e-12)
    fvu = (table["metric"] == "fvu") & (table["variant"] == "conv")
    table.loc[fvu, "num"] += np.linspace(-0.1, 0.1, 40)
    gain = structure.gains(table, "topk", 200).set_index(["baseline", "metric"]).loc["topk", :]
    lo, diff, hi = gain.loc["fve", ["lo", "diff", "hi"]]
    assert lo < diff < hi and diff == pytest.approx(0.2)
    with pytest.raises(ValueError, match="'l1', against which"):
        structure.gains(table, "l1")


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


def test_without_order_the_documents_and_sections_labels_stay_and_tokens_bring_their_own():
    ordered, half, loose = text(1.0), text(0.5), text(0.0)
    for name, spec in LABELS.items():
        for made in (half, loose):
            pairs = [(a.labels[name], b.labels[name]) for a, b in zip(ordered, made, strict=True)]
            same = all(np.array_equal(a, b) for a, b in pairs)
            assert same == (spec.scale != "token"), name
    assert repeats(loose, "theme") == repeats(ordered, "theme") > 0.9
    # a word tells its part of speech wherever it was drawn from
    pos = {}
    for made in (ordered, half, loose):
        for document in made:
            for token, of in zip(document.tokens, document.labels["pos"], strict=True):
                assert pos.setdefault(token, of) == of
    moved = [(a.tokens != b.tokens).mean() for a, b in zip(ordered, half, strict=True)]
    assert 0.4 < np.mean(moved) < 0.5  # half are drawn, a few of which are the same word
    assert all(set(np.unique(d.boundary)) == {0, 3} for d in loose)
