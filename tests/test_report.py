"""What the last notebook merges."""

import pandas as pd

from tsae.report import one_run_each


def test_a_heat_map_holds_one_run_of_each_variant():
    """Seeds are evaluated in several stages; two seeds' codes must not be added up in one map."""

    def table(variants, values):
        return pd.DataFrame({"world": "w", "variant": variants, "value": values})

    first = table(["topk", "conv", "conv"], [0, 1, 2])
    second = table(["conv", "batchtopk", "topk"], [3, 4, 5])
    kept = one_run_each([first, second])
    assert sorted(kept["value"]) == [0, 1, 2, 4]
