"""How much a temporal variant gains as the text gets more temporal: from i.i.d. tokens to all order.

A microworld with ``temporal`` = s keeps each token in its place with probability s and replaces it
by an i.i.d. draw otherwise; see :class:`lab.worlds.microworld.text.MicroworldText`. At s = 0 tokens
are exchangeable, so that order can give nothing but what the model's own attention puts into the
residuals.
"""

import pandas as pd

from lab.results.comparison import paired
from tsae.sequences import SCALES

METRICS = (("fvu", "all"), *(("ap", scale) for scale in SCALES))
"""What is compared: the metric of the document rows and its group."""
COLUMNS = ["temporal", "variant", "baseline", "metric", "group", "diff", "lo", "hi"]


def gains(documents: pd.DataFrame, baseline: str, n_boot: int = 1000) -> pd.DataFrame:
    """Per ablation ``temporal=s``: variant − baseline and, where it was measured shuffled, variant −
    its own ``shuffled`` null, paired over test documents; of FVE and AP, more of which is better.

    Raises ValueError when no run is the baseline.
    """
    if baseline not in set(documents["variant"]):
        raise ValueError(f"runs hold no {baseline!r}, against which gains are measured; add it")
    rows = []
    for ablation, here in documents.groupby("ablation", sort=False):
        by_variant = dict(list(here.groupby("variant", sort=False)))
        for variant in (v for v in by_variant if v != baseline and "(" not in v):
            for other in (v for v in (baseline, f"shuffled({variant})") if v in by_variant):
                for metric, group in METRICS:
                    found = paired(by_variant[variant], by_variant[other], metric, group, n_boot)
                    if found is None:
                        continue
                    diff, lo, hi = found[:3]
                    if metric == "fvu":  # 1 − FVE
                        metric, diff, lo, hi = "fve", -diff, -hi, -lo
                    temporal = float(str(ablation).partition("=")[2])
                    rows.append((temporal, variant, other, metric, group, diff, lo, hi))
    return pd.DataFrame(rows, columns=COLUMNS)
