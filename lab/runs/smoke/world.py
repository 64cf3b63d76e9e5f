"""A small microworld with its store."""

from lab.runs.setting import make_setting
from lab.runs.smoke.place import WORLD, folder


def world_dir() -> str:
    """The directory of the smoke world; made on first use (about 20 s)."""
    directory = folder("worlds")
    make_setting(directory, world="microworld", progress=False, **WORLD)
    return directory
