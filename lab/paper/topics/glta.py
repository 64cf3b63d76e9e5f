"""System D: how θ, β and τ are learned, where a price on births leads them, what they do."""

import pandas as pd
from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.register import Found, register
from lab.paper.tables import Column, Table, by_ablation
from lab.results import tidy
from lab.results.systems import is_null
from tsae.errors import UserError

PARAMETERS = {"theta": r"$\theta$ (strength)", "beta": r"$\beta$ (rate)", "tau": r"$\tau$"}
LOGGED = ("world", "variant", "seed", "ablation", "step", "metric", "value")


@register("glta_paths", needs=("curves",))
def paths(found: Found) -> Figure:
    """θ, β and, where a run moves it, τ by training step, a line a setting; the main run is black.

    The settings are those ablations of GLTA that differ in what is learned: law, price, τ.
    """
    frame = tidy.prepare(found["curves"], LOGGED)
    frame = frame[frame["metric"].isin(PARAMETERS) & (frame["variant"] == "glta")]
    frame = frame[~frame["ablation"].str.contains("positions|penalty|base")]
    moves = frame.groupby("metric")["value"].nunique() > 1
    frame = frame[frame["metric"].map(moves).fillna(False).astype(bool)]
    if frame.empty:
        raise UserError("The training curves hold no 'theta' of glta: train variant glta.")
    names = sorted(frame["ablation"].unique(), key=tidy.natural)
    rows = frame.assign(head=pd.Categorical(frame["metric"].map(PARAMETERS), PARAMETERS.values()))
    rows = rows.sort_values(["ablation", "head", "step"], kind="stable")
    rows["head"] = rows["head"].astype(str)

    def look(name: str) -> dict:
        place = names.index(name)
        return {**style.setting(place - 1), "marker": ""} | ({"color": "black"} if not name else {})

    return plots.lines(
        rows.sort_values("head", key=lambda c: c.map(list(PARAMETERS.values()).index), kind="stable"),
        "step", ("step", "learned value"), column="head", by="ablation", look=look,
        name=lambda name: name or "as designed", width=style.PAGE, share_y=False,
    )  # fmt: skip


@register("glta_phases", "adaptation_theta")
def phases(found: Found) -> Figure:
    """What is learned over the price of a birth: θ, β, τ and the FVE, a dot a seed and start.

    Needs ablations whose name holds ``price=`` (and, of the other start, more settings).
    """
    frame = tidy.prepare(found["results"])
    frame = frame[frame["variant"] == "glta"]
    price = frame["ablation"].str.extract(r"price=([\d.e-]+)")[0].astype(float)
    frame = frame.assign(price=price).dropna(subset="price")
    names = {f"adaptation_{name}": label for name, label in PARAMETERS.items()} | {"fve": "FVE"}
    rows = frame[frame["metric"].isin(names) & (frame["group"] == "all")]
    if rows["price"].nunique() < 2:
        raise UserError(
            "The results hold no sweep of GLTA's price: run ablate with several prices."
        )
    rows = rows.assign(head=rows["metric"].map(names))
    rest = rows["ablation"].str.replace(r"(, )?price=[\d.e-]+", "", regex=True)
    rows = rows.assign(start=rest.where(rest != "", "as designed"))
    starts = list(dict.fromkeys(rows["start"]))
    figure = plots.lines(
        rows.sort_values("head", key=lambda c: c.map(list(names.values()).index), kind="stable"),
        "price", ("price of a birth", "after training"), column="head", by="start",
        look=lambda name: style.setting(starts.index(name)), name=str, width=style.PAGE,
        share_y=False,
    )  # fmt: skip
    low = rows.loc[rows["price"] > 0, "price"].min()
    for panel in figure.axes:
        panel.set_xscale("symlog", linthresh=low)
    return figure


@register("positions", "position_fve")
def positions(found: Found) -> Figure:
    """FVE by position in the sequence, a column a training: on all positions, or the first ones."""
    frame = tidy.prepare(found["results"])
    rows = frame[(frame["metric"] == "position_fve") & ~frame["system"].map(is_null)]
    edges = rows["group"].str.extract(r"p=(\d+)-(\d+)").astype(float)
    part = rows["ablation"].str.startswith("positions=")
    whole = rows["ablation"].eq(tidy.BASE) if part.any() else rows["ablation"].eq("")
    heads = {True: "trained on the first positions", False: "trained on all positions"}
    rows = rows.assign(position=edges.mean(axis=1), head=part.map(heads))[part | whole]
    rows = rows.sort_values("head", kind="stable")
    labels = ("position in the sequence", "FVE")
    return plots.lines(rows, "position", labels, column="head", width=style.PAGE)


@register("table_adaptation", "adaptation_theta", figure=False)
def settings(found: Found, smoke: bool) -> str:
    """Every setting of GLTA: what was learned and what it gives."""
    columns = [Column(f"adaptation_{name}") for name in PARAMETERS]
    columns += [Column("adaptation_half_life", "q=0.5", "half-life")]
    columns += [Column(n) for n in ("l0", "fve", "position_gap_fve", "births", "smoothness")]
    columns += [Column("ap", "domain"), Column("ap", "narrator")]
    table = Table(
        "adaptation",
        r"GLTA: what is learned and what it gives, by setting. $\theta$, $\beta$: means over "
        r"latents where each has its own. Half-life: median over latents, in tokens. {seeds}",
        columns,
        first="Setting",
    )
    return table.latex(tidy.prepare(found["results"]), by_ablation("glta"), smoke)
