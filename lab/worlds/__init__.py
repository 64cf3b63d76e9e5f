"""Worlds: where activations come from. One file per world, found here by name.

A world's module has a line ``WORLDS = ("name",)``, and ``build(directory, given, **options)`` and
``load(directory, record)``, both of which return a :class:`World`.
"""

import re
from ast import literal_eval
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from lab.worlds.base import Given, World, read_record
from tsae.errors import WorldError

__all__ = ["World", "build", "load", "names"]

_NAMES = re.compile(r"^WORLDS = (\(.*?\))$", re.MULTILINE | re.DOTALL)


@cache
def _modules() -> dict[str, str]:
    """Module of each world, read off its line WORLDS: importing them all would take seconds."""
    here = Path(__file__).parent
    return {
        name: ".".join((__name__, *path.relative_to(here).with_suffix("").parts))
        for path in sorted(here.rglob("*.py"))
        for line in _NAMES.findall(path.read_text(encoding="utf-8"))
        for name in literal_eval(line)
    }


def names() -> list[str]:
    """Names of all worlds that :func:`build` knows."""
    return sorted(_modules())


def _module(name: str) -> ModuleType:
    if name not in _modules():
        raise WorldError(f"There is no world {name!r}; the worlds are: {', '.join(names())}.")
    return import_module(_modules()[name])


def build(
    name: str,
    directory: str | Path,
    *,
    seed: int = 0,
    progress: bool = True,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> World:
    """Make under ``directory`` whatever the world still lacks, and return the world.

    A build that was killed goes on where it stopped. ``options`` are the fields of the world's own
    configuration; an unknown one or a bad value raises ValueError. Raises :class:`WorldError` for
    an unknown name, a directory that holds another world, or a world that cannot be made here.
    """
    given = Given(name, seed, progress, None if cache_dir is None else Path(cache_dir))
    return _module(name).build(Path(directory), given, **options)


def load(directory: str | Path) -> World:
    """The complete world in ``directory``.

    Raises :class:`WorldError` if it is foreign, cut short or of another version.
    """
    directory, record = Path(directory), read_record(directory)
    module = _module(record.get("name", ""))
    try:
        return module.load(directory, record)
    except (KeyError, TypeError, ValueError) as error:
        raise WorldError(
            f"{directory / 'world.json'} is not a complete record; "
            "delete it and build the world again."
        ) from error
