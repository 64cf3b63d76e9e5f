"""Figures: what each shows, what each asks for, and that a saved file never changes."""

import numpy as np
import pandas as pd
import pytest
import synthetic_tables as made
from matplotlib.colors import to_hex

from lab.paper import plots, register, style
from lab.paper.tables import Column
from lab.paper.topics import time, unlearning
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


def has_dot(axes, *at):
    return any(np.allclose(line.get_xydata(), [at]) for line in axes.get_lines()
               if len(line.get_xydata()) == 1)  # fmt: skip


def test_what_the_tables_allow_is_drawn_and_the_rest_is_left_out_by_name():
    assert set(DRAWN) == {
        "ablation_curves", "conv", "curves", "dilution", "dwell", "economy", "glta_paths",
        "heatmap", "hero", "recovery", "slowfast", "smoothness", "systems", "unlearning",
    }  # fmt: skip
    assert "no chain_ap rows" in WITHOUT["edges"]
    assert "no table 'edges'" in WITHOUT["chain_graph"]
    with pytest.raises(UserError, match="no drawing 'nothing'; there are"):
        register.draw("nothing")
    with pytest.raises(UserError, match="'ap' of no slow label"):
        draw("hero", results=RESULTS[RESULTS["metric"] != "ap"])
    assert register.made(FOUND, False, True, ["hero", "curves"])[0].keys() == {"hero", "curves"}


def test_a_figure_is_added_by_one_decorated_function():
    @register.register("mine")
    def mine(found):
        return style.panels(1, 1, 2, 2)[0]

    try:
        assert register.made(FOUND, False, True, shown=["mine"])[0].keys() == {"mine"}
        with pytest.raises(ValueError, match="'mine' is registered twice"):
            register.register("mine")(mine)
    finally:
        del register._DRAWINGS["mine"]


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_a_figure_has_its_width_its_smoke_line_and_no_type_below_seven_points(name):
    assert DRAWN[name].get_suptitle() == SMOKE
    figure = draw(name)
    assert figure.get_suptitle() == "" and figure.get_figwidth() in (style.COLUMN, style.PAGE)
    texts = [text for text in figure.findobj(style.plt.Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 7


def test_the_hero_shows_each_code_and_its_reading_between_the_levels():
    figure = draw("hero")
    heads = [panel.get_title() for panel in figure.axes]
    assert heads == ["microworld: domain (3 seeds)", "microworld: narrator (3 seeds)",
                     "SmolLM2-135M: section (3 seeds)"]  # fmt: skip
    rows = RESULTS[(RESULTS["world"] == "microworld") & (RESULTS["variant"] == "slowfast")]
    rows = rows[rows["ablation"] == ""]
    own = rows[(rows["metric"] == "ap") & (rows["group"] == "document:domain")]
    at = own.groupby("reading")["value"].mean()
    rest = 1 - rows.loc[rows["metric"] == "fve", "value"].mean()
    assert has_dot(figure.axes[0], at["own"], rest)
    assert any(np.allclose(text.xy, [at["ema"], rest]) for text in figure.axes[0].texts)
    assert labels(figure)[-3:] == ["read through EMA", "constant latent", "ceiling (probe)"]


def test_economy_joins_the_sweep_and_never_the_main_run():
    at = {"": (12, 0.95), "k=6": (6, 0.88), "k=24": (24, 0.98), "base": (12, 0.94)}
    rows = [made.row("microworld", "topk", 0, name, "all", value, ablation)
            for ablation, pair in at.items()
            for name, value in zip(("bits", "fve"), pair, strict=True)]  # fmt: skip
    rows += [
        made.row("microworld", "topk", 1, *case)
        for case in (("bits", "all", 14), ("fve", "all", 0.97))
    ]
    rows += [{**row, "metric": "l0"} for row in rows if row["metric"] == "bits"]
    panel = draw("economy", results=pd.DataFrame(rows)).axes[0]
    seeds, sweep = sorted(lines(panel), key=len)
    assert np.allclose(sorted(seeds), [[12, 0.05], [14, 0.03]])
    assert np.allclose(sweep, [[6, 0.12], [12, 0.06], [24, 0.02]])
    assert has_dot(panel, 13, 0.04)
    heights = dict(zip([t.get_text() for t in panel.get_yticklabels()], panel.get_yticks(),
                       strict=True))  # fmt: skip
    assert np.isclose(heights["0.92"], 0.08)  # 1 - FVE, labelled with FVE


def test_ablations_stand_beside_the_run_they_change_in_natural_order():
    names = [t.get_text() for t in draw("conv").axes[0].get_yticklabels()]
    assert names == ["gate='none'", "lag_rank=None", "window=2", "window=8"]  # the sweep left out
    base = made.row("microworld", "conv", 0, "fve", "all", 0.5, "base")
    panel = draw("conv", results=pd.concat([RESULTS, pd.DataFrame([base])])).axes[0]
    assert list(panel.get_lines()[0].get_xdata()) == [0.5, 0.5]  # at the ablations' own budget
    assert panel.get_title() == "microworld: Conv (1 seed)"
    heads = [panel.get_xlabel() for panel in draw("slowfast").axes]
    assert heads == ["FVE ↑", "domain AP ↑"]  # what no setting was measured on has no panel


def test_readings_stand_on_their_system_s_line_and_looks_differ_without_colour():
    read = RESULTS.query("variant == 'topk' and metric == 'mean_dwell'").assign(reading="ema")
    first, panel, *_ = draw("smoothness", results=pd.concat([RESULTS, read])).axes
    names = [tick.get_text() for tick in first.get_yticklabels()]
    assert names == ["ReLU+L1", "TopK", "BatchTopK", "JumpReLU", "T-SAE", "Conv", "SlowFast"]
    faces = {to_hex(line.get_markerfacecolor()) for line in panel.get_lines()
             if len(line.get_xdata()) == 1 and line.get_ydata()[0] == 1}  # fmt: skip
    assert faces == {"#000000", "#ffffff"}
    shown = [*systems.SYSTEMS, "ema(topk)", "shuffled(conv)"]
    seen = {(str(k["marker"]), k["markerfacecolor"] == "white") for k in map(style.look, shown)}
    assert len(seen) == len(shown)


def test_a_dot_is_the_mean_with_its_standard_error_beside_every_seed_of_each_world():
    values = [(w, s, v) for w, vs in (("microworld", (1.0, 2.0, 6.0)), ("smollm2", (4.0,)))
              for s, v in enumerate(vs)]  # fmt: skip
    rows = pd.DataFrame([made.row(w, "topk", s, "half_life", "all", v) for w, s, v in values])
    rows = pd.concat([rows, rows[-1:].assign(variant="conv", value=np.inf)])
    figure = plots.dots(plots.of_systems(tidy.prepare(rows)), [Column("half_life")])
    several, one = figure.axes
    assert several.get_title() == "microworld (3 seeds)" and "(1 seed)" in one.get_title()
    assert has_dot(several, 3, 0) and [[1, 0], [2, 0], [6, 0]] in lines(several)
    ((bar,),) = [c.get_segments() for c in several.collections]
    assert bar[:, 0] == pytest.approx([3 - np.sqrt(7 / 3), 3 + np.sqrt(7 / 3)])
    assert has_dot(one, 4, 0) and not one.collections
    assert [text.get_text() for text in one.texts] == [r"$\infty$"]


def test_lines_are_means_over_seeds_with_their_standard_error():
    rows = pd.DataFrame({"world": "microworld", "system": "topk", "seed": [0, 1, 0, 1],
                         "x": [1, 1, 2, 2], "value": [0.0, 1.0, 4.0, 6.0]})  # fmt: skip
    panel = plots.lines(rows, "x", ("x", "y")).axes[0]
    assert lines(panel) == [[[1, 0.5], [2, 5]]] and panel.get_title() == "microworld (2 seeds)"
    band = panel.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0, 6)  # for two seeds: s/√2 is half the range
    assert not plots.lines(rows[::2], "x", ("x", "y")).axes[0].collections  # one seed: no band
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
    heads = [p.get_title() for p in panels[:2]]
    assert heads == ["microworld: own code", "microworld: read through EMA"]
    names = [t.get_text() for t in panels[0].get_yticklabels()]
    assert names[:3] == ["constant", "ceiling", "ReLU+L1"] and names[-1] == "SlowFast"
    ticks = [t.get_text() for t in panels[0].get_xticklabels()]
    assert ticks == ["domain", "narrator", "theme", "speech"]
    shade = panels[0].get_images()[0].get_array()
    assert shade[0].tolist() == [0] * 4 and shade[1].tolist() == [1] * 4
    rows = RESULTS[(RESULTS["group"] == "document:domain") & RESULTS["reading"].eq("own")]
    low, high = (
        rows.loc[rows["metric"] == m, "value"].mean() for m in ("ap_constant", "ap_probe_ema")
    )
    own = rows[(rows["variant"] == "topk") & (rows["metric"] == "ap")]["value"].mean()
    assert shade[names.index("TopK"), 0] == pytest.approx((own - low) / (high - low))


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
    always, gated = (points for points in lines(draw("dilution").axes[0]) if len(points) == 3)
    assert always == [[25, 0.125], [100, 0.5], [400, 1.0]]
    assert np.allclose(gated, [[25, 0.025], [100, 0.1], [400, 0.4]])


def test_curves_show_the_share_not_explained_and_ablations_beside_their_base():
    table = made.curves().query("world == 'microworld' and variant == 'l1'")
    expected = 1 - table.groupby("step")["value"].mean()
    assert np.allclose(draw("curves").axes[0].get_lines()[0].get_ydata(), expected)
    figure = draw("ablation_curves")
    assert labels(figure) == ["base", "window=1"]
    assert figure.axes[0].get_lines()[0].get_color() == "black"
    with pytest.raises(UserError, match="hold no 'test_fve'.*beta, theta"):
        draw("curves", curves=made.curves().query("metric != 'test_fve'"))


def test_paths_show_what_moves():
    heads = [panel.get_title().split(": ")[1] for panel in draw("glta_paths").axes[:2]]
    assert heads == [r"$\theta$ (strength) (3 seeds)", r"$\beta$ (rate)"]  # tau was not moved


def test_saved_files_are_the_same_every_time_and_hold_outlines(tmp_path):
    first = style.save(draw("hero"), tmp_path / "a", "hero")
    second = style.save(draw("hero"), tmp_path / "b", "hero")
    assert [path.name for path in first] == ["hero.pdf", "hero.png"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    pdf = first[0].read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"/CreationDate" not in pdf
    assert draw("dwell")._repr_png_().startswith(b"\x89PNG")  # as a notebook shows it


def test_arrows_are_read_from_codes_and_beside_norms_and_rates():
    cases = {("chain_ap", "joint"): 0.8, ("chain_ap", "single"): 0.3, ("tracker_ap", "base"): 0.4,
             ("chain_ap_chance", "joint"): 0.1, ("tracker_ap", "learning=norm"): 0.2,
             ("tracker_ap", "tau=1"): 1}  # fmt: skip
    rows = [made.row("microworld", "topk", 0, *case, value) for case, value in cases.items()]
    (panel,) = draw("edges", results=pd.DataFrame(rows)).axes
    names = [tick.get_text() for tick in panel.get_yticklabels()]
    assert names == ["one latent", "conjunctions", "tracker, learned", "tracker, norms alone"]
    assert all(has_dot(panel, value, y) for y, value in enumerate((0.3, 0.8, 0.4, 0.2)))
    assert [[x for x, _ in line] for line in lines(panel)] == [[0.1, 0.1]]


def test_phases_are_what_is_learned_over_the_price():
    rows = []
    for price, theta in ((0, 0.0), (0.1, -0.2), (1, -0.5)):
        for name, value in (("adaptation_theta", theta), ("fve", 0.9 + theta / 10)):
            row = made.row("microworld", "topk", 0, name, "all", value, f"price={price}")
            rows.append(row | {"variant": "glta"})
    strength, fve = draw("glta_phases", results=pd.DataFrame(rows)).axes
    assert strength.get_title() == r"microworld: $\theta$ (strength) (1 seed)"
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
