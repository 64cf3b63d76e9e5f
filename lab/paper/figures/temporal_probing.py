"""What the code at the deciding token tells of earlier tokens, by task and condition."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError

REFERENCES = {
    "probe_residual{}_accuracy": ("residual", {"color": "black", "marker": "_", "ms": 11}),
    "probe_model_accuracy": ("the model itself", {"color": "black", "marker": "x", "ms": 5}),
}


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool = False) -> dict[str, Figure]:
    """Every figure of this file that the tables allow, by name."""
    figures = {}
    if len(found.get("results", ())):
        try:
            figures["temporal_probing"] = temporal_probing(found["results"], smoke=smoke)
        except UserError:
            pass  # a run without this family
    return figures


@style.styled
def temporal_probing(results: pd.DataFrame) -> Figure:
    """Probe accuracy by condition, a row a world, a column a task; mean over seeds.

    Upper panels: probe on all latents; lower ones: on the best single latent. Dash: the same probe
    on the residual; cross: the model's own choice between the two continuations; dotted: chance.
    Needs metrics ``probe_accuracy``, ``probe_one_accuracy`` (family ``temporal_probing``).
    """
    frame = tidy.main(tidy.prepare(results))
    frame = frame[frame["metric"].str.match(r"probe_(residual_|model_)?(one_)?accuracy$")]
    frame = frame[frame["group"].str.contains("|", regex=False)]
    if frame.empty:
        raise UserError("The results hold no 'probe_accuracy': run family temporal_probing.")
    frame[["task", "condition"]] = frame["group"].str.split("|", n=1, expand=True).to_numpy()
    worlds, systems = tidy.ordered(frame["world"]), tidy.ordered(frame["system"])
    columns = max(frame[frame["world"] == world]["task"].nunique() for world in worlds)
    height = 3.1 * len(worlds) + style.legend_height(systems) / 2
    figure, axes = style.panels(2 * len(worlds), columns, style.PAGE, height, sharey=True)
    for number, panel in enumerate(axes.flat):
        row, column = divmod(number, columns)
        here = frame[frame["world"] == worlds[row // 2]]
        tasks = sorted(here["task"].unique())
        if column >= len(tasks):
            panel.set_axis_off()
            continue
        kind = "_one" if row % 2 else ""
        here = here[here["task"] == tasks[column]]
        conditions = sorted(here["condition"].unique(), key=tidy.natural)
        for place, system in enumerate(systems):
            mine = here[(here["system"] == system) & (here["metric"] == f"probe{kind}_accuracy")]
            mean = mine.groupby("condition")["value"].mean().reindex(conditions)
            shift = 0.5 * (place / max(len(systems) - 1, 1) - 0.5)
            at = [x + shift for x in range(len(conditions))]
            panel.plot(at, mean, **{**style.look(system), "linestyle": "none", "ms": 3.5})
        for metric, (_, look) in REFERENCES.items():
            mine = here[here["metric"] == metric.format(kind)]
            mean = mine.groupby("condition")["value"].mean().reindex(conditions)
            panel.plot(range(len(conditions)), mean, linestyle="none", zorder=1, **look)
        panel.axhline(0.5, color="black", linewidth=0.6, linestyle=":")
        short = [name.replace("attractors=", "attr. ").replace("/", "/\n") for name in conditions]
        panel.set_xticks(range(len(conditions)), short)
        panel.grid(False, axis="x")
        panel.set_title(f"{tidy.WORLDS.get(worlds[row // 2], worlds[row // 2])}: {tasks[column]}")
        if column == 0:
            panel.set_ylabel("accuracy, one latent" if row % 2 else "accuracy, all latents")
    lines = {label: {**look, "linestyle": "none"} for label, look in REFERENCES.values()}
    style.legend(figure, systems, 6, lines=lines)
    return figure
