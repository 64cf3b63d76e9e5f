"""One register of the paper's figures and tables, each made from the tables of results.

A topic (one file of ``lab/paper/topics``) registers its own; nothing else names them, so a new
figure is one function in one file. What lacks its rows is left out by name.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from lab.paper import style, topics
from lab.paper.tables import Table
from lab.results.tidy import SMOKE
from tsae.errors import UserError


class Found(dict[str, pd.DataFrame]):
    """Tables by name; asking for one that is not there says so."""

    def __missing__(self, name: str) -> pd.DataFrame:
        raise UserError(f"There is no table '{name}': run the stage that measures it.")


Drawing = Callable[[Found], Any]
"""Gives a figure, or (where its name begins with ``table_``) the LaTeX of a table."""
_DRAWINGS: dict[str, Drawing] = {}


def register(name: str) -> Callable[[Drawing], Drawing]:
    """Decorator: make the function the figure ``name`` (a table, after ``table_``).

    Raises ValueError when the name is taken.
    """

    def add(make: Drawing) -> Drawing:
        if name in _DRAWINGS:
            raise ValueError(f"the drawing {name!r} is registered twice; choose another name")
        _DRAWINGS[name] = make
        return make

    return add


def tables(*made: Table) -> None:
    """Register tables that are declared whole."""
    for table in made:
        register(f"table_{table.name}")(table)


@functools.cache
def drawings() -> dict[str, Drawing]:
    """Every drawing by name, of all topics."""
    for module in pkgutil.iter_modules(topics.__path__):
        importlib.import_module(f"{topics.__name__}.{module.name}")
    return _DRAWINGS


def draw(name: str, smoke: bool = False, **found: pd.DataFrame) -> Any:
    """One drawing from the tables given by name: ``draw("smoothness", results=results)``.

    Raises :class:`tsae.errors.UserError` for a name that is not registered, and for missing rows.
    """
    if name not in drawings():
        raise UserError(f"There is no drawing '{name}'; there are {', '.join(sorted(drawings()))}.")
    with plt.style.context(["default", style.STYLE]):
        drawing = drawings()[name](Found(found))
        if smoke and not name.startswith("table_"):
            drawing.suptitle(SMOKE, color="#B00000", fontweight="bold")
    return drawing


def made(
    found: dict[str, pd.DataFrame], smoke: bool, figures: bool, shown: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every figure (or table) that the tables allow, and of the others what each one lacks.

    ``shown``: make these alone.
    """
    done, without, shown = {}, {}, set(shown)
    for name in drawings():
        if name.startswith("table_") != figures and (not shown or name in shown):
            try:
                done[name] = draw(name, smoke, **found)
            except UserError as error:
                without[name] = str(error)
    return done, without
