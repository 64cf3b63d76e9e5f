"""Intervals, table and figures of temporal adaptation from tables with known answers."""

import numpy as np
import pandas as pd
import pytest

from lab.paper.figures import adaptation as figures
from lab.paper.tables import adaptation as tables
from lab.runs import adaptation
from tsae.errors import UserError

KEYS = {"world": "microworld", "layer": 2, "variant": "glta", "act": "topk", "seed": 0}


def rows(metric, values, group="all", ablation="", **keys):
    base = {**KEYS, "ablation": ablation, "metric": metric, "group": group, "n": 9, **keys}
    return [{**base, "seed": s, "value": v} for s, v in enumerate(values)]


def documents(num, den, group, ablation="", **keys):
    """A document a number; ``keys`` may change metric, variant or seed."""
    base = {**KEYS, "ablation": ablation, "metric": "position_fvu", "group": group, **keys}
    return [{**base, "doc": i, "num": n, "den": den} for i, n in enumerate(num)]


def results():
    found = rows("adaptation_theta", [0.1, 0.2, 0.3]) + rows("adaptation_beta", [-1.0, 1.0, 0.0])
    found += rows("adaptation_tau", [0.5, 0.5, 0.5])
    found += rows("adaptation_theta", [-0.2, -0.2], ablation="scope=feature")
    found += rows("fve", [0.9, 0.92, 0.91]) + rows("fve", [0.8], ablation="tau=0.0")
    found += rows("adaptation_theta", [0.7], ablation="tau=0.0")
    return pd.DataFrame(found)


def test_sign_and_size_by_hand():
    table = adaptation.learned_intervals(results()).set_index(["ablation", "parameter"])
    theta = table.loc[("", "theta")]
    # mean 0.2, s.e. 0.1 / sqrt 3, t(2 degrees of freedom, 97.5%) = 4.3027
    reach = 4.302653 * 0.1 / np.sqrt(3)
    assert [theta["mean"], theta["lo"], theta["hi"]] == pytest.approx(
        [0.2, 0.2 - reach, 0.2 + reach]
    )
    assert theta["sign"] == "undecided" and theta["seeds"] == 3
    assert (theta["least"], theta["most"]) == (0.1, 0.3)
    assert table.loc[("scope=feature", "theta"), "sign"] == "negative"
    assert table.loc[("", "tau"), "sign"] == "positive"
    assert ("tau=0.0", "theta") not in table.index  # one seed has no interval


def position_rows():
    found = documents([1, 2, 3], 10, "half=first") + documents([2, 3, 4], 10, "half=second")
    found += documents([1, 2, 3], 10, "half=first", adaptation.HALF)
    return found + documents([4, 5, 6], 10, "half=second", adaptation.HALF)


def test_position_gaps_by_hand():
    table = adaptation.position_gaps(pd.DataFrame(position_rows()), n_boot=200)
    table = table.set_index("trained")
    # FVE falls by 0.1 in every document when trained on all, by 0.3 when on the first half.
    for trained, gap in (("all", -0.1), ("first", -0.3), ("first - all", -0.2)):
        row = table.loc[trained]
        assert [row["diff"], row["lo"], row["hi"]] == pytest.approx([gap] * 3)


def test_the_base_run_is_compared_where_there_is_one():
    more = documents([5, 5, 5], 10, "half=first", "base")
    more += documents([5, 5, 5], 10, "half=second", "base")
    table = adaptation.position_gaps(pd.DataFrame(position_rows() + more), n_boot=50)
    table = table.set_index("trained")["diff"]
    assert table["all"] == pytest.approx(0) and table["first - all"] == pytest.approx(-0.3)


def test_scope_difference_pairs_documents_and_shared_seeds():
    found = []
    for seed in (0, 1, 2):
        found += documents([1, 5, 9], 10, "all", metric="fvu", seed=seed)
    for seed in (0, 1):
        found += documents([2, 6, 10], 10, "all", adaptation.SCOPE, metric="fvu", seed=seed)
    row = adaptation.scope_differences(pd.DataFrame(found), n_boot=200).iloc[0]
    assert [row["diff"], row["lo"], row["hi"]] == pytest.approx([0.1] * 3)
    assert (row["metric"], row["seeds"]) == ("fvu", 2)


def test_tables_print_values_and_intervals():
    found = {"results": results(), "documents": pd.DataFrame(position_rows())}
    made = tables.made(found, smoke=True)
    assert set(made) == {"adaptation", "adaptation_intervals"}
    assert r"\quad\texttt{tau=0.0} & 0.700 & --" in made["adaptation"]
    assert "smoke size" in made["adaptation"]
    line = "position gap, GLTA, trained on the first half & \\textbf{$-$0.3000}"
    assert line in made["adaptation_intervals"]
    assert r"$\theta$ & $+$0.2000 & [$-$0.0484, $+$0.4484] & 3" in made["adaptation_intervals"]
    assert tables.made({"results": results()[lambda t: t["variant"] == "topk"]}) == {}


def tidy_tables():
    curves = []
    for ablation in ("", "scope=feature"):
        for metric in ("theta", "beta", "tau"):
            for step in (20, 40):
                curves += rows(metric, [0.1 * step, 0.2], ablation=ablation, step=step, phase="a")
    latents = pd.DataFrame({"latent": range(50), "variance": np.geomspace(0.01, 10, 50)})
    latents = latents.assign(scale=latents["variance"] ** 0.5, delta=0.5 ** latents["variance"])
    latents = latents.assign(**KEYS, ablation="")
    responses = [
        {**KEYS, "ablation": "", "parameter": p, "setting": s, "metric": m, "value": 1 - s * s}
        for p in ("theta", "beta", "tau")
        for s in (-0.5, 0.0, 0.5)
        for m in ("fve", "l0", "turnover")
    ]
    responses = pd.DataFrame(responses)
    surface = [(t, b, 1 - t * t) for t in (-0.5, 0.0, 0.5) for b in (0.0, 1.0)]
    surface = pd.DataFrame(surface, columns=["theta", "beta", "fve"]).assign(**KEYS, ablation="")
    found = []
    for ablation in ("", "positions=0.5"):
        for start in (0, 8, 16, 24):
            found += rows("position_fve", [0.9 - start / 100], f"p={start}-{start + 7}", ablation)
    return {
        "curves": pd.DataFrame(curves),
        "adaptation": latents,
        "sensitivity": responses.assign(learned=responses["setting"] == 0),
        "adaptation_surface": surface.assign(
            learned=(surface["theta"] == 0) & (surface["beta"] == 0)
        ),
        "results": pd.DataFrame(found),
    }


def test_figures_show_the_tables():
    found = tidy_tables()
    drawn = figures.drawn(found)
    assert set(drawn) == {
        "adaptation_trajectories",
        "adaptation_spread",
        "adaptation_sensitivity",
        "adaptation_surface",
        "positions",
    }
    # two settings of two seeds each, and the line at 0
    assert len(drawn["adaptation_trajectories"].axes[0].lines) == 5
    theta = drawn["adaptation_sensitivity"].axes[0].lines
    curve = theta[0].get_ydata().tolist()
    assert curve == pytest.approx([0.75, 1.0, 0.75])
    cells = [text.get_text() for text in drawn["adaptation_surface"].axes[0].texts]
    assert cells == [".75", "1.00", ".75"] * 2
    lines = drawn["positions"].axes[0].lines
    assert lines[0].get_xdata().tolist() == [3.5, 11.5, 19.5, 27.5]
    assert lines[0].get_ydata().tolist() == pytest.approx([0.9, 0.82, 0.74, 0.66])
    assert lines[-1].get_xdata() == [16, 16]  # where training stopped


def test_tables_of_others_draw_nothing():
    assert figures.drawn({"results": pd.DataFrame(rows("fve", [0.5], variant="topk"))}) == {}
    with pytest.raises(UserError, match="position_fve"):
        figures.positions(pd.DataFrame(rows("fve", [0.5])))
