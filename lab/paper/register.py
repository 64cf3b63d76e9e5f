"""One register of the paper's figures and tables: each says which rows it needs.

A topic (one file of ``lab/paper/topics``) decorates its functions; nothing else names them, so a
new figure is one function in one file. What lacks its rows is left out by name.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from lab.paper import style, topics
from lab.results.tidy import SMOKE
from tsae.errors import UserError

Found = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Drawing:
    """A figure or a LaTeX table of the paper, and what it is made from."""

    name: str
    make: Callable[..., Any]
    """``make(found)`` gives a figure, ``make(found, smoke)`` the text of a table."""
    figure: bool
    needs: tuple[str, ...]
    """Tables that must hold rows."""
    metrics: tuple[str, ...]
    """Metrics of which the results must hold rows, beginnings with ``*`` at their end."""
    main: bool
    """Whether it holds no results and so belongs to the main part of the paper alone."""

    def missing(self, found: Found) -> list[str]:
        """The tables and metrics that are not there."""
        names = [name for name in self.needs if name not in found or found[name].empty]
        here = set(found["results"]["metric"]) if "results" in found else set()
        names += [
            name
            for name in self.metrics
            if not any(m.startswith(name[:-1]) if name.endswith("*") else m == name for m in here)
        ]
        return names

    def __call__(self, found: Found, smoke: bool = False) -> Any:
        """The figure or text. Raises :class:`tsae.errors.UserError` that names what is missing."""
        if missing := self.missing(found):
            raise UserError(
                f"{self.name} needs rows of {', '.join(missing)}: run the stage that measures "
                "them, or leave it out."
            )
        if not self.figure:
            return self.make(found, smoke)
        with plt.style.context(["default", style.STYLE]):
            figure = self.make(found)
            if smoke:
                figure.suptitle(SMOKE, color="#B00000", fontweight="bold")
        return figure


_DRAWINGS: dict[str, Drawing] = {}


def register(
    name: str,
    *metrics: str,
    needs: tuple[str, ...] = ("results",),
    figure: bool = True,
    main: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: make the function the figure (or table) ``name``; arguments: :class:`Drawing`.

    Raises ValueError when another module has taken the name.
    """

    def add(make: Callable[..., Any]) -> Callable[..., Any]:
        if name in _DRAWINGS and _DRAWINGS[name].make.__module__ != make.__module__:
            raise ValueError(f"the drawing {name!r} is registered twice; choose another name")
        _DRAWINGS[name] = Drawing(name, make, figure, needs, metrics, main)
        return make

    return add


@functools.cache
def load() -> None:
    """Import every topic, so that its drawings are registered."""
    for module in pkgutil.iter_modules(topics.__path__):
        importlib.import_module(f"{topics.__name__}.{module.name}")


def drawings() -> dict[str, Drawing]:
    """Every drawing by name."""
    load()
    return dict(_DRAWINGS)


def draw(name: str, smoke: bool = False, **found: pd.DataFrame) -> Any:
    """One drawing from the tables given by name: ``draw("smoothness", results=results)``.

    Raises :class:`tsae.errors.UserError` for a name that is not registered, and for missing rows.
    """
    known = drawings()
    if name not in known:
        raise UserError(f"There is no drawing '{name}'; there are {', '.join(sorted(known))}.")
    return known[name](found, smoke)


def made(
    found: Found, smoke: bool, figures: bool, part: str = "", shown: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every figure (or table) that the tables allow, and of the others what each one lacks.

    ``part``: the part of the paper that is filled; ``shown``: make these alone.
    """
    done, without, shown = {}, {}, set(shown)
    for name, drawing in drawings().items():
        if drawing.figure != figures or (shown and name not in shown) or (part and drawing.main):
            continue
        try:
            done[name] = drawing(found, smoke)
        except UserError as error:
            without[name] = str(error)
    return done, without
