"""Verdicts: what they take, what one seed leaves open, and what systems make of themselves."""

import numpy as np
import pandas as pd
import pytest

from lab.measures.__main__ import main
from lab.results.comparison import against_itself, differences, judged, verdict_shares


def documents(values, seeds=3, docs=40, metric="fvu", noise=0.01, seed=0, **keys):
    """Document rows of systems of these mean values, with noise over seeds and documents."""
    g, frames = np.random.default_rng(seed), []
    for variant, value in values.items():
        of, _, reading = variant.partition("@")
        for s in range(seeds):
            num = value + noise * g.normal() + 0.02 * g.normal(size=docs)
            rows = {
                "doc": np.arange(docs),
                "metric": metric,
                "group": "all",
                "num": num,
                "den": 1.0,
            }
            rows |= {"world": "w", "variant": of, "seed": s, "reading": reading or "own"}
            frames.append(pd.DataFrame(rows | {"ablation": ""} | keys))
    return pd.concat(frames, ignore_index=True)


def verdicts(table):
    return dict(
        zip(zip(table["variant"], table["baseline"], strict=True), table["verdict"], strict=True)
    )


@pytest.mark.parametrize("seeds", [3, 6])
def test_each_of_the_four_verdicts_is_reached_with_three_seeds(seeds):
    """FVU .30 against .40, .4001, .50; less is better, and .005 is the smallest effect. Of seven
    systems that differ by less than their seeds do, as many tests in the family, none is decided."""
    values = {"topk": 0.4, "conv": 0.3, "same": 0.4001, "worse": 0.5}
    found = verdicts(
        differences(documents(values, seeds, noise=0.0005, docs=400), n_boot=200).query(
            f"n_seeds == {seeds}"
        )
    )
    assert found["conv", "topk"] == "better" and found["worse", "topk"] == "worse"
    assert found["same", "topk"] == "equivalent" and len(found) == 3
    noisy = {"topk": 0.4} | {f"s{n}": 0.4 + 0.003 * n for n in range(7)}
    table = differences(documents(noisy, seeds, noise=0.05), n_boot=200)
    assert set(table["verdict"]) == {"undecided"} and len(table) == 7


def test_one_seed_decides_nothing():
    table = differences(documents({"topk": 0.4, "conv": 0.1}, seeds=1), n_boot=100)
    assert table["p"].isna().all() and set(table["verdict"]) == {"undecided"}
    assert (table["hi"] < 0).all()  # of these two trained dictionaries it is sure


def test_readings_are_systems_and_baselines():
    values = {"topk": 0.3, "topk@ema": 0.4, "conv": 0.5, "conv@ema": 0.5, "shuffled(conv)": 0.5}
    table = differences(documents(values, metric="ap"), n_boot=50)
    pairs = set(zip(table["variant"], table["baseline"], strict=True))
    assert {("conv", "topk"), ("conv", "ema(topk)"), ("conv", "ema(conv)")} <= pairs
    assert ("conv", "shuffled(conv)") in pairs and ("topk", "ema(topk)") in pairs


def test_metrics_without_a_better_side_are_not_judged():
    assert differences(documents({"topk": 12, "conv": 13}, metric="l0"), n_boot=50).empty


def test_holm_is_within_a_family():
    """p = .03 of two systems against one baseline is not enough (.06); alone it is."""
    rows = [("w", v, "topk", "fvu", "all", -0.1, -0.2, -0.01, 0.03, 9, 3) for v in "ab"]
    columns = ["world", "variant", "baseline", "metric", "group", "diff", "lo", "hi", "p"]
    table = pd.DataFrame(rows, columns=[*columns, "n_documents", "n_seeds"])
    assert judged(table)["verdict"].tolist() == ["undecided"] * 2
    assert judged(table)["p_holm"].tolist() == pytest.approx([0.06, 0.06])
    assert judged(table.iloc[:1])["verdict"].tolist() == ["better"]


def twins(seeds=6, shift=0.0):
    """Ten measures of topk over six seeds, and of a twin of it at the same seeds."""
    frames = []
    for m in range(10):
        rows = documents({"topk": 0.4}, seeds=seeds, noise=0.03, seed=m).assign(group=f"g{m}")
        twin = rows.assign(variant="causal", num=rows["num"] + shift)
        frames += [rows, twin]
    return pd.concat(frames, ignore_index=True)


def test_a_system_does_not_differ_from_itself():
    table = against_itself(twins(), n_boot=50)
    assert len(table) == 10 * (10 + 10 + 1)  # halves of topk and of causal, and the twins
    exact = table[table["baseline"] == "causal, its twin"]
    assert (exact["diff"] == 0).all() and set(exact["verdict"]) == {"equivalent"}
    share = verdict_shares(table)
    assert share["better"] + share["worse"] <= 0.05 and share.sum() == pytest.approx(1)


def test_a_twin_that_differs_is_caught(tmp_path, capsys):
    for name, shift in (("same", 0.0), ("other", 0.2)):
        (tmp_path / name / "stage").mkdir(parents=True)
        twins(seeds=3, shift=shift).to_parquet(tmp_path / name / "stage" / "documents.parquet")
    tex = tmp_path / "aa.tex"
    assert main(["aa", str(tmp_path / "same"), "--draws", "50", "--tex", str(tex)]) == 0
    assert r"\newcommand{\aaComparisons}{10}" in tex.read_text(encoding="utf-8")
    assert main(["aa", str(tmp_path / "other"), "--draws", "50"]) == 1
    assert "100.0% better or worse" in capsys.readouterr().out
    assert main(["aa", str(tmp_path / "nothing")]) == 2
    assert "run an evaluation first" in capsys.readouterr().err


def test_verdicts_of_two_runs_are_compared(tmp_path, capsys):
    """One of fifty verdicts differs: 98% agree. A row that only one run has agrees with nothing."""
    keys = {"world": "w", "variant": "conv", "baseline": "topk", "metric": "fvu"}
    table = pd.DataFrame({**keys, "group": [f"g{i}" for i in range(50)], "verdict": "better"})
    turned = table.assign(verdict=table["verdict"].where(table["group"] != "g7", "undecided"))
    for name, rows in (("a", table), ("b", turned.iloc[::-1]), ("c", turned.iloc[:-1])):
        (tmp_path / name).mkdir()
        rows.to_parquet(tmp_path / name / "differences.parquet")
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert main(["agree", a, b]) == 0
    told = capsys.readouterr().out
    assert "50 verdicts: 98.0% agree, 1 differ" in told
    assert "g7" in told and "undecided" in told and "g8" not in told
    assert main(["agree", a, c]) == 1
    assert "50 verdicts: 96.0% agree, 2 differ" in capsys.readouterr().out
    assert main(["agree", a, str(tmp_path / "none")]) == 2
    assert "make the run's figures first" in capsys.readouterr().err
