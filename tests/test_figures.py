"""Figures: what each shows, what each asks for, and that a saved file never changes."""

import numpy as np
import pandas as pd
import pytest
import synthetic_tables as made

from lab.paper import plots, register, style
from lab.paper.topics import overview, time, unlearning
from lab.results import systems, tidy
from lab.results.tidy import SMOKE
from tsae.errors import UserError

FOUND = made.found()
RESULTS = FOUND["results"]
DRAWN, WITHOUT = register.made(FOUND, True, True)


def draw(name, **changed):
    return register.draw(name, **{**FOUND, **changed})


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def lines(axes):
    """Every line of more than one point, as lists of points."""
    return [line.get_xydata().tolist() for line in axes.get_lines() if len(line.get_xydata()) > 1]


def test_what_the_tables_allow_is_drawn_and_the_rest_is_left_out_by_name():
    assert set(DRAWN) == {
        "ablation_curves", "conv", "curves", "dilution", "dwell", "economy", "glta_paths",
        "heatmap", "hero", "pareto", "recovery", "slowfast", "smoothness", "systems", "unlearning",
    }  # fmt: skip
    assert "edges needs rows of chain_ap" in WITHOUT["edges"]
    assert "chain_graph needs rows of edges" in WITHOUT["chain_graph"]
    with pytest.raises(UserError, match="no drawing 'nothing'; there are"):
        register.draw("nothing")
    with pytest.raises(UserError, match="hero needs rows of ap:"):
        draw("hero", results=RESULTS[RESULTS["metric"] != "ap"])
    part, _ = register.made(FOUND, False, True, "study", ["systems", "curves"])
    assert set(part) == {"curves"}  # the schema holds no results: it is the main part's alone


def test_a_figure_is_added_by_one_decorated_function():
    @register.register("mine", "fve")
    def mine(found):
        return style.panels(1, 1, 2, 2)[0]

    try:
        assert register.made(FOUND, False, True, shown=["mine"])[0].keys() == {"mine"}
        with pytest.raises(ValueError, match="'hero' is registered twice"):
            register.register("hero")(mine)
    finally:
        del register._DRAWINGS["mine"]


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_the_smoke_line_is_on_the_figure_exactly_when_asked(name):
    assert DRAWN[name].get_suptitle() == SMOKE
    assert draw(name).get_suptitle() == ""


def test_the_hero_shows_each_code_and_its_reading_between_the_lines():
    axes = draw("hero").axes
    heads = [panel.get_title() for panel in axes]
    assert heads == ["microworld: domain", "microworld: narrator", "SmolLM2-135M: section"]
    rows = RESULTS[(RESULTS["world"] == "microworld") & (RESULTS["variant"] == "slowfast")]
    rows = rows[rows["ablation"] == ""]
    own = rows[(rows["metric"] == "ap") & (rows["group"] == "document:domain")]
    at = own.groupby("reading")["value"].mean()
    fve = rows.loc[rows["metric"] == "fve", "value"].mean()
    points = [p for line in axes[0].get_lines() for p in line.get_xydata().tolist()]
    assert any(np.allclose(point, [at["own"], 1 - fve]) for point in points)
    ends = [text.xy for text in axes[0].texts if text.get_text() == ""]
    assert any(np.allclose(end, [at["ema"], 1 - fve]) for end in ends)
    assert [t.get_text() for t in axes[0].texts if t.get_text()] == ["constant", "ceiling"]


def test_pareto_joins_the_sweep_and_never_the_main_run():
    rows = [
        made.row("microworld", "topk", seed, metric, "all", value)
        for seed, pair in enumerate(((10, 0.9), (14, 0.96)))
        for metric, value in zip(("l0", "fve"), pair, strict=True)
    ]
    panel = draw("pareto", results=pd.DataFrame(rows)).axes[0]
    seeds, mean = panel.get_lines()
    assert np.allclose(sorted(seeds.get_xydata().tolist()), [[10, 0.1], [14, 0.04]])
    assert np.allclose(mean.get_xydata(), [[12, 0.07]])
    heights = dict(zip([t.get_text() for t in panel.get_yticklabels()], panel.get_yticks(),
                       strict=True))  # fmt: skip
    assert np.isclose(heights["0.95"], 0.05)  # 1 - FVE, labelled with FVE
    runs = pd.DataFrame({"ablation": ["", "k=6", "k=24", "base"], "l0": [12, 6, 24, 12.0],
                         "rest": [0.05, 0.12, 0.02, 0.06]})  # fmt: skip
    main, sweep = overview.joined(runs)
    assert main["l0"].tolist() == [12] and main["rest"].tolist() == [0.05]
    assert sweep["l0"].tolist() == [6, 12, 24] and sweep["rest"].tolist() == [0.12, 0.06, 0.02]
    assert [len(part) for part in overview.joined(runs[:3])] == [1, 2]


def test_ablations_stand_beside_the_run_they_change_in_natural_order():
    names = [t.get_text() for t in draw("conv").axes[0].get_yticklabels()]
    assert names == ["gate='none'", "lag_rank=None", "window=2", "window=8"]  # the sweep left out
    base = made.row("microworld", "conv", 0, "fve", "all", 0.5, "base")
    panel = draw("conv", results=pd.concat([RESULTS, pd.DataFrame([base])])).axes[0]
    assert list(panel.get_lines()[0].get_xdata()) == [0.5, 0.5]  # at the ablations' own budget
    assert tidy.natural("w=8") < tidy.natural("w=16")
    heads = [panel.get_xlabel() for panel in draw("slowfast").axes]
    assert heads == ["FVE ↑", "domain AP ↑"]  # what no setting was measured on has no panel


def test_nulls_are_hollow_hatched_and_last_and_looks_differ_without_colour():
    assert style.look("ema(topk)")["markerfacecolor"] == "white"
    assert "hatch" not in style.bar_look("conv")
    bars = draw("smoothness").axes[0]
    assert bars.get_yticklabels()[-1].get_text() == "EMA(TopK)"
    hatched = [bool(bar.get_hatch()) for bar in bars.patches]
    assert hatched == [False] * 7 + [True]
    shown = [*systems.SYSTEMS, "ema(topk)", "shuffled(conv)"]
    seen = {(str(k["marker"]), k["markerfacecolor"] == "white") for k in map(style.look, shown)}
    assert len(seen) == len(shown)


def test_bars_show_the_mean_and_every_seed_and_an_infinite_value_is_said():
    rows = pd.DataFrame({"system": ["topk"] * 3 + ["conv"], "value": [1.0, 2.0, 6.0, np.inf]})
    _, axes = style.panels(1, 1, 3, 2)
    style.bars(axes[0, 0], rows, ["topk", "conv"])
    (bar,) = axes[0, 0].patches
    assert bar.get_width() == pytest.approx(3.0)
    assert axes[0, 0].get_lines()[0].get_xdata().tolist() == [1.0, 2.0, 6.0]
    assert [text.get_text() for text in axes[0, 0].texts] == [r"$\infty$"]


def test_lines_are_means_over_seeds_with_their_range():
    rows = pd.DataFrame({"world": "microworld", "system": "topk", "x": [1, 1, 2, 2],
                         "value": [0.0, 1.0, 4.0, 6.0]})  # fmt: skip
    panel = plots.lines(rows, "x", ("x", "y")).axes[0]
    assert lines(panel) == [[[1, 0.5], [2, 5]]]
    band = panel.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 0 and band[:, 1].max() == 6
    with pytest.raises(UserError, match="no rows to draw"):
        plots.lines(rows[:0], "x", ("x", "y"))


def test_dwell_is_the_kaplan_meier_estimate():
    # 10 stays: four end after 1 token, two are cut after 1 (so 8 were at risk of ending there),
    # one of the remaining four ends after 2, three after 4.
    run = pd.DataFrame({"dwell": [1, 2, 4], "count": [6, 1, 3], "censored": [2, 0, 0]})
    share = time.at_least(run)
    assert share.tolist() == pytest.approx([1, 4 / 8, 4 / 8 * 3 / 4, 4 / 8 * 3 / 4])
    with pytest.raises(UserError, match="no stays"):
        draw("dwell", dwell=made.dwell().assign(count=0))


def test_recovery_shades_a_value_between_the_constant_and_the_ceiling():
    panels = draw("recovery").axes
    assert [p.get_title() for p in panels[:2]] == [
        "microworld: own code", "microworld: read through EMA",
    ]  # fmt: skip
    names = [t.get_text() for t in panels[0].get_yticklabels()]
    assert names[:3] == ["constant", "ceiling", "ReLU+L1"] and names[-1] == "SlowFast"
    ticks = [t.get_text() for t in panels[0].get_xticklabels()]
    assert ticks == ["domain", "narrator", "theme", "speech"]
    shade = panels[0].get_images()[0].get_array()
    assert shade[0].tolist() == [0] * 4 and shade[1].tolist() == [1] * 4
    own = RESULTS[(RESULTS["variant"] == "topk") & (RESULTS["group"] == "document:domain")]
    level = {m: rows["value"].mean() for m, rows in own[own["reading"] == "own"].groupby("metric")}
    low, high = (
        RESULTS[(RESULTS["metric"] == m) & (RESULTS["group"] == "document:domain")]["value"].mean()
        for m in ("ap_constant", "ap_probe_ema")
    )
    expected = (level["ap"] - low) / (high - low)
    assert shade[names.index("TopK"), 0] == pytest.approx(expected)


def test_heatmap_has_a_row_a_latent_a_column_a_token_and_lines_at_boundaries():
    figure = draw("heatmap")
    static, temporal = figure.axes
    assert [p.get_title() for p in figure.axes] == ["microworld: TopK", "microworld: Conv"]
    assert len(static.get_yticklabels()) == 12 and 30 < len(temporal.get_xticklabels()) <= 44
    assert labels(figure) == ["sentence starts", "section starts", "document starts"]
    assert all("\n" not in tick.get_text() for tick in temporal.get_xticklabels())
    with pytest.raises(UserError, match="codes of topk and of a temporal dictionary"):
        draw("heatmap", heatmap=made.heatmap().query("variant == 'topk'"))


def test_unlearning_draws_the_frontier_of_each_gate_over_what_is_not_random():
    points = pd.DataFrame({"forget": [0.1, 0.2, 0.3, 0.3], "retained": [0.5, 0.4, 0.9, 0.8]})
    best = unlearning.front(points)  # at .2 less is kept than at .1, and at .3 .9 beats .8
    assert best[["forget", "retained"]].to_numpy().tolist() == [[0.1, 0.5], [0.3, 0.9]]
    figure = draw("unlearning")
    assert labels(figure) == ["no gate", "EMA of the residual", "random edit behind it"]
    # retained is the lesser of near and far: 1 − .6 · damage, forget 1 − .9 · damage
    expected = [[1 - 0.9 * d, 1 - 0.6 * d] for d in (1, 0.5, 0.25, 0.125)]
    assert any(np.allclose(line, expected) for line in lines(figure.axes[0]) if len(line) == 4)


def test_dilution_follows_the_padding():
    panel = draw("dilution").axes[0]
    always, gated = (points for points in lines(panel) if len(points) == 3)
    assert always == [[25, 0.125], [100, 0.5], [400, 1.0]]
    assert np.allclose(gated, [[25, 0.025], [100, 0.1], [400, 0.4]])


def test_curves_show_the_share_not_explained_and_ablations_beside_their_base():
    table = made.curves().query("world == 'microworld' and variant == 'l1'")
    expected = 1 - table.groupby("step")["value"].mean()
    assert np.allclose(draw("curves").axes[0].get_lines()[0].get_ydata(), expected)
    (panel,) = draw("ablation_curves").axes
    assert [t.get_text() for t in panel.get_legend().get_texts()] == ["base", "window=1"]
    assert panel.get_lines()[0].get_color() == "black"
    with pytest.raises(UserError, match="hold no 'test_fve'.*beta, theta"):
        draw("curves", curves=made.curves().query("metric != 'test_fve'"))


def test_paths_show_what_moves():
    figure = draw("glta_paths")
    heads = [panel.get_title().split(": ")[1] for panel in figure.axes[:2]]
    assert heads == [r"$\theta$ (strength)", r"$\beta$ (rate)"]  # tau was not moved


def test_saved_files_are_the_same_every_time_and_hold_outlines(tmp_path):
    first = style.save(draw("pareto"), tmp_path / "a", "pareto")
    second = style.save(draw("pareto"), tmp_path / "b", "pareto")
    assert [path.name for path in first] == ["pareto.pdf", "pareto.png"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    pdf = first[0].read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"/CreationDate" not in pdf
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_a_notebook_shows_the_figure():
    assert draw("dwell")._repr_png_().startswith(b"\x89PNG")


def test_arrows_are_read_from_codes_and_beside_norms_and_rates():
    cases = [
        ("chain_ap", "joint", 0.8),
        ("chain_ap", "single", 0.3),
        ("chain_ap_chance", "joint", 0.1),
    ]
    cases += [
        ("tracker_ap", g, v) for g, v in (("base", 0.4), ("learning=norm", 0.2), ("tau=1", 1))
    ]
    rows = pd.DataFrame([made.row("microworld", "topk", 0, *case) for case in cases])
    (panel,) = draw("edges", results=rows).axes
    names = [tick.get_text() for tick in panel.get_yticklabels()]
    widths = dict(zip(names, [bar.get_width() for bar in panel.patches], strict=True))
    assert widths == {
        "conjunctions": 0.8, "one latent": 0.3, "tracker, learned": 0.4, "tracker, norms alone": 0.2,
    }  # fmt: skip
    ticks = [list(line.get_xdata()) for line in panel.get_lines() if len(line.get_xdata()) == 2]
    assert ticks == [[0.1, 0.1]]


def test_phases_are_what_is_learned_over_the_price():
    rows = []
    for price, theta in ((0, 0.0), (0.1, -0.2), (1, -0.5)):
        for name, value in (("adaptation_theta", theta), ("fve", 0.9 + theta / 10)):
            row = made.row("microworld", "topk", 0, name, "all", value, f"price={price}")
            rows.append(row | {"variant": "glta"})
    strength, fve = draw("glta_phases", results=pd.DataFrame(rows)).axes
    assert strength.get_title() == r"microworld: $\theta$ (strength)"
    assert lines(strength) == [[[0, 0], [0.1, -0.2], [1, -0.5]]]
    assert np.allclose(lines(fve), [[[0, 0.9], [0.1, 0.88], [1, 0.85]]])
    with pytest.raises(UserError, match="no sweep of GLTA's price"):
        draw("glta_phases", results=pd.DataFrame(rows[:2]))


def test_gains_without_structure_start_at_nothing():
    table = pd.DataFrame({"temporal": [0.0, 1.0] * 2, "variant": "conv", "metric": "fve",
                          "baseline": ["topk"] * 2 + ["shuffled(conv)"] * 2,
                          "group": "document", "diff": [0.0, 0.1, 5.0, 5.0]})  # fmt: skip
    (panel,) = draw("structure", structure=table).axes
    assert lines(panel) == [[[0, 0], [1, 0.1]]]
    assert panel.get_title() == "microworld: document FVE"
