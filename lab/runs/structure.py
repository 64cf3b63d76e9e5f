"""How much a temporal variant gains as the text gets more temporal: from i.i.d. tokens to all order.

A microworld with ``temporal`` = s keeps each token in its place with probability s and replaces it
by an i.i.d. draw otherwise; see :class:`lab.worlds.microworld.text.MicroworldText`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lab import measures
from lab.results.comparison import paired
from lab.runs.evaluation import join
from lab.runs.setting import make_setting
from tsae.sequences import SCALES
from tsae.training.runs import run_training

OPTIONS = {"recovery": {"lines": False}}
METRICS = (("fvu", "all"), *(("ap", scale) for scale in SCALES))
"""What is compared: the metric of the document rows and its group."""


def run_structure(
    directory: str | Path,
    *,
    strengths: Iterable[float],
    runs: Iterable[Mapping[str, Any]],
    options: Mapping[str, Any],
    tokens: Mapping[str, int],
    layer: int | None = None,
    baseline: str = "topk",
    null_window: int = 8,
    limit_tokens: int = 30_000,
    selection_tokens: int = 30_000,
    n_boot: int = 1000,
    seed: int = 0,
    progress: bool = True,
    **train_options: Any,
) -> dict[str, pd.DataFrame]:
    """Per strength s: a microworld of its own, every run trained on it, gains over the baseline.

    ``runs``: arguments of :func:`run_training`, one of them the baseline; ``options``: of the
    microworld. The gain is variant − baseline and, where the encoder sees more than one token,
    variant − its own ``shuffled`` null, paired over test documents. At s = 0 tokens are
    exchangeable, so that order can give nothing but what the model's own attention puts into the
    residuals. Resumes what was begun in ``directory``.

    Returns ``structure`` (temporal, variant, baseline, metric, group, diff, lo, hi; FVE and AP,
    more is better) and ``structure_results``, the results rows with their ``temporal``. Raises
    ValueError when no run is the baseline.
    """
    runs, directory = [dict(run) for run in runs], Path(directory)
    if baseline not in [run["variant"] for run in runs]:
        raise ValueError(f"runs hold no {baseline!r}, against which gains are measured; add it")
    gains, results = [], []
    for strength in strengths:
        place = directory / f"structure-{strength:g}"
        setting = make_setting(
            place,
            world="microworld",
            seed=seed,
            options={**options, "temporal": strength},
            layer=layer,
            tokens=tokens,
            progress=progress,
        )
        found: dict[str, Any] = {}
        for number, run in enumerate(runs):
            given = {**train_options, **run}
            sae = run_training(
                setting.store, place / f"run-{number:02d}", progress=progress, **given
            ).sae
            found[f"{number:02d}"] = sae
            if sae.looks_back:  # to a code of one token, shuffling a window does nothing
                found[f"{number:02d}-null"] = measures.ShuffledNull(sae, null_window)
        sizes = measures.Sizes(limit_tokens, selection_tokens)
        reading = measures.Reading(setting.store, sizes, progress=progress)
        tables = measures.measure(
            found, reading, setting.world, families=("core", "recovery"), options=OPTIONS
        )
        joined = join(found, tables)
        results.append(joined["results"].assign(temporal=strength))
        gains.append(_gains(joined["documents"], baseline, n_boot).assign(temporal=strength))
    columns = ["temporal", "variant", "baseline", "metric", "group", "diff", "lo", "hi"]
    return {
        "structure": pd.concat(gains, ignore_index=True)[columns],
        "structure_results": pd.concat(results, ignore_index=True),
    }


def _gains(documents: pd.DataFrame, baseline: str, n_boot: int) -> pd.DataFrame:
    """Paired differences of every variant to the baseline and to its own shuffled null, if any."""
    rows, systems = [], list(dict.fromkeys(documents["variant"]))
    for variant in (v for v in systems if v != baseline and "(" not in v):
        for other in (v for v in (baseline, f"shuffled({variant})") if v in systems):
            a, b = (documents[documents["variant"] == name] for name in (variant, other))
            for metric, group in METRICS:
                found = paired(a, b, metric, group, n_boot)
                if found is None:
                    continue
                diff, lo, hi = found[:3]
                if metric == "fvu":  # 1 − FVE
                    metric, diff, lo, hi = "fve", -diff, -hi, -lo
                rows.append((variant, other, metric, group, diff, lo, hi))
    columns = ["variant", "baseline", "metric", "group", "diff", "lo", "hi"]
    return pd.DataFrame(rows, columns=columns)
