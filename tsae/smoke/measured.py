"""The tidy tables of the two smoke runs."""

from typing import Any

import pandas as pd

from tsae import report
from tsae.experiments.evaluation import run_evaluation
from tsae.experiments.setting import open_setting
from tsae.experiments.training import read_curves, read_saes
from tsae.smoke.trained import sae_dirs
from tsae.smoke.world import world_dir


def tables() -> dict[str, pd.DataFrame]:
    """What the last notebook merges, of the two runs alone."""
    directories = sae_dirs()
    setting = open_setting(world_dir())
    found = read_saes(directories, setting.store)
    sizes: dict[str, Any] = {"limit_tokens": 4000, "selection_tokens": 4000, "null_tokens": 4000}
    made = run_evaluation(
        setting, found, splice_tokens=1000, n_context_sequences=8, progress=False, **sizes
    )
    made["curves"] = read_curves(directories)
    made["facts"] = report.facts(directories)
    return made
