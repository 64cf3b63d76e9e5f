"""Tidy tables: what every evaluation hands on, labelled and put together."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsae.errors import UserError
from tsae.files import atomic

if TYPE_CHECKING:
    import pandas

KEYS = ("world", "layer", "variant", "act", "seed", "ablation")


def label_rows(rows: Iterable[Mapping[str, Any]], **keys: Any) -> "pandas.DataFrame":
    """Rows of an evaluation as a table whose first columns say what they are about.

    ``keys`` are world, layer, variant, act, seed and (by default ``""``) ablation, in the column
    order of :data:`KEYS`; further keys follow them. The rows' own columns come last. Rows of the
    results table (metric and group) that name no ``reading`` are of the code itself, ``own``.
    Raises ``ValueError`` when a key is missing or a row already has it.
    """
    import pandas as pd  # here, because a plan must not wait for it

    keys = {"ablation": "", **keys}
    if missing := [key for key in KEYS if key not in keys]:
        raise ValueError(f"label_rows lacks {', '.join(missing)}; give all of {', '.join(KEYS)}.")
    table = pd.DataFrame([dict(row) for row in rows])
    if clash := sorted(set(keys) & set(table.columns)):
        raise ValueError(f"rows already have {', '.join(clash)}; name each column once.")
    order = [*KEYS, *(key for key in keys if key not in KEYS)]
    for position, key in enumerate(order):
        table.insert(position, key, keys[key])
    if {"metric", "group"} <= set(table.columns):
        read = table.pop("reading").fillna("own") if "reading" in table else "own"
        table.insert(len(order), "reading", read)
    return table


def save(tables: Mapping[str, "pandas.DataFrame"], directory: str | Path) -> None:
    """Each table as ``directory/<name>.parquet``, whole or not at all."""
    for name, table in tables.items():
        with atomic(Path(directory) / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)


def merge(stage_dirs: Iterable[str | Path], name: str) -> "pandas.DataFrame":
    """``<directory>/<name>.parquet`` of every stage that has one, one below the other, in order.

    Raises :class:`UserError` when a directory holds no finished stage, or when no stage has the
    table.
    """
    import pandas as pd

    from lab.pipeline.stage import read_manifest

    directories = [Path(directory) for directory in stage_dirs]
    file = f"{name}.parquet"
    found = [path / file for path in directories if file in read_manifest(path)["outputs"]]
    if not found:
        raise UserError(f"None of the {len(directories)} stages given has a {file}.")
    return pd.concat([pd.read_parquet(path) for path in found], ignore_index=True)
