"""LaTeX table of how each system was set: what its config holds beyond the static one's defaults."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lab.paper.tables.latex import escape, floated, panel
from lab.results import tidy

COLUMNS = ("world", "variant", "act", "field", "value")
SHARED = ("d_in", "d_sae", "k", "act")
"""Fields that are equal in all systems of a world, or stand in a column of their own."""


def made(found: Mapping[str, pd.DataFrame], smoke: bool = False) -> dict[str, str]:
    """The table of this file, where the trained SAEs' configs are among the tables."""
    configs = found.get("configs")
    if configs is None or configs.empty:
        return {}
    return {"settings": settings_table(configs, smoke=smoke)}


def printed(content: Any) -> str:
    """A value of a config as a reader writes it: a list without brackets, yes, no and none."""
    if isinstance(content, list):
        return ", ".join(map(printed, content)) or "none"
    if content is None or isinstance(content, bool):
        return {True: "yes", False: "no", None: "none"}[content]
    return f"{content:g}" if isinstance(content, float) else str(content)


def settings_table(configs: pd.DataFrame, smoke: bool = False) -> str:
    """Per world and system the fields and values of its config; ``configs``: world, variant, act,
    field, value (JSON)."""
    frame = tidy.prepare(configs, COLUMNS)
    body = [r"System & settings\\"]
    for world in tidy.ordered(frame["world"]):
        here = frame[frame["world"] == world]
        body += [r"\midrule", panel(world, 2)]
        for system in tidy.ordered(here["system"]):
            rows = here[(here["system"] == system) & ~here["field"].isin(SHARED)]
            told = "; ".join(
                f"{escape(row.field).replace(chr(92) + '_', ' ')} {escape(printed(json.loads(row.value)))}"
                for row in rows.itertuples()
            )
            body.append(rf"{escape(tidy.display(system))} & {told}\\")
    caption = (
        "Settings of each system beside the width, $k$ and budget that all share. A field that "
        "is not named here does not exist for the system; code and docstrings use the same names."
    )
    return floated(
        body, r"l>{\raggedright\arraybackslash}p{0.86\textwidth}", caption, "settings", smoke
    )
