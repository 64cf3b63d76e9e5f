"""The same sentence under a static and a temporal dictionary."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lab.paper.figures import style
from lab.results import tidy
from tsae.errors import UserError

BOUNDARIES = {1: ("sentence", ":"), 2: ("section", "--"), 3: ("document", "-")}


@style.styled
def heatmap(
    heatmap: pd.DataFrame,
    world: str | None = None,
    variants: tuple[str, str] = ("topk", "conv"),
    sequence: int | None = None,
    n_tokens: int = 44,
    n_latents: int = 12,
) -> Figure:
    """Token × latent maps of one passage, the static dictionary above the temporal one.

    Rows: the ``n_latents`` latents with most mass on the passage, each divided by its maximum
    there; columns: its tokens; vertical lines: boundaries that start at a token (dotted: sentence,
    dashed: section, solid: document). ``world`` and ``sequence`` default to the first in the
    table. Needs the heatmap table (world, variant, sequence, position, token, boundary, latent,
    name, value). Raises :class:`tsae.errors.UserError` for a world, variant or sequence that is
    not in it.
    """
    columns = ("world", "variant", "sequence", "position", "token", "boundary", "latent", "value")
    frame = tidy.prepare(heatmap, (*columns, "name"))
    worlds = tidy.ordered(frame["world"])
    world = worlds[0] if world is None and worlds else world
    frame = frame[frame["world"] == world]
    sequences = sorted(frame["sequence"].unique())
    sequence = sequences[0] if sequence is None and sequences else sequence
    frame = frame[frame["sequence"] == sequence]
    for variant in variants:
        if variant not in set(frame["variant"]):
            raise UserError(
                f"The heat map table holds no codes of '{variant}' on sequence {sequence} of "
                f"{world}: evaluate that variant, or name another sequence."
            )
    frame = frame[frame["position"] < frame["position"].min() + n_tokens]
    tokens = frame.drop_duplicates("position").set_index("position").sort_index()
    figure, axes = style.panels(
        len(variants), 1, style.PAGE, 0.75 + len(variants) * (0.2 + 0.11 * n_latents), sharex=True
    )
    for panel, variant in zip(axes[:, 0], variants, strict=True):
        mine = frame[frame["variant"] == variant]
        grid = mine.pivot_table("value", "latent", "position", "sum", fill_value=0)
        grid = grid.reindex(columns=tokens.index, fill_value=0)
        kept = grid.sum(axis=1).nlargest(n_latents, keep="all").index[:n_latents]
        # Early latents on top, so that a slow latent reads as one bar and a fast one as a dot.
        centre = (grid.loc[kept] * np.arange(grid.shape[1])).sum(axis=1) / grid.loc[kept].sum(
            axis=1
        )
        grid = grid.loc[centre.sort_values(kind="stable").index]
        names = mine.drop_duplicates("latent").set_index("latent")["name"].fillna("")
        peak = grid.max(axis=1).replace(0, 1)
        sns.heatmap(
            grid.div(peak, axis=0),
            ax=panel,
            cmap="Greys",
            vmin=0,
            vmax=1,
            cbar=False,
            linewidths=0.2,
            linecolor="#EEEEEE",
            xticklabels=[clean(token) for token in tokens["token"]],
            yticklabels=[shorten(clean(str(names[i])) or f"latent {i}", 26) for i in grid.index],
        )
        for place, level in enumerate(tokens["boundary"]):
            if level in BOUNDARIES:
                line = BOUNDARIES[level][1]
                panel.axvline(place, color="#D55E00", linewidth=1.0, linestyle=line)
        panel.set(xlabel="", ylabel="")
        panel.set_title(
            f"{tidy.display(variant)} on {tidy.WORLDS.get(str(world), world)}", loc="left"
        )
        panel.tick_params(axis="both", length=0, labelsize=5.5)
        panel.tick_params(axis="x", labelrotation=90)
    lines = {name: {"color": "#D55E00", "linestyle": line} for name, line in BOUNDARIES.values()}
    style.legend(figure, [], 3, lines={f"{name} starts": look for name, look in lines.items()})
    return figure


def clean(text: str) -> str:
    """A token as one printable line: control characters named, ``$`` not read as mathematics."""
    named = text.replace("\n", "↵").replace("\t", "→").replace("$", r"\$")
    return "".join(letter if letter.isprintable() else "·" for letter in named).strip()


def shorten(text: str, most: int) -> str:
    """At most ``most`` characters, the last one an ellipsis where some were cut."""
    return text if len(text) <= most else text[: most - 1] + "…"
