"""SlowFast: what each of its parts does, in one figure and one table."""

from matplotlib.figure import Figure

from lab.paper.plots import Case, ablation
from lab.paper.register import Found, register
from lab.paper.tables import Column, Table, by_ablation
from lab.results import tidy

VARIANTS = ("slowfast", "rounds")
CASES = (
    Case("fve"),
    Case("ap", "domain"),
    Case("ap", "narrator"),
    Case("ap", "theme"),
    Case("ap", "section"),
    Case("ap", "token"),
    Case("births"),
)


@register("slowfast", "fve")
def slowfast(found: Found) -> Figure:
    """Each part of SlowFast changed or taken away, beside the run that it changes."""
    return study(found, VARIANTS, CASES)


def study(found: Found, variants: tuple[str, ...], cases: tuple[Case, ...]) -> Figure:
    """The ablations of some variants, by their own codes."""
    return ablation(tidy.prepare(found["results"]), variants, cases)


@register("table_slowfast", "fve", figure=False)
def table(found: Found, smoke: bool) -> str:
    """The numbers of :func:`slowfast`."""
    table = Table(
        "slowfast",
        "SlowFast and Rounds, one choice changed at a time. {seeds}",
        [Column(c.metric, c.group) for c in CASES],
        first="Setting",
    )
    return table.latex(tidy.prepare(found["results"]), by_ablation(*VARIANTS), smoke)
