"""Figures and tables of composition: what stands where, and what they do without rows."""

import numpy as np
import pandas as pd
import pytest

from lab.paper.figures import composition as figures
from lab.paper.tables import composition as tables
from tsae.errors import UserError

RUN = {"world": "microworld", "layer": 2, "variant": "hierarchical", "act": "topk", "ablation": ""}
EXCESS = {"": 0.5, "_low": 0.4, "_high": 0.6}


def results(seed=0):
    rows = [("composition_small", "all", 0.95), ("l0_level1", "all", 12.0)]
    rows += [(f"parent_given_child_excess{end}", "all", v) for end, v in EXCESS.items()]
    rows += [(f"child_given_parent_excess{end}", "all", v - 0.5) for end, v in EXCESS.items()]
    for coding, value in (("level1", 0.3), ("level2", 0.2), ("leaves", 0.1)):
        rows += [("level_recovery_f1_excess", f"{coding}:document", value)]
    for strategy in ("hierarchical", "leaves"):
        for name in ("forget", "near", "far"):
            rows += [(f"unlearn_{name}_accuracy", f"{strategy}|t=0.01|n=10|m=25", 0.9)]
    frame = pd.DataFrame(rows, columns=["metric", "group", "value"])
    return frame.assign(**RUN, seed=seed, n=1)


def found():
    edges = [(7, 1, 0.8), (7, 2, 0.4), (3, 2, 0.6), (3, 5, 0.3), (4, 9, 1.0)]
    composition = pd.DataFrame(edges, columns=["parent", "child", "weight"])
    parents = pd.DataFrame({"parent": [7, 3, 4], "energy": [3.0, 2.0, 1.0]})
    parents = parents.assign(tokens="a $b c d", label="topic", cls="x", share=0.75)
    dwell = pd.DataFrame({"group": ["level1", "level2", "leaves"] * 2, "dwell": [1] * 3 + [2] * 3})
    dwell = dwell.assign(count=4, censored=0)
    further = {"composition": composition.assign(tokens="t u"), "parents": parents}
    further |= {"level_dwell": dwell}
    run = {**RUN, "seed": 0}
    return {"results": results(), **{n: t.assign(**run) for n, t in further.items()}}


def test_every_figure_is_drawn_from_its_tables_and_none_without():
    names = {"composition_graph_microworld", "composition_matrix", "level_time", "level_unlearning"}
    assert set(figures.drawn(found(), smoke=True)) == names
    nothing = {"results": results().query("metric == 'l0_level1'")}
    assert figures.drawn(nothing, smoke=False) == {}
    with pytest.raises(UserError, match="no main run on smollm2"):
        figures.graph(found()["composition"], found()["parents"], "smollm2")


def test_the_graph_shows_a_shared_child_once_and_lines_by_weight():
    figure = figures.graph(found()["composition"], found()["parents"], "microworld")
    panel = figure.axes[0]
    texts = [t.get_text() for t in panel.texts]
    assert texts[0] == "$\\bf{7}$  a \\$b c\ntopic = x (75%)"
    assert [t for t in texts if "t u" in t] == [f"$\\bf{{{n}}}$  t u" for n in (9, 1, 2, 5)]
    widths = [line.get_linewidth() for line in panel.lines]
    assert widths == pytest.approx([3.0, 1.7, 3.0, 1.7, 3.0])  # 0.4 + 2.6 w / largest


def test_survival_starts_at_one_and_halves():
    figure = figures.time_scales(found()["results"], found()["level_dwell"])
    x, y = figure.axes[0].lines[0].get_data()
    assert x.tolist() == [1, 2] and y.tolist() == pytest.approx([1.0, 0.5])
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    assert heights == pytest.approx([0.3, 0.2, 0.1])


def test_like_rows_stand_together():
    rows = np.array([[1.0, 0, 0], [0, 1, 0.1], [1, 0.1, 0], [0, 1, 0]])
    order = figures.clustered(rows).tolist()
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_tables_show_intervals_bold_where_they_exclude_zero():
    made = tables.made({"results": pd.concat([results(0), results(1)])}, smoke=False)
    assert set(made) == {"composition", "composition_meaning", "composition_excess"}
    assert r"\textbf{+0.500 [0.400, 0.600]}" in made["composition_excess"]
    assert r"& +0.000 [\textminus 0.100, 0.100]" in made["composition_excess"]
    assert r"& 0.950\," in made["composition"] and "2 seeds" in made["composition"]
    assert tables.made({"results": results().query("metric == 'l0_level1'")}, smoke=False) == {}
    with pytest.raises(UserError, match="run family 'composition'"):
        tables.composition(results().query("metric == 'l0_level1'"))


def test_absorption_of_both_levels_stands_in_the_table_once_measured():
    base = results()
    rows = base.head(2).assign(metric="absorption", group=["all", "level2"], value=[0.25, 0.125])
    without, beside = tables.meaning(base), tables.meaning(pd.concat([base, rows]))
    assert "Abs." not in without
    assert r"& 0.250 & 0.125\\" in beside and "Abs.$_2$" in beside
