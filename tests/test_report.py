"""What the last notebook merges, and what it writes."""

import json

import pandas as pd
import pytest
import synthetic_tables as made

from lab.paper import report
from lab.results.comparison import told
from lab.runs.training import read_configs
from tsae.errors import UserError
from tsae.files import write_json


def test_a_heat_map_holds_one_run_of_each_variant():
    """Seeds are evaluated in several stages; two seeds' codes must not be added up in one map."""

    def table(variants, values):
        return pd.DataFrame({"world": "w", "variant": variants, "value": values})

    first = table(["topk", "conv", "conv"], [0, 1, 2])
    second = table(["conv", "batchtopk", "topk"], [3, 4, 5])
    kept = report.one_run_each([first, second])
    assert sorted(kept["value"]) == [0, 1, 2, 4]


def test_a_difference_is_told_with_its_measure_and_its_verdict():
    columns = ["metric", "group", "diff", "lo", "hi", "verdict"]
    rows = [
        ("smoothness", "all", -0.02, -0.03, -0.01, "better"),
        ("ap", "section", 0.1, -0.1, 0.3, "undecided"),
    ]
    first, second = map(told, pd.DataFrame(rows, columns=columns).itertuples())
    assert first == "smoothness: -0.020 [-0.030, -0.010] (better)"
    assert second == "average precision on section: +0.100 [-0.100, +0.300] (undecided)"
    lines = report.findings({"differences": made.differences()})
    assert (
        "microworld: Conv - TopK, F1 on document: better " in (lines_of := "\n".join(lines))
        and "EMA(TopK) - TopK" not in lines_of
    )


def run(folder, seed=0, ablation="", k=8, fve=0.5):
    """A finished training at ``folder``."""
    keys = {"world": "w", "layer": 0, "variant": "topk", "act": "topk", "seed": seed}
    keys["ablation"] = ablation
    write_json(folder / "run.json", {"keys": keys, "sizes": {"steps": 10 * k}})
    write_json(folder / "sae" / "cfg.json", {"config": {"k": k}})
    line = {"step": 1, "phase": "train", "test_fve": fve}
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")


def test_curves_of_ablations_are_gathered_from_the_folders_below_their_stage(tmp_path, monkeypatch):
    """A stage of ablations holds a run in a folder each; read at its root alone, none was found."""
    run(tmp_path / "train", fve=0.9)
    run(tmp_path / "ablate" / "topk-k=4", ablation="k=4", k=4, fve=0.7)
    run(tmp_path / "ablate" / "topk-k=2", ablation="k=2", k=2, fve=0.6)
    monkeypatch.setattr(report, "merge", lambda directories, name: pd.DataFrame({"value": [1, 1]}))
    monkeypatch.setattr(report, "one_run_each", lambda tables: pd.DataFrame())
    found = report.gather([tmp_path / "train", tmp_path / "ablate"])
    curves = found["curves"].set_index("ablation")["value"]
    assert curves.to_dict() == {"": 0.9, "k=4": 0.7, "k=2": 0.6}
    assert found["facts"].to_dict("records") == [{"world": "w", "key": "steps", "value": 80}]
    assert len(found["results"]) == 1  # measured in two stages, it counts once


def test_configs_leave_ablations_out_and_count_seeds_once(tmp_path):
    for name, seed, ablation, k in (("a", 0, "", 8), ("b", 1, "", 8), ("c", 0, "k=4", 4)):
        run(tmp_path / name, seed, ablation, k)
    table = read_configs(tmp_path / name for name in "abc")
    assert table.to_dict("records") == [
        {"world": "w", "variant": "topk", "act": "topk", "field": "k", "value": "8"}
    ]


def test_numbers_cannot_be_written_from_tables_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="results/study lacks results; make it with"):
        report.rewrite_numbers("study", tmp_path, "study")


def test_what_differs_from_itself_is_counted_in_the_text(tmp_path):
    verdicts = pd.DataFrame({"verdict": ["better", "undecided", "equivalent", "worse"]})
    (tmp_path / "main.tex").write_text(r"\factTwins \factTwinsTurned")
    text = report.numbers({**made.found(), "twins": verdicts}, False, paper=tmp_path)
    assert r"\newcommand{\factTwins}{4}" in text and r"\factTwinsTurned}{50.0\%}" in text


def test_a_part_may_show_a_choice_of_figures_and_tables(tmp_path, capsys):
    shown = ["curves", "table_time", "hero"]
    found = made.found()
    found["results"] = found["results"].query("metric != 'ap'")
    drawn = report.draw(found, tmp_path / "figures", True, shown)
    assert set(drawn) == {"curves"}
    assert capsys.readouterr().out.startswith("without hero: The results hold 'ap' of no slow")
    written = report.write_latex(found, tmp_path, True, True, "study", shown=shown)
    assert written == ["table_time.tex", "numbers.tex"]
    assert sorted(file.name for file in tmp_path.glob("*.tex")) == sorted(written)
