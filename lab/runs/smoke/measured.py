"""The tidy tables of the two smoke runs."""

from typing import Any

import pandas as pd

from lab.paper import report
from lab.runs.evaluation import run_evaluation
from lab.runs.setting import open_setting
from lab.runs.smoke.trained import sae_dirs
from lab.runs.smoke.world import world_dir
from lab.runs.training import read_curves
from tsae.training.runs import read_saes


def tables() -> dict[str, pd.DataFrame]:
    """What the last notebook merges, of the two runs alone."""
    directories = sae_dirs()
    setting = open_setting(world_dir())
    found = read_saes(directories, setting.store)
    sizes: dict[str, Any] = {"limit_tokens": 4000, "selection_tokens": 4000}
    made = run_evaluation(
        setting, found, splice_tokens=1000, n_context_sequences=8, progress=False, **sizes
    )
    made["curves"] = read_curves(directories)
    made["facts"] = report.facts(directories)
    return made
