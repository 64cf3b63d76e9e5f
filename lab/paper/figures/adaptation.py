"""Temporal adaptation (GLTA): how its numbers are learned, what they do, and where."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError

PARAMETERS = {"theta": r"$\theta$ (strength)", "beta": r"$\beta$ (rate)", "tau": r"$\tau$"}
RESPONSES = {
    "fve": ("FVE", "0072B2", "o", "-"),
    "l0": ("L0 / learned L0", "777777", "s", (0, (3, 1))),
    "ap_document": ("document AP", "D55E00", "^", "--"),
    "smoothness": ("smoothness (lower: smoother)", "009E73", "D", "-."),
    "turnover": ("turnover of active latents", "CC79A7", "v", ":"),
}
POSITIONS = "positions="
SETTINGS = {
    "": ("one law for all latents", "0072B2", "-"),
    "scope=feature": ("a law per latent (mean)", "D55E00", "--"),
    "tau=learned": (r"$\tau$ learned", "009E73", "-."),
    "tau=decay": (r"$\tau$ on a schedule", "CC79A7", ":"),
}


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool = False) -> dict[str, Figure]:
    """Every figure of this file that the tables allow, by name."""
    cases = {
        "adaptation_trajectories": (trajectories, ("curves",)),
        "adaptation_spread": (spread, ("adaptation",)),
        "adaptation_sensitivity": (sensitivity, ("sensitivity",)),
        "adaptation_surface": (surface, ("adaptation_surface",)),
        "positions": (positions, ("results",)),
    }
    figures = {}
    for name, (draw, tables) in cases.items():
        if all(table in found and len(found[table]) for table in tables):
            try:
                figures[name] = draw(*(found[table] for table in tables), smoke=smoke)
            except UserError:
                continue  # a run without this system's rows
    return figures


@style.styled
def trajectories(curves: pd.DataFrame) -> Figure:
    """theta, beta and, where a run moves it, tau by training step, a row a world, a line a seed.

    Main runs and the ablations of :data:`SETTINGS`; the black line is 0. Needs the curves table
    with metrics ``beta``, ``theta`` and ``tau``, which variant ``glta`` logs.
    """
    columns = ("world", "variant", "seed", "ablation", "step", "metric", "value")
    frame = tidy.prepare(curves, columns)
    frame = frame[frame["metric"].isin(PARAMETERS) & frame["ablation"].isin(SETTINGS)]
    frame = frame[frame["variant"] == "glta"]
    if frame.empty:
        raise UserError("The training curves hold no 'theta' of glta: train variant glta.")
    worlds = tidy.ordered(frame["world"])
    shown = [name for name in SETTINGS if name in set(frame["ablation"])]
    moves = frame.groupby("metric")["value"].nunique() > 1
    names = [name for name in PARAMETERS if moves.get(name, False) or name != "tau"]
    height = 0.35 + 1.35 * len(worlds)
    figure, axes = style.panels(len(worlds), len(names), style.PAGE, height, sharex="row")
    for row, world in zip(axes, worlds, strict=True):
        for panel, name in zip(row, names, strict=True):
            rows = frame[(frame["world"] == world) & (frame["metric"] == name)]
            for ablation in shown:
                _, colour, dash = SETTINGS[ablation]
                for _, run in rows[rows["ablation"] == ablation].groupby("seed"):
                    run = run.sort_values("step")
                    panel.plot(run["step"], run["value"], color=f"#{colour}", ls=dash, lw=0.8)
            panel.axhline(0, color="black", linewidth=0.6, zorder=1)
            panel.set(xlabel="step", ylabel=PARAMETERS[name])
            style.title(panel, world)
    handles = [
        Line2D([], [], label=SETTINGS[a][0], color=f"#{SETTINGS[a][1]}", ls=SETTINGS[a][2])
        for a in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


@style.styled
def spread(adaptation: pd.DataFrame) -> Figure:
    """How latents differ, two panels a world: variance before and after scaling, and half-life.

    Left: the distribution over latents of the variance over its geometric mean (before) and of
    s_i, that ratio to the power tau (after). Right: half-life of each latent's memory, ln ½ / ln
    delta_i, under one law and, where it was trained, under a law per latent. Each line pools the
    seeds. Needs the adaptation table (latent, variance, scale, delta).
    """
    columns = ("world", "seed", "ablation", "latent", "variance", "scale", "delta")
    frame = tidy.prepare(adaptation.assign(variant="glta"), columns)
    frame = frame[frame["variance"] > 0]
    one = tidy.main(frame)
    if one.empty:
        raise UserError("The adaptation table holds no main run of glta: run the evaluate stage.")
    worlds = tidy.ordered(one["world"])
    height = 0.6 + 1.45 * len(worlds)
    figure, axes = style.panels(len(worlds), 2, style.COLUMN, height)
    shown = {"variance, before": ("#777777", "--"), "variance, after ($s_i$)": ("#009E73", "-")}
    for (left, right), world in zip(axes, worlds, strict=True):
        mine = one[one["world"] == world]
        log = np.log10(mine["variance"].clip(lower=1e-6))
        before = log - log.groupby(mine["seed"]).transform("mean")
        for values, (colour, dash) in zip(
            (before, np.log10(mine["scale"])), list(shown.values())[:2], strict=True
        ):
            curve(left, values, colour, dash)
        left.set(xlabel=r"$\log_{10}$ variance / mean", ylabel="share of latents")
        for ablation in ("", "scope=feature"):
            rows = frame[(frame["world"] == world) & (frame["ablation"] == ablation)]
            delta = rows["delta"].clip(1e-6, 1 - 1e-6)
            label, colour, dash = SETTINGS[ablation]
            if len(rows):
                life = np.log10(np.log(0.5) / np.log(delta))
                shown[label.split(" (")[0]] = f"#{colour}", dash
                curve(right, life, f"#{colour}", dash)
        right.set(xlabel=r"$\log_{10}$ half-life (tokens)")
        for panel in (left, right):
            style.title(panel, world)
    handles = [Line2D([], [], label=label, color=c, ls=d) for label, (c, d) in shown.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def curve(axes: Axes, values: pd.Series, colour: str, dash: str) -> None:
    """A histogram as a step line: share of the values in each of 30 bins."""
    share, edges = np.histogram(values, bins=30)
    axes.stairs(share / max(share.sum(), 1), edges, color=colour, ls=dash)


@style.styled
def sensitivity(sensitivity: pd.DataFrame) -> Figure:
    """What follows when one learned number is changed at inference, a row a world.

    Columns theta, beta, tau; vertical line: the learned value. FVE, document F1, smoothness and L0
    are shown over their value there, turnover as it is. L0 is left out where the activation fixes
    it. Needs the sensitivity table (parameter, setting, metric, value, learned) of main runs; of
    several seeds, the first.
    """
    columns = ("world", "seed", "ablation", "parameter", "setting", "metric", "value", "learned")
    frame = tidy.main(tidy.prepare(sensitivity.assign(variant="glta"), columns))
    if frame.empty:
        raise UserError("The sensitivity table holds no main run of glta: run the evaluate stage.")
    worlds = tidy.ordered(frame["world"])
    height = 0.35 + 1.5 * len(worlds)
    figure, axes = style.panels(len(worlds), len(PARAMETERS), style.PAGE, height, sharey="row")
    used = []
    for row, world in zip(axes, worlds, strict=True):
        here = frame[frame["world"] == world]
        here = here[here["seed"] == here["seed"].min()]
        l0 = here.loc[here["metric"] == "l0", "value"]
        fixed = {"l0"} if l0.max() - l0.min() < 0.02 * l0.mean() else set()
        for panel, (name, label) in zip(row, PARAMETERS.items(), strict=True):
            for metric, (_, colour, marker, dash) in RESPONSES.items():
                rows = here[(here["parameter"] == name) & (here["metric"] == metric)]
                rows = rows.sort_values("setting")
                if rows.empty or metric in fixed:
                    continue
                at = rows.loc[rows["learned"], "value"].mean()
                value = rows["value"] / (1 if metric == "turnover" else at)
                line = {"color": f"#{colour}", "marker": marker, "ls": dash, "ms": 2.5}
                panel.plot(rows["setting"], value, **line)
                used.append(metric)
            where = here[(here["parameter"] == name) & here["learned"]]["setting"]
            if len(where):
                panel.axvline(where.iloc[0], color="black", linewidth=0.8, zorder=1)
            panel.set_xlabel(label)
            style.title(panel, world)
        row[0].set_ylabel("value / learned value")
    handles = [
        Line2D([], [], label=label, color=f"#{colour}", marker=marker, ls=dash, ms=3)
        for metric, (label, colour, marker, dash) in RESPONSES.items()
        if metric in used
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


@style.styled
def surface(surface: pd.DataFrame) -> Figure:
    """FVE over theta and beta at inference, a panel a world; the frame is what was learned.

    Cells are not to scale and hold FVE; a darker cell keeps more, the lightest 0.3 less than the
    best, or worse. Needs the
    adaptation_surface table (theta, beta, fve, learned) of main runs; of several seeds, the first.
    """
    columns = ("world", "seed", "ablation", "theta", "beta", "fve", "learned")
    frame = tidy.main(tidy.prepare(surface.assign(variant="glta"), columns))
    if frame.empty:
        raise UserError("The surface table holds no main run of glta: run the evaluate stage.")
    worlds = tidy.ordered(frame["world"])
    figure, axes = style.panels(1, len(worlds), style.PAGE, 2.3)
    for panel, world in zip(axes[0], worlds, strict=True):
        here = frame[frame["world"] == world]
        here = here[here["seed"] == here["seed"].min()]
        grid = here.pivot_table("fve", "beta", "theta")
        best = grid.to_numpy().max()
        low = max(grid.to_numpy().min(), best - 0.3)
        image = panel.imshow(
            grid, aspect="auto", origin="lower", cmap="cividis_r", vmin=low, vmax=best
        )
        for y, x in np.ndindex(grid.shape):
            value = grid.iat[y, x]
            text = f"{value:.2f}".replace("0.", ".", 1)
            colour = "white" if value > (low + best) / 2 else "black"
            panel.text(x, y, text, ha="center", va="center", fontsize=4.5, color=colour)
        learned = here[here["learned"]].iloc[0]
        spot = grid.columns.get_loc(learned["theta"]), grid.index.get_loc(learned["beta"])
        panel.plot(*spot, "s", ms=14, mfc="none", mec="#D55E00", mew=1.4)
        for axis, values, label in (
            (panel.xaxis, grid.columns, PARAMETERS["theta"]),
            (panel.yaxis, grid.index, PARAMETERS["beta"]),
        ):
            axis.set_ticks(range(len(values)), [f"{v:.2g}" for v in values])
            axis.set_label_text(label)
        panel.tick_params(axis="x", labelrotation=60)
        panel.grid(False)
        style.title(panel, world)
        figure.colorbar(image, ax=panel, label="FVE", pad=0.01)
    return figure


@style.styled
def positions(results: pd.DataFrame) -> Figure:
    """FVE by position in the sequence, a panel a world: trained on all positions, or the first ones.

    Full line: all positions; dashed, hollow: ablation ``positions=…``, whose boundary is the
    vertical line; both at the same budget of tokens (ablation ``base`` where there is one). Needs
    ``position_fve`` rows of groups ``p=first-last``.
    """
    frame = tidy.prepare(results)
    rows = frame[frame["metric"] == "position_fve"].copy()
    if rows.empty:
        raise UserError("The results hold no 'position_fve' rows: name family 'positions'.")
    edges = rows["group"].str.extract(r"p=(\d+)-(\d+)").astype(float)
    rows["position"], last = edges.mean(axis=1), edges[1].max() + 1
    cut = rows["ablation"].str.startswith(POSITIONS)
    asked = rows[rows["system"].isin(rows.loc[cut, "system"])] if cut.any() else tidy.main(rows)
    worlds = tidy.ordered(asked["world"])
    systems = [s for s in tidy.ordered(asked["system"]) if not tidy.is_null(s)]
    height = 2.05 + style.legend_height([*systems, "", ""])
    figure, axes = style.panels(1, len(worlds), style.COLUMN, height)
    for panel, world in zip(axes[0], worlds, strict=True):
        for system in systems:
            case = asked[(asked["world"] == world) & (asked["system"] == system)]
            part = case[case["ablation"].str.startswith(POSITIONS)]
            look = {**style.look(system), "ms": 2.5}
            for lines, changed in (
                (tidy.unchanged(case), {"linestyle": "-"}),
                (part, {"linestyle": "--", "markerfacecolor": "white"}),
            ):
                mean = lines.groupby("position")["value"].mean()
                panel.plot(mean.index, mean, **{**look, **changed})
            for share in part["ablation"].str.removeprefix(POSITIONS).astype(float).unique():
                panel.axvline(share * last, color="black", linewidth=0.8, zorder=1)
        style.title(panel, world)
        panel.set_xlabel("position")
    axes[0, 0].set_ylabel("fraction of variance explained")
    dashed = {"color": "black", "linestyle": "--", "marker": "o", "markerfacecolor": "white"}
    style.legend(figure, systems, 3, lines={"on the first positions": dashed})
    for entry in figure.legends[0].get_lines()[: len(systems)]:
        entry.set_linestyle("-")  # a dash says here what was trained on, not which system
    return figure
