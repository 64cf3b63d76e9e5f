"""LaTeX table of what follows what: frequent successions of latents beside the true chains."""

from collections.abc import Mapping

import pandas as pd

from lab.paper.tables.latex import escape, floated, panel
from lab.results import tidy
from tsae.errors import UserError


def made(found: Mapping[str, pd.DataFrame], smoke: bool = False) -> dict[str, str]:
    """The tables of this file that the tidy tables allow, by name."""
    if not len(found.get("patterns", ())):
        return {}
    try:
        return {"patterns": patterns_table(found["patterns"], smoke)}
    except UserError:
        return {}


def patterns_table(patterns: pd.DataFrame, smoke: bool = False, top: int = 5) -> str:
    """The ``top`` successions of each system between latents that stand for two true classes.

    Needs the table ``patterns`` (family ``lifetimes``); yes: a true edge at a true lag.
    """
    columns = ("world", "variant", "seed", "ablation", "kind", "lag", "count", "lift", "true")
    frame = tidy.main(tidy.prepare(patterns, columns))
    frame = frame[(frame["kind"] == "named") & ~frame["system"].map(tidy.is_null)]
    if frame.empty:
        raise UserError("The patterns table holds no named pattern: run family lifetimes.")
    body = [r"System & Succession & Lag & Count & Lift & True edge\\"]
    for world in tidy.ordered(frame["world"]):
        here = frame[frame["world"] == world]
        body += [r"\midrule", panel(world, 6)]
        for system in tidy.ordered(here["system"]):
            mine = here[here["system"] == system]
            mine = mine[mine["seed"] == mine["seed"].min()].head(top)
            for number, line in enumerate(mine.rename(columns={"count": "found"}).itertuples()):
                succession = rf"{escape(line.source_class)} $\to$ {escape(line.target_class)}"
                cells = [succession, f"{line.lag}", f"{line.found}", f"{line.lift:.0f}"]
                cells.append("yes" if line.true else "")
                body.append(" & ".join(["" if number else tidy.display(system), *cells]) + r"\\")
    caption = (
        "Frequent successions between latents that stand for two different steps: how often the "
        "second follows the first by so many tokens, and how much oftener than if they were "
        "independent. First seed."
    )
    return floated(body, "llrrrc", caption, "patterns", smoke)
