"""The arena's figures and tables: ranks, curves and cells by hand."""

import numpy as np
import pandas as pd
import pytest
import synthetic_tables as made

from tsae.errors import UserError
from tsae.figures import arena, probing
from tsae.tables import arena as tables
from tsae.tables import tidy


def table(*rows):
    return pd.DataFrame([made.row(*row) for row in rows])


def small():
    """Two learned systems and a null in one world: FVE 0.9, 0.8, 0.7; smoothness 3, 1, 2."""
    rows = []
    for variant, fve, smooth in (
        ("topk", 0.9, 3), ("conv", 0.8, 1), ("ema(topk)", 0.7, 2),
    ):  # fmt: skip
        at = ("microworld", variant, 0)
        rows += [
            (*at, "l0", "all", 12),
            (*at, "fve", "all", fve),
            (*at, "smoothness", "all", smooth),
        ]
        for place, scale in enumerate(tidy.SCALES):
            for k, gain in ((1, 0.0), (5, 0.1), ("all", 0.2)):
                rows.append((*at, "probe_sparse", f"{scale}|k={k}", 0.6 + 0.05 * place + gain))
                rows.append((*at, "probe_residual", f"{scale}|k={k}", 0.7 + gain))
            rows.append((*at, "probe_sparse", f"{scale}|k=5|group=slow", 0.1))
    return table(*rows)


def test_ranks_by_hand():
    found = arena.ranks(tidy.prepare(small())).set_index(["metric", "system"])
    assert found.loc["FVE", "rank"].to_dict() == {"topk": 1, "conv": 2, "ema(topk)": 3}
    assert found.loc["smoothness", "rank"].to_dict() == {"topk": 3, "conv": 1, "ema(topk)": 2}
    assert found.loc["FVE", "share"].to_dict() == {"topk": 1, "conv": 0.5, "ema(topk)": 0}
    assert set(found.loc["probe, document", "rank"]) == {2}  # a tie of three
    assert "SCR" not in found.index.get_level_values(0)


def test_the_arena_lists_nulls_last_and_marks_what_is_not_matched():
    results = small()
    results.loc[(results["variant"] == "conv") & (results["metric"] == "l0"), "value"] = 13
    figure = arena.arena(results)
    (panel,) = figure.axes
    # TopK: ranks 1, 3 and three ties; conv: 2, 1 and the same ties, so conv leads.
    assert [t.get_text() for t in panel.get_yticklabels()] == ["Conv†", "TopK", "EMA(TopK)"]
    assert [t.get_text() for t in panel.get_xticklabels()][:2] == ["FVE", "probe, document"]
    assert sorted({t.get_text() for t in panel.texts}) == ["1", "2", "3"]
    with pytest.raises(UserError, match="none of the arena's metrics"):
        arena.arena(table(("microworld", "topk", 0, "l0", "all", 12)))


def test_probing_curves_put_all_beyond_the_largest_k_and_groups_aside():
    curves = probing.curves(tidy.prepare(small()), "probe_sparse")
    assert sorted(curves["k"].unique()) == [1, 5, 20]
    assert curves["value"].min() == pytest.approx(0.6)
    figure = probing.probing(small())
    assert [axes.get_title() for axes in figure.axes] == [
        f"microworld: {scale}s" for scale in tidy.SCALES
    ]
    lines = [
        line.get_xydata().tolist() for line in figure.axes[0].lines if len(line.get_xydata()) > 2
    ]
    assert [[1, 0.7], [5, 0.8], [20, 0.9]] in [np.round(line, 6).tolist() for line in lines]
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert shown == {"TopK", "Conv", "residual stream"}
    with pytest.raises(UserError, match="no 'probe_sparse' rows"):
        probing.probing(made.results())


def gains():
    rows = [
        (s, "conv", baseline, metric, gain * s, gain * s - 0.01, gain * s + 0.02)
        for s in (0.0, 0.5, 1.0)
        for baseline, gain in (("topk", 0.1), ("shuffled(conv)", 0.05))
        for metric in arena.GAINS
    ]
    columns = ["temporal", "variant", "baseline", "metric", "diff", "lo", "hi"]
    return pd.DataFrame(rows, columns=columns)


def test_structure_shows_each_gain_with_its_interval():
    figure = arena.structure(gains())
    assert [axes.get_title() for axes in figure.axes] == [
        f"gain in {name}" for name in arena.GAINS.values()
    ]
    bars = figure.axes[0].containers[0].lines[2][0].get_segments()
    assert np.allclose(
        [segment[:, 1] for segment in bars], [[-0.01, 0.02], [0.04, 0.07], [0.09, 0.12]]
    )
    assert len(figure.axes[0].containers) == 2
    with pytest.raises(UserError, match="run the structure sweep"):
        arena.structure(gains().assign(metric="other"))


def test_what_the_tables_do_not_allow_is_left_out():
    nothing = {"results": made.results()}
    assert arena.drawn(nothing, False) == {} and probing.drawn(nothing, False) == {}
    assert set(tables.made(nothing, False)) == {"table_arena_truth", "table_arena_time"}
    everything = {"results": small(), "structure": gains()}
    assert set(arena.drawn(everything, True)) == {"arena", "structure"}
    assert arena.drawn(everything, True)["arena"].get_suptitle() == tidy.SMOKE
    assert set(tables.made(everything, False)) == {"table_arena_probing"}


def test_one_seed_has_its_interval_over_documents_and_several_their_error():
    documents = pd.DataFrame(
        [
            ("microworld", "topk", 0, "", "probe_sparse", "document:topic=a", doc, doc % 2, 1.0)
            for doc in range(400)
        ],
        columns=["world", "variant", "seed", "ablation", "metric", "group", "doc", "num", "den"],
    )
    one = table(("microworld", "topk", 0, "probe_sparse", "document|k=5", 0.5))
    text = tables.bounded(one, "probe_sparse", "document|k=5", documents)
    low, high = (float(end) for end in text.split("[")[1].split("]")[0].split(","))
    # A share of 1/2 over 400 documents: ± 1.96 · 0.5 / 20 = 0.049.
    assert text.startswith("0.500") and (low, high) == pytest.approx((0.451, 0.549), abs=0.006)
    assert tables.bounded(one, "probe_sparse", "document|k=1", documents) == "--"
    two = pd.concat([one, one.assign(seed=1, value=0.7)])
    assert tables.bounded(two, "probe_sparse", "document|k=5", documents).startswith("0.600")
    assert r"$\pm$\,0.100" in tables.bounded(two, "probe_sparse", "document|k=5", documents)


def test_the_probing_table_ends_each_world_with_the_residual_stream():
    lines = tables.arena_table(small(), "probing").splitlines()
    rows = [line.split(" & ")[0] for line in lines if " & " in line]
    assert rows == ["System", "TopK", "Conv", "EMA(TopK)", "Residual stream"]
    residual = next(line for line in lines if line.startswith("Residual"))
    assert residual.count("0.700") == 3 and residual.count("0.800") == 3
