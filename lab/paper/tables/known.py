"""LaTeX table of the facts that a world's model knows, before anything is edited."""

from collections.abc import Mapping

import pandas as pd

from lab.paper.tables.latex import escape, floated, panel
from lab.results import tidy
from tsae.errors import UserError


def known(results: pd.DataFrame, smoke: bool = False) -> str:
    """A row a subject: facts, and how many are answered rightly in each form and in every one.

    Needs ``known_facts`` and ``known_{form}`` with groups by subject (family ``known``).
    """
    frame = tidy.main(tidy.prepare(results))
    rows = frame[frame["metric"].str.startswith("known_")]
    if rows.empty:
        raise UserError("The results hold no 'known_facts' rows: run the family known.")
    forms = [name for name in rows["metric"].unique() if name != "known_facts"]
    heads = ["Subject", "facts", *(name.removeprefix("known_") for name in forms), "every form"]
    body = [" & ".join(heads) + r"\\"]
    for world in tidy.ordered(rows["world"]):
        body += [r"\midrule", panel(world, len(heads))]
        mine = rows[rows["world"] == world].drop_duplicates(["metric", "group"])
        table = mine.set_index(["group", "metric"])
        groups = [name for name in mine["group"].unique() if name != "all"]
        for group in [*groups, "all"]:
            every = table.loc[group, "known_facts"]
            right = [table.loc[(group, form), "value"] * every["n"] for form in forms]
            counts = [every["n"], *right, every["value"]]
            body.append(" & ".join([escape(group), *(f"{n:.0f}" for n in counts)]) + r"\\")
    caption = (
        "Facts that the unedited model knows: right among four choices, in each form of the "
        "question and in every one."
    )
    return floated(body, "l" + "r" * (len(heads) - 1), caption, "known", smoke, star=False)


def made(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, str]:
    """The table, if the tidy tables allow it."""
    results = found.get("results")
    if results is None or not (results["metric"] == "known_facts").any():
        return {}
    return {"known": known(results, smoke)}
