"""System A: the factorial of window, consistency and blocks; order, gates, isolated knowledge."""

from matplotlib.figure import Figure

from lab.paper.plots import Case
from lab.paper.register import Found, register
from lab.paper.tables import Column, Table, by_ablation
from lab.paper.topics.slowfast import study
from lab.results import tidy

WEIGHTS = "consistency_weights="
GAPS = {
    "shuffle_gap_fve": "FVE",
    "shuffle_gap_ap_document": "document AP",
    "shuffle_gap_ap_section": "section AP",
    "shuffle_gap_ap_token": "token AP",
}
CASES = (
    Case("fve"),
    Case("ap", "domain"),
    Case("ap", "narrator"),
    Case("ap", "section"),
    Case("always_on"),
    Case("effective_latents"),
    Case("mean_dwell"),
)


@register("conv", "fve")
def conv(found: Found) -> Figure:
    """Window, consistency loss, blocks and gates of Conv, each changed alone or crossed."""
    return study(found, ("conv",), CASES)


@register("table_ablation", "fve", figure=False)
def table(found: Found, smoke: bool) -> str:
    """Every setting of every system below the run that it changes."""
    columns = [Column(c.metric, c.group) for c in CASES[:5]]
    columns += [Column("smoothness"), Column("mean_dwell"), Column("bits"), Column("births")]
    table = Table(
        "ablation", "Ablations, each below the run that it changes. {seeds}", columns,
        first="Setting",
    )  # fmt: skip
    return table.latex(tidy.prepare(found["results"]), by_ablation(), smoke)
