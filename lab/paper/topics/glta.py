"""System D: how θ, β and τ are learned, where a price on births leads them, what they do."""

import pandas as pd
from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.register import Found, register, tables
from lab.paper.tables import Table, by_ablation, columns
from lab.paper.topics.ablations import logged
from lab.results import tidy
from tsae.errors import UserError

PARAMETERS = {"theta": r"$\theta$ (strength)", "beta": r"$\beta$ (rate)", "tau": r"$\tau$"}
DESIGNED = "as designed"


def in_order(rows: pd.DataFrame, heads: dict[str, str]) -> pd.DataFrame:
    """Rows of these metrics with their ``head``, in the order of ``heads``."""
    rows = rows[rows["metric"].isin(heads)].assign(head=rows["metric"].map(heads))
    return rows.sort_values("metric", key=lambda m: m.map(list(heads).index), kind="stable")


@register("glta_paths")
def paths(found: Found) -> Figure:
    """θ, β and, where a run moves it, τ by training step, a line a setting; the main run is black.

    The settings are those ablations of GLTA that differ in what is learned: law, price, τ.
    """
    frame = logged(found, *PARAMETERS)
    frame = frame[frame["variant"].eq("glta")]
    frame = frame[~frame["ablation"].str.contains("positions|penalty|base")]
    moves = frame.groupby("metric")["value"].nunique() > 1
    rows = in_order(frame[frame["metric"].map(moves)], PARAMETERS)
    rows = rows.assign(ablation=rows["ablation"].replace("", DESIGNED))
    names = sorted(set(rows["ablation"]) - {DESIGNED}, key=tidy.natural)
    looks = {name: {**style.setting(n), "marker": ""} for n, name in enumerate(names)}
    looks = {DESIGNED: {"color": "black", "marker": ""}} | looks
    labels = ("step", "learned value")
    return plots.lines(rows, "step", labels, "head", "ablation", looks, style.PAGE, share_y=False)


@register("glta_phases")
def phases(found: Found) -> Figure:
    """What is learned over the price of a birth: θ, β, τ and the FVE, a line a start.

    Needs ablations whose name holds ``price=`` (and, of the other start, more settings).
    """
    frame = tidy.prepare(found["results"])
    frame = frame[frame["variant"].eq("glta") & frame["group"].eq("all")]
    price = frame["ablation"].str.extract(r"price=([\d.e-]+)")[0].astype(float)
    frame = frame.assign(price=price).dropna(subset="price")
    heads = {f"adaptation_{name}": label for name, label in PARAMETERS.items()} | {"fve": "FVE"}
    rows = in_order(frame, heads)
    if rows["price"].nunique() < 2:
        raise UserError("The results hold no sweep of GLTA's price: run ablate with several.")
    start = rows["ablation"].str.replace(r"(, )?price=[\d.e-]+", "", regex=True)
    rows = rows.assign(start=start.replace("", DESIGNED))
    looks = {name: style.setting(place) for place, name in enumerate(rows["start"].unique())}
    labels = ("price of a birth", "after training")
    figure = plots.lines(rows, "price", labels, "head", "start", looks, style.PAGE, share_y=False)
    for panel in figure.axes:
        panel.set_xscale("symlog", linthresh=rows.loc[rows["price"] > 0, "price"].min())
    return figure


@register("positions")
def positions(found: Found) -> Figure:
    """FVE by position in the sequence, a column a training: on all positions, or the first ones."""
    frame = tidy.prepare(found["results"])
    rows = frame[(frame["metric"] == "position_fve") & frame["how"].eq(tidy.OWN)]
    edges = rows["group"].str.extract(r"p=(\d+)-(\d+)").astype(float)
    part = rows["ablation"].str.startswith("positions=")
    whole = rows["ablation"].eq(tidy.BASE if part.any() else "")
    heads = {True: "trained on the first positions", False: "trained on all positions"}
    rows = rows.assign(position=edges.mean(axis=1), head=part.map(heads))[part | whole]
    rows = rows.sort_values("head", kind="stable")
    labels = ("position in the sequence", "FVE")
    if not part.any():
        return plots.lines(rows, "position", labels, width=style.PAGE, share_y=False)
    return plots.lines(rows, "position", labels, "head", width=style.PAGE)


tables(
    Table(
        "adaptation",
        r"GLTA: what is learned and what it gives, by setting. $\theta$, $\beta$: means over "
        r"latents where each has its own. Half-life: median over latents, in tokens. {seeds}",
        columns(*(f"adaptation_{name}" for name in PARAMETERS),
                ("adaptation_half_life", "q=0.5", "half-life"), "l0", "fve", "position_gap_fve",
                "births", "smoothness", ("ap", "domain"), ("ap", "narrator")),
        by_ablation("glta"), tidy.prepare, first="Setting",
    )
)  # fmt: skip
