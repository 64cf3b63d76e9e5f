"""A small microworld with its store."""

from filelock import FileLock

from tsae.experiments.setting import make_setting
from tsae.smoke.place import WORLD, folder, root


def world_dir() -> str:
    """The directory of the smoke world; made on first use (about 20 s)."""
    directory = folder("worlds")
    with FileLock(root() / "worlds.lock"):
        make_setting(directory, world="microworld", progress=False, **WORLD)
    return directory
