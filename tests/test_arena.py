"""The arena's figures and tables: ranks, curves and cells by hand."""

import numpy as np
import pandas as pd
import pytest
import synthetic_tables as made

from lab.paper.figures import arena, probing, structure
from lab.paper.tables import arena as tables
from lab.paper.tables import glance
from lab.paper.tables import structure as structure_table
from lab.paper.tables.structure import GAINS
from lab.results import tidy
from tsae.errors import UserError


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
        for metric in GAINS
    ]
    rows += [(0.0, "hierarchical", "topk", metric, -0.02, -0.03, -0.01) for metric in GAINS]
    columns = ["temporal", "variant", "baseline", "metric", "diff", "lo", "hi"]
    return pd.DataFrame(rows, columns=columns)


def test_structure_shows_each_gain_with_its_interval():
    figure = structure.structure(gains())
    first, second = figure.axes[:2]
    assert [first.get_title(), second.get_title()] == ["Conv", "Hierarchical"]
    bars = first.containers[0].lines[2][0].get_segments()
    assert np.allclose(
        [segment[:, 1] for segment in bars], [[-0.01, 0.02], [0.04, 0.07], [0.09, 0.12]]
    )
    # Hierarchical encodes token by token: one curve, against the baseline alone.
    assert [len(panel.containers) for panel in (first, second)] == [2, 1]
    with pytest.raises(UserError, match="run the structure sweep"):
        structure.structure(gains().assign(metric="other"))


def test_structure_in_numbers_is_bold_where_the_interval_excludes_zero():
    lines = structure_table.structure_table(gains()).splitlines()
    heads = [line for line in lines if "tokens in place" in line]
    assert len(heads) == 6 and "0\\% of tokens in place, against TopK" in heads[0]
    assert "its own shuffled null" in heads[1]
    conv, hierarchical = lines[lines.index(heads[0]) + 1 :][:2]
    assert conv.startswith("Conv") and "textbf" not in conv
    assert hierarchical.count(r"\textbf{\textminus 0.020 [") == 4


def test_intervals_without_structure_are_counted():
    found = structure_table.facts(gains()).set_index("key")["value"]
    # Against TopK conv's four hold 0 and hierarchical's four lie below; conv's null holds 0.
    counts = {"topk": 8, "topk above": 0, "topk below": 4, "null": 4, "null above": 0}
    assert found[list(counts)].to_dict() == counts and found["null below"] == 0
    assert found["conv fve null at 0.5"] == 0.025 and found["hierarchical fve topk at 0"] == -0.02


def test_the_main_table_marks_what_differs_and_what_was_moved():
    results = pd.concat(
        [
            small(),
            table(
                ("microworld", "topk", 0, "l0_as_trained", "by construction", 12),
                ("microworld", "conv", 0, "l0_as_trained", "threshold", 14),
            ),
        ]
    )
    verdict = {
        ("microworld", "conv", "fve", "all"): -1,
        ("microworld", "conv", "smoothness", "all"): 1,
    }
    lines = glance.glance_table(results, verdict).splitlines()
    conv = next(line for line in lines if line.startswith("Conv"))
    cells = [cell.strip() for cell in conv.removesuffix(r"\\").split("&")]
    assert cells[1] == r"12.0\rlap{$^\ddagger$}" and cells[2] == r"\textit{.800}"
    assert cells[-1] == r"\textbf{1.000}"
    topk = next(line for line in lines if line.startswith("TopK"))
    assert "dagger" not in topk and "textbf" not in topk and " .900 " in topk
    assert sum("cmidrule(lr){1-" in line for line in lines) == 1  # above the nulls


def test_verdicts_follow_the_interval_and_know_which_way_is_better():
    rows = [
        (variant, "microworld", 0, "", metric, group, doc, num * 4, 4.0)
        for variant, fvu, right in (("topk", 0.3, 0.5), ("conv", 0.2, 0.5))
        for metric, group, num in (("fvu", "all", fvu), ("probe_sparse", "token:pos=a", right))
        for doc in range(20)
    ]
    columns = ["variant", "world", "seed", "ablation", "metric", "group", "doc", "num", "den"]
    found = glance.verdicts(pd.DataFrame(rows, columns=columns))
    assert found == {
        ("microworld", "conv", "fve", "all"): 1,  # less is unexplained
        ("microworld", "conv", "probe_sparse", "token|k=5"): 0,
    }


def test_what_the_tables_do_not_allow_is_left_out():
    nothing = {"results": made.results()}
    assert arena.drawn(nothing, False) == {} and probing.drawn(nothing, False) == {}
    assert structure.drawn(nothing, False) == {} == glance.made(nothing, False)
    assert set(tables.made(nothing, False)) == {"table_arena_truth", "table_arena_time"}
    everything = {"results": small(), "structure": gains()}
    assert arena.drawn(everything, True)["arena"].get_suptitle() == tidy.SMOKE
    assert set(structure.drawn(everything, True)) == {"structure"}
    assert set(tables.made(everything, False)) == {"table_arena_probing"}
    assert set(structure_table.made(everything, False)) == {"table_structure"}
