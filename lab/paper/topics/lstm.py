"""System C: what each of its parts does; births, stays, returns; what long-lived latents do."""

from matplotlib.figure import Figure

from lab.paper.plots import Case
from lab.paper.register import Found, register
from lab.paper.tables import Column, Table, by_system
from lab.paper.topics.slowfast import study
from lab.results import tidy

CASES = (
    Case("fve"),
    Case("mean_dwell"),
    Case("half_life"),
    Case("tss"),
    Case("lifetime_error", "document"),
    Case("ap", "domain"),
)


@register("lstm", "fve")
def lstm(found: Found) -> Figure:
    """Windows, gates, bridge, phases and losses of LSTM, one changed at a time."""
    return study(found, ("lstm",), CASES)


@register("table_lifecycle", "births_per_100", figure=False)
def table(found: Found, smoke: bool) -> str:
    """Systems × the life of a latent, and what ablating long- and short-lived ones does."""
    names = ("births_per_100", "mean_dwell", "half_life", "reactivation_gap", "returns")
    sets = {"long": "long", "random_long": "as often", "short": "short", "random_short": "as often"}
    columns = [*map(Column, names), *(Column("lifetime_error", s) for s in tidy.SCALES)]
    columns += [Column("effect_kl", f"ablate|{s}", f"ΔKL {word}") for s, word in sets.items()]
    table = Table(
        "lifecycle",
        "The life of a latent: births in 100 tokens, mean stay and half-life, silence before a "
        "return, share of births that are returns. $\\Delta$KL: effect on the next token of "
        "ablating the latents of longest and shortest stays, beside random latents that fire as "
        "often. {seeds}",
        columns,
    )
    return table.latex(tidy.compared(found["results"]), by_system, smoke)
