"""What is bought at what price: the hero picture, sparsity and economy, the table of fidelity."""

import json

from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.readme import daggers
from lab.paper.register import Found, register, tables
from lab.paper.tables import Column, Table, columns, escape, latex
from lab.results import tidy
from lab.results.systems import display, ordered
from tsae.errors import UserError

SLOW = ("domain", "narrator", "topic", "section", "library")
"""Labels of the hero picture: the first two on microworld, on other worlds the first there is."""


@register("hero")
def hero(found: Found) -> Figure:
    """FVE against the AP of the best latent, a panel a slow label: right and up is better."""
    frame = tidy.main(tidy.prepare(found["results"]))
    shown = []
    for world in ordered(frame.loc[frame["metric"] == "ap", "world"].unique()):
        here = frame[frame["world"] == world]
        cases = [Column("ap", name, f"AP of {name}", world) for name in SLOW]
        cases = [case for case in cases if world != "order" and len(case.rows(here))]
        shown += cases[: 2 if world == "microworld" else 1]
    if not shown:
        raise UserError("The results hold 'ap' of no slow label: run the family that measures it.")
    return plots.against_fve(frame, [shown[:4]], style.PAGE)


@register("economy")
def economy(found: Found) -> Figure:
    """FVE against what a code costs, a row a world: L0, bits and births a token.

    A latent that stays on is paid for once in bits and births, and once a token in L0: this is
    where time can pay.
    """
    frame = tidy.prepare(found["results"])
    swept = frame["ablation"].str.match(tidy.SWEEP)
    bases = frame["ablation"].eq(tidy.BASE) & frame["of"].isin(frame.loc[swept, "of"])
    frame = frame[frame["ablation"].eq("") | swept | bases]
    costs = [name for name in ("l0", "bits", "births") if name in set(frame["metric"])]
    worlds = [w for w in ordered(tidy.pick(frame, "bits")["world"]) if w != "order"]
    cases = [[Column(cost, world=world) for cost in costs] for world in worlds]
    return plots.against_fve(frame, cases, style.PAGE)


@register("table_settings")
def settings(found: Found) -> str:
    """How each system was set: the fields of its config beside those that all share; a world's line
    is left out where an earlier world has the same."""
    frame = tidy.prepare(found["configs"], ("world", "variant", "act", "field", "value"))
    frame = frame[~frame["field"].isin(["d_in", "d_sae", "k", "act"])]
    lines: dict[str, list[tuple[str, str]]] = {}
    seen: set[tuple[str, str]] = set()
    for world in ordered(frame["world"]):
        here = frame[frame["world"] == world]
        for system in ordered(here["system"]):
            told = "; ".join(
                f"{row.field.replace('_', ' ')} {printed(json.loads(row.value))}"
                for row in here[here["system"] == system].itertuples()
            )
            if (system, told) not in seen:
                lines.setdefault(world, []).append((display(system), escape(told)))
            seen.add((system, told))
    caption = (
        "Settings of each system beside the width, $k$ and budget that all share, once where worlds "
        "agree; code and docstrings use the same names."
    )
    sizes = r"l>{\raggedright\arraybackslash}p{0.86\textwidth}"
    return latex("settings", caption, ["System", "Settings"], lines, sizes)


def printed(content: object) -> str:
    """A value of a config as a reader writes it: a list without brackets, yes, no and none."""
    if isinstance(content, list):
        return ", ".join(map(printed, content)) or "none"
    if content is None or isinstance(content, bool):
        return {True: "yes", False: "no", None: "none"}[content]
    return f"{content:g}" if isinstance(content, float) else str(content)


tables(
    Table(
        "main",
        "Fidelity and economy. {seeds} $\\dagger$: L0 more than 2\\% away from TopK's, so not "
        "comparable at equal sparsity. Dwell: mean stay in tokens. Bold: better than TopK by the "
        "paired interval and the metric's smallest effect; slanted: worse.",
        columns("l0", "fve", "ce_delta", "ce_score", "bits", "births", "alive", "always_on",
                "smoothness", "mean_dwell", "parameters"),
        marks={"l0": daggers(r"$^\dagger$")},
        verdicts="topk",
    )
)  # fmt: skip
