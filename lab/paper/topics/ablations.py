"""What each part of a system does: one choice changed at a time, and how it was trained."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from lab.paper import plots, style
from lab.paper.register import Found, register, tables
from lab.paper.tables import Column, Table, by_ablation, columns
from lab.results import tidy
from lab.results.systems import display, ordered
from tsae.errors import UserError

LOGGED = ("world", "variant", "act", "seed", "ablation", "step", "phase", "metric", "value")
SLOWFAST = columns("fve", *(("ap", g) for g in ("domain", "narrator", "theme", "section", "token")),
                   "births")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A figure: the settings of some variants, a line each, beside the run that they change."""

    variants: tuple[str, ...]
    panels: list[Column]

    def __call__(self, found: Found) -> Figure:
        blocks = plots.of_settings(tidy.prepare(found["results"]), *self.variants)
        if not blocks:
            raise UserError(f"The results hold no ablation of {', '.join(self.variants)}.")
        return plots.dots(blocks, self.panels)


register("slowfast")(Study(("slowfast", "rounds"), SLOWFAST))
register("conv")(Study(("conv",), columns(
    "fve", ("ap", "domain"), ("ap", "narrator"), ("ap", "section"), "always_on",
    "effective_latents", "mean_dwell",
)))  # fmt: skip
register("lstm")(Study(("lstm",), columns(
    "fve", "mean_dwell", "half_life", "tss", ("lifetime_error", "document"), ("ap", "domain"),
)))  # fmt: skip
register("hierarchical")(Study(("hierarchical",), columns(
    "fve", "composition_r2", "parent_purity_excess", ("level_mean_dwell", "level2"),
    ("ap", "domain"),
)))  # fmt: skip


def logged(found: Found, *metrics: str) -> pd.DataFrame:
    """Rows of training metrics; without any, a :class:`UserError` that names those there are."""
    frame = tidy.prepare(found["curves"], LOGGED)
    rows = frame[frame["metric"].isin(metrics)]
    if rows.empty:
        raise UserError(
            f"The training curves hold no {' or '.join(map(repr, metrics))}: name one of "
            f"{', '.join(sorted(frame['metric'].unique())) or 'none (train first)'}."
        )
    return rows


def held_out(found: Found) -> pd.DataFrame:
    """The curves of held-out 1 − FVE."""
    rows = logged(found, "test_fve")
    return rows.assign(value=1 - rows["value"])


LABELS = ("step", "held-out FVE")


@register("curves")
def curves(found: Found) -> Figure:
    """Held-out FVE by step, a panel a world. A tick: a variant's next phase begins."""
    rows = tidy.main(held_out(found))
    looks = {
        name: {**look, "marker": ""} for name, look in style.of_systems(rows["system"]).items()
    }
    figure = plots.lines(rows, "step", LABELS, looks=looks, width=style.PAGE, share_y=False)
    for panel, world in zip(figure.axes, ordered(rows["world"]), strict=True):
        here = rows[rows["world"] == world]
        plots.fve_axis(panel, here["value"].min(), here["value"].max())
        for system, mine in here.groupby("system"):
            for start in sorted(mine.groupby("phase")["step"].min())[1:]:
                panel.axvline(start, ymax=0.05, color=style.look(system)["color"], linewidth=1)
    return figure


@register("ablation_curves")
def ablation_curves(found: Found) -> Figure:
    """Held-out FVE by step of every ablation, a column a system; black: the run it changes."""
    rows = held_out(found)
    rows = rows[rows["ablation"].ne("") & ~rows["ablation"].str.match(tidy.SWEEP)]
    names = [tidy.BASE, *tidy.settings(rows)]
    looks = {name: {**style.setting(place - 1), "marker": ""} for place, name in enumerate(names)}
    looks[tidy.BASE] |= {"color": "black", "linestyle": "-"}
    rows = rows.assign(head=rows["system"].map(display))
    figure = plots.lines(rows, "step", LABELS, "head", "ablation", looks, style.PAGE)
    for panel in figure.axes:
        plots.fve_axis(panel, rows["value"].min(), rows["value"].max())
    return figure


tables(
    Table(
        "ablation",
        "Ablations, each below the run that it changes. {seeds}",
        columns("fve", ("ap", "domain"), ("ap", "narrator"), ("ap", "section"), "always_on",
                "smoothness", "mean_dwell", "bits", "births"),
        by_ablation(), tidy.prepare, first="Setting",
    ),
    Table(
        "slowfast",
        "SlowFast and Rounds, one choice changed at a time. {seeds}",
        SLOWFAST, by_ablation("slowfast", "rounds"), tidy.prepare, first="Setting",
    ),
)  # fmt: skip
