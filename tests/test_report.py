"""What the last notebook merges."""

import pandas as pd

from tsae.experiments.comparison import told
from tsae.report import one_run_each


def test_a_heat_map_holds_one_run_of_each_variant():
    """Seeds are evaluated in several stages; two seeds' codes must not be added up in one map."""

    def table(variants, values):
        return pd.DataFrame({"world": "w", "variant": variants, "value": values})

    first = table(["topk", "conv", "conv"], [0, 1, 2])
    second = table(["conv", "batchtopk", "topk"], [3, 4, 5])
    kept = one_run_each([first, second])
    assert sorted(kept["value"]) == [0, 1, 2, 4]


def test_a_difference_is_told_with_its_measure_and_its_verdict():
    columns = ["metric", "group", "diff", "lo", "hi"]
    rows = [
        ("smoothness", "all", -0.02, -0.03, -0.01),
        ("recovery_f1_excess", "section", 0.1, -0.1, 0.3),
    ]
    first, second = map(told, pd.DataFrame(rows, columns=columns).itertuples())
    assert first == "smoothness: -0.020 [-0.030, -0.010] (a difference)"
    beyond = "F1 of section latents beyond frequency: +0.100 [-0.100, +0.300]"
    assert second == f"{beyond} (no difference shown)"
