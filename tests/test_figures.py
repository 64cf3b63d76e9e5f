"""Figures: what each shows, what each asks for, and that a saved file never changes."""

import numpy as np
import pandas as pd
import pytest
import synthetic_tables as made
from matplotlib.figure import Figure

from lab.paper import figures
from lab.paper.figures import style, time, truth
from lab.results import systems, tidy
from tsae.errors import UserError

RESULTS = made.results()
DRAW = {
    "pareto": lambda **o: figures.pareto(o.pop("results", RESULTS), **o),
    "smoothness": lambda **o: figures.smoothness(o.pop("results", RESULTS), **o),
    "dwell": lambda **o: figures.dwell(made.dwell(), **o),
    "heatmap": lambda **o: figures.heatmap(made.heatmap(), **o),
    "recovery": lambda **o: figures.recovery(
        o.pop("results", RESULTS), o.pop("documents", made.documents(4)), **o
    ),
    "curves": lambda **o: figures.curves(made.curves(), **o),
    "unlearning": lambda **o: figures.unlearning(o.pop("results", RESULTS), **o),
    "ablation": lambda **o: figures.ablation(o.pop("results", RESULTS), **o),
}


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() or axes.get_title("left") for axes in figure.axes]


def labels(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.legends[0].get_texts()} if figure.legends else set()


@pytest.mark.parametrize("name", DRAW)
def test_the_smoke_line_is_on_the_figure_exactly_when_asked(name):
    assert DRAW[name]().get_suptitle() == ""
    assert DRAW[name](smoke=True).get_suptitle() == "smoke size: not results"


@pytest.mark.parametrize("name", sorted(set(DRAW) - {"heatmap", "unlearning", "ablation"}))
def test_both_worlds_are_panels(name):
    found = " ".join(titles(DRAW[name]()))
    assert "microworld" in found and "SmolLM2-135M" in found


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("pareto", "fve"),
        ("pareto", "l0"),
        ("smoothness", "smoothness"),
        ("smoothness", "smoothness_null"),
        ("smoothness", "mean_dwell"),
        ("recovery", "recovery_f1"),
        ("recovery", "recovery_f1_matched"),
        ("unlearning", "unlearn_forget_accuracy"),
        ("unlearning", "unlearn_near_accuracy"),
        ("unlearning", "unlearn_far_accuracy"),
        ("ablation", "fve"),
    ],
)
def test_a_missing_metric_is_named_in_one_sentence(name, metric):
    with pytest.raises(UserError) as caught:
        DRAW[name](results=RESULTS[RESULTS["metric"] != metric])
    line = str(caught.value)
    assert f"'{metric}'" in line and "\n" not in line and line.endswith(".")


def test_other_things_that_are_missing_are_named_too():
    with pytest.raises(UserError, match="lacks the column.*seed"):
        figures.pareto(RESULTS.drop(columns="seed"))
    with pytest.raises(UserError, match="'recovery_f1' counts"):
        DRAW["recovery"](documents=made.documents(2).assign(metric="fvu"))
    with pytest.raises(UserError, match="no codes of 'lstm' on sequence 4 of microworld"):
        figures.heatmap(made.heatmap(), variants=("topk", "lstm"))
    with pytest.raises(UserError, match="no 'ce'.*mse, test_fve"):
        figures.curves(made.curves(), metric="ce")
    with pytest.raises(UserError, match="no ablation rows"):
        figures.ablation(RESULTS[RESULTS["ablation"] == ""])
    with pytest.raises(UserError, match="no stays"):
        figures.dwell(made.dwell().assign(count=0))


def test_pareto_puts_the_mean_over_seeds_where_it_belongs():
    rows = [
        made.row("microworld", "topk", seed, metric, "all", value)
        for seed, pair in enumerate(((10, 0.9), (14, 0.96)))
        for metric, value in zip(("l0", "fve"), pair, strict=True)
    ]
    axes = figures.pareto(pd.DataFrame(rows)).axes[0]
    seeds, mean = axes.get_lines()
    assert np.allclose(sorted(seeds.get_xydata().tolist()), [[10, 0.1], [14, 0.04]])
    assert np.allclose(mean.get_xydata(), [[12, 0.07]])
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    heights = dict(zip(labels, axes.get_yticks(), strict=True))
    assert np.isclose(heights["0.95"], 0.05)  # 1 - FVE, labelled with FVE


def test_an_l0_sweep_is_a_line_in_pareto_and_no_ablation():
    axes = figures.pareto(RESULTS).axes[0]
    lengths = {len(line.get_xdata()) for line in axes.get_lines() if line.get_linestyle() != "None"}
    assert lengths == {1, 3}  # topk and conv: k = 6, 12, 24
    names = [tick.get_text() for tick in figures.ablation(RESULTS).axes[0].get_yticklabels()]
    assert names == ["consistency='l2'", "gate='none'", "lag_rank=None", "window=2", "window=8"]


def test_ablations_are_drawn_beside_the_base_run_of_their_own_budget():
    base = [
        made.row("microworld", "conv", 0, metric, group, 0.5, "base")
        for metric, group in (("fve", "all"), ("recovery_f1", "document"), ("smoothness", "all"))
    ]
    for axes in figures.ablation(pd.concat([RESULTS, pd.DataFrame(base)])).axes:
        assert list(axes.get_lines()[0].get_xdata()) == [0.5, 0.5]
        assert len(axes.get_yticks()) == 5


def test_ablations_are_in_natural_order():
    assert sorted(["w=16", "w=2", "gate", "w=8"], key=tidy.natural) == [
        "gate",
        "w=2",
        "w=8",
        "w=16",
    ]


def test_nulls_are_hollow_hatched_and_last():
    for null in ("ema(topk)", "shuffled(conv)"):
        assert style.look(null)["markerfacecolor"] == "white"
        assert style.bar_look(null)["hatch"] and style.bar_look(null)["facecolor"] == "white"
    assert "hatch" not in style.bar_look("conv")
    bars = figures.smoothness(RESULTS).axes[0]
    names = [tick.get_text() for tick in bars.get_yticklabels()]
    assert names[-2:] == ["EMA(TopK)", "Shuffled(Conv)"]
    assert [bool(bar.get_hatch()) for bar in bars.patches] == [False] * 6 + [True] * 2


def test_systems_differ_without_colour():
    """Grey print: (marker, line, hollow) alone tells every learned system and null apart."""
    shown = [*systems.SYSTEMS, "ema(topk)", "shuffled(conv)"]
    seen = {
        (look["marker"], str(look["linestyle"]), look["markerfacecolor"] == "white")
        for look in map(style.look, shown)
    }
    assert len(seen) == len(shown)


def test_bars_show_the_mean_and_every_seed_and_an_infinite_value_is_said():
    rows = pd.DataFrame({"system": ["topk"] * 3 + ["conv"], "value": [1.0, 2.0, 6.0, np.inf]})
    figure, axes = style.panels(1, 1, 3, 2)
    style.bars(axes[0, 0], rows, ["topk", "conv"])
    (bar,) = axes[0, 0].patches
    assert bar.get_width() == pytest.approx(3.0)
    dots = np.concatenate([c.get_offsets() for c in axes[0, 0].collections])
    assert sorted(dots[:, 0]) == [1.0, 2.0, 6.0]
    assert [text.get_text() for text in axes[0, 0].texts] == [r"$\infty$"]


def test_dwell_is_the_kaplan_meier_estimate():
    # 10 stays: four end after 1 token, two are cut after 1 (so 8 were at risk of ending there),
    # one of the remaining four ends after 2, three after 4.
    run = pd.DataFrame({"dwell": [1, 2, 4], "count": [6, 1, 3], "censored": [2, 0, 0]})
    share = time.at_least(run)
    assert share.loc[1] == 1
    assert share.loc[2] == pytest.approx(4 / 8)
    assert share.loc[3] == share.loc[4] == pytest.approx(4 / 8 * 3 / 4)


def test_recovery_interval_of_equal_documents_is_their_ratio():
    documents = pd.DataFrame(
        [
            {"doc": doc, "seed": 0, "group": f"document:domain={c}", "num": num, "den": 10.0}
            for doc in range(5)
            for c, num in (("a", 4.0), ("b", 8.0))
        ]
    )
    assert truth.interval(documents) == pytest.approx((0.6, 0.6))
    wide = truth.interval(documents.assign(num=documents["doc"] * 2.0))
    assert wide[0] < 0.4 < wide[1]  # the ratio over all documents is 0.4


def test_heatmap_has_a_row_a_latent_a_column_a_token_and_lines_at_boundaries():
    figure = figures.heatmap(made.heatmap(), n_tokens=20, n_latents=3)
    static, temporal = figure.axes
    assert titles(figure) == ["TopK on microworld", "Conv on microworld"]
    assert len(static.get_yticklabels()) == 3 and len(temporal.get_xticklabels()) <= 20
    assert {"sentence starts", "section starts", "document starts"} == labels(figure)
    assert all("\n" not in tick.get_text() for tick in temporal.get_xticklabels())
    other = figures.heatmap(made.heatmap(), world="smollm2")
    assert titles(other)[0] == "TopK on SmolLM2-135M"


def test_unlearning_control_is_hollow():
    figure = figures.unlearning(RESULTS)
    assert labels(figure) == {"TopK, clamp", "TopK, random", "Conv, clamp", "Conv, random"}
    hollow = [line.get_markerfacecolor() == "none" for line in figure.legends[0].get_lines()]
    assert hollow == [False, True, False, True]


def test_curves_show_the_share_not_explained():
    axes = figures.curves(made.curves()).axes[0]
    curve = axes.get_lines()[0]
    table = made.curves().query("world == 'microworld' and variant == 'l1' and metric == 'mse'")
    expected = table.groupby("step")["value"].mean()
    assert np.allclose(curve.get_ydata(), expected)
    assert axes.get_ylabel() == "held-out 1 − FVE"


def test_saved_files_are_the_same_every_time_and_hold_outlines(tmp_path):
    first = figures.save(figures.pareto(RESULTS), tmp_path / "a", "pareto")
    second = figures.save(figures.pareto(RESULTS), tmp_path / "b", "pareto")
    assert [path.name for path in first] == ["pareto.pdf", "pareto.png"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    pdf = first[0].read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"/CreationDate" not in pdf
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_a_notebook_shows_the_figure():
    assert figures.dwell(made.dwell())._repr_png_().startswith(b"\x89PNG")
