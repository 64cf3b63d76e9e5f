"""Metric families by name: one file each, found without importing any."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from lab.measures.reading import Measure

_DECORATED = re.compile(r"^@register\(\s*\"(\w+)\"", re.MULTILINE)


class Family(NamedTuple):
    """A family and what it needs."""

    measure: Measure
    together: bool
    """Whether it wants all dictionaries in one call (to run the language model once for all, or to
    compare them); otherwise it is called with one at a time, so that only its codes are kept."""
    nulls: bool
    """Whether nulls (a shuffled parent) are measured as well."""
    needs: tuple[str, ...]
    """``labels`` (of the store), ``model`` (of the world): it is left out by default without."""


_FAMILIES: dict[str, Family] = {}


def register(
    name: str, *, together: bool = False, nulls: bool = False, needs: tuple[str, ...] = ()
) -> Callable[[Measure], Measure]:
    """Decorator: make ``measure`` the family ``name``; the other arguments: see :class:`Family`.

    It stands at the start of a line, with the name in double quotes, since :func:`modules` reads
    it from the text. Raises ValueError when the name is taken by another module.
    """

    def add(measure: Measure) -> Measure:
        if name in _FAMILIES and _FAMILIES[name].measure.__module__ != measure.__module__:
            raise ValueError(f"family {name!r} is registered twice; choose another name")
        _FAMILIES[name] = Family(measure, together, nulls, needs)
        return measure

    return add


@cache
def modules() -> dict[str, str]:
    """Family name → dotted name of the module that registers it, in alphabetical order."""
    here = Path(__file__).parent
    found = {}
    for path in here.glob("*/*.py"):
        for name in _DECORATED.findall(path.read_text(encoding="utf-8")):
            found[name] = f"lab.measures.{path.parent.name}.{path.stem}"
    return dict(sorted(found.items()))


def family(name: str) -> Family:
    """The family ``name``. Raises ValueError, listing all names, for an unknown one."""
    if name not in modules():
        raise ValueError(f"family {name!r} is unknown; allowed are {', '.join(modules())}")
    import_module(modules()[name])
    return _FAMILIES[name]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError, listing what there is, for an option that the family does not have."""
    measure = family(name).measure
    given = inspect.signature(inspect.unwrap(measure)).parameters.values()
    own = [p.name for p in given if p.kind is p.KEYWORD_ONLY]
    if unknown := [o for o in options if o not in own]:
        allowed = ", ".join(own) or "none"
        raise ValueError(f"family {name!r} has no option {unknown[0]!r}; allowed are {allowed}")
