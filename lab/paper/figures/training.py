"""Training curves."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError


@style.styled
def curves(curves: pd.DataFrame, metric: str = "test_fve") -> Figure:
    """A training metric by step, a panel a world; line: mean over seeds, band: their range.

    The default is held-out 1 − FVE (from ``test_fve``), on a logarithmic axis like other errors.
    A tick on the step axis marks where a variant's next phase begins. Needs the curves table
    (world, variant, act, seed, ablation, step, phase, metric, value).
    """
    columns = ("world", "variant", "act", "seed", "ablation", "step", "phase", "metric", "value")
    frame = tidy.main(tidy.prepare(curves, columns))
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise UserError(
            f"The training curves hold no '{metric}': name one of "
            f"{', '.join(sorted(frame['metric'].unique())) or 'none (train first)'}."
        )
    if metric == "test_fve":
        rows = rows.assign(value=1 - rows["value"])
    worlds, systems = tidy.ordered(rows["world"]), tidy.ordered(rows["system"])
    height = 2.05 + style.legend_height(systems)
    figure, axes = style.panels(1, len(worlds), style.COLUMN, height)
    for panel, world in zip(axes[0], worlds, strict=True):
        for system in systems:
            mine = rows[(rows["world"] == world) & (rows["system"] == system)]
            if mine.empty:
                continue
            look = {k: v for k, v in style.look(system).items() if k in ("color", "linestyle")}
            sns.lineplot(
                data=mine, x="step", y="value", errorbar=("pi", 100), ax=panel, **look, zorder=3
            )
            starts = mine.groupby("phase")["step"].min()
            for start in starts[starts > starts.min()]:
                panel.axvline(start, ymax=0.05, color=look["color"], linewidth=1)
        style.title(panel, world)
        panel.set(xlabel="step", ylabel="")
        panel.locator_params(axis="x", nbins=4)
        if metric in ("test_fve", "mse", "total") and (rows["value"] > 0).all():
            panel.set_yscale("log")
    axes[0, 0].set_ylabel("held-out 1 − FVE" if metric == "test_fve" else metric)
    style.legend(figure, systems, style.legend_columns(systems))
    for entry in figure.legends[0].get_lines():
        entry.set_marker("")
    return figure
