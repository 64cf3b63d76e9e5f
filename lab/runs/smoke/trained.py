"""A static and a temporal SAE, trained for a few steps."""

from lab.runs.setting import open_setting
from lab.runs.smoke.place import RUNS, SIZE, folder
from lab.runs.smoke.world import world_dir
from tsae.training.runs import run_training


def sae_dirs() -> list[str]:
    """Directories of the runs on :func:`lab.runs.smoke.world.world_dir`; trained on first use."""
    setting = open_setting(world_dir())
    found = []
    for run in RUNS:
        directory = folder(f"train-{run['variant']}")
        run_training(setting.store, directory, progress=False, **SIZE, **run)
        found.append(directory)
    return found
