"""What the last notebook merges."""

from pathlib import Path

import pandas as pd
import pytest
import synthetic_tables as made

from lab.paper import figures
from lab.paper.report import drawings, one_run_each, redrawn, rewrite_numbers, write_latex
from lab.paper.tables.cost import cost_table
from lab.paper.tables.settings import settings_table
from lab.results.comparison import told
from lab.runs.training import read_configs
from tsae.errors import UserError
from tsae.files import write_json

ROOT = Path(__file__).parent.parent


def test_a_heat_map_holds_one_run_of_each_variant():
    """Seeds are evaluated in several stages; two seeds' codes must not be added up in one map."""

    def table(variants, values):
        return pd.DataFrame({"world": "w", "variant": variants, "value": values})

    first = table(["topk", "conv", "conv"], [0, 1, 2])
    second = table(["conv", "batchtopk", "topk"], [3, 4, 5])
    kept = one_run_each([first, second])
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


def test_settings_are_told_once_in_words():
    rows = [
        ("microworld", "conv", "topk", "d_in", "128"),
        ("microworld", "conv", "topk", "window", "8"),
        ("microworld", "conv", "topk", "lag_rank", "null"),
        ("microworld", "conv", "topk", "consistency_weights", "[0.0, 0.01]"),
        ("microworld", "conv", "topk", "tied", "false"),
    ]
    text = settings_table(pd.DataFrame(rows, columns=["world", "variant", "act", "field", "value"]))
    told = r"Conv & window 8; lag rank none; consistency weights 0, 0.01; tied no\\"
    assert told in text.splitlines()


def test_configs_leave_ablations_out_and_count_seeds_once(tmp_path):
    for name, seed, ablation, k in (("a", 0, "", 8), ("b", 1, "", 8), ("c", 0, "k=4", 4)):
        keys = {"world": "w", "variant": "topk", "act": "topk", "seed": seed, "ablation": ablation}
        write_json(tmp_path / name / "run.json", {"keys": keys})
        write_json(tmp_path / name / "sae" / "cfg.json", {"config": {"k": k}})
    table = read_configs(tmp_path / name for name in "abc")
    assert table.to_dict("records") == [
        {"world": "w", "variant": "topk", "act": "topk", "field": "k", "value": "8"}
    ]


def test_numbers_cannot_be_written_from_tables_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="results/full lacks results, differences, facts; make it"):
        rewrite_numbers("full", tmp_path, "full")


def test_a_part_may_show_a_choice_of_figures_and_tables(tmp_path):
    found = {"results": made.results(), "curves": made.curves(), "facts": pd.DataFrame()}
    found |= {"differences": made.differences()}
    shown = ["curves", "table_recovery"]
    assert set(drawings(found, True, "cloze", shown)) == {"curves"}
    written = write_latex(found, tmp_path, True, True, "cloze", shown=shown)
    assert written == ["numbers.tex", "table_recovery.tex"]
    assert sorted(file.name for file in tmp_path.iterdir()) == written


@pytest.mark.parametrize(("profile", "folder"), [("laptop", "figures"), ("full", "figures/full")])
def test_committed_figures_are_those_of_the_committed_tables(profile, folder, tmp_path):
    """Bit for bit: a figure that is older than its data, or than its code, is not."""
    older = []
    for name, figure in redrawn(profile, ROOT).items():
        figures.save(figure, tmp_path, name)
        if (tmp_path / f"{name}.png").read_bytes() != (ROOT / folder / f"{name}.png").read_bytes():
            older.append(name)
    assert older == [], f"run .venv/bin/python -m lab.pipeline redraw --profile {profile}"


def test_costs_stand_in_order_of_the_ratio_to_the_static_step():
    rows = [
        {"variant": "conv", "ms": 30.4, "ratio": 1.521, "top": [["addmm_", 0.5], ["topk", 0.25]]},
        {"variant": "topk", "ms": 20.0, "ratio": 1.0, "top": [["_embedding_bag_x", 0.75]]},
    ]
    settings = {"width": 4, "latents": 8, "k": 2, "repeats": 3}
    lines = cost_table({"settings": settings, "rows": rows}).splitlines()
    static = lines.index(r"TopK & 20 & 1.00 & sparse product 75\%\\")
    assert lines[static + 1] == r"Conv & 30 & 1.52 & addmm 50\%, topk 25\%\\"
    with pytest.raises(UserError, match="lack topk: run benchmarks/overheads.py"):
        cost_table({"settings": settings, "rows": rows[:1]})


def of_scales(table, scales):
    """A table as it is of a text that has labels of these scales alone."""
    unlike = [s for s in ("document", "section", "token") if s not in scales]
    return table[~table["group"].str.split("[:|]", regex=True).str[0].isin(unlike)]


@pytest.mark.parametrize("scales", [["token"], ["document", "token"], []])
def test_texts_of_few_labels_are_shown_by_the_scales_they_have(tmp_path, scales):
    found = {"curves": made.curves(), "dwell": made.dwell(), "heatmap": made.heatmap()}
    found |= {"facts": pd.DataFrame(columns=["world", "key", "value"])}
    for name in ("results", "documents", "differences"):
        found[name] = of_scales(getattr(made, name)(), scales)
    drawn = drawings(found, True)
    assert ("recovery" in drawn) == bool(scales) and {"pareto", "dwell"} <= set(drawn)
    if scales:
        titles = {axes.get_title().partition(": ")[2] for axes in drawn["recovery"].axes}
        assert titles == {f"{scale} latents" for scale in scales}
    written = write_latex(found, tmp_path, True, True)
    assert ("table_recovery.tex" in written) == bool(scales) and "table_main.tex" in written
    if scales:
        lines = (tmp_path / "table_recovery.tex").read_text().splitlines()
        head = next(line for line in lines if line.startswith("System"))
        assert head.count("&") == 2 * len(scales)
