"""A static and a temporal SAE, trained for a few steps."""

from tsae.experiments.setting import open_setting
from tsae.experiments.training import run_training
from tsae.smoke.place import RUNS, SIZE, folder
from tsae.smoke.world import world_dir


def sae_dirs() -> list[str]:
    """Directories of the runs on :func:`tsae.smoke.world.world_dir`; trained on first use."""
    setting = open_setting(world_dir())
    found = []
    for run in RUNS:
        directory = folder(f"train-{run['variant']}")
        run_training(setting, directory, progress=False, **SIZE, **run)
        found.append(directory)
    return found
