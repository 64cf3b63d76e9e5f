"""Sparse probing: what k latents tell about documents, sections and tokens."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lab.paper.figures import style
from lab.results import tidy

GROUP = r"(document|section|token)\|k=(\d+|all)"
RESIDUAL = {"color": "black", "linestyle": ":", "marker": "_", "linewidth": 1.4}


def drawn(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, Figure]:
    """Every figure of this file that the tables allow."""
    if not found["results"]["metric"].eq("probe_sparse").any():
        return {}
    return {"probing": probing(found["results"], smoke=smoke)}


def curves(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of one metric with their scale and k (a number; ``all`` stands beyond the largest)."""
    rows = frame[(frame["metric"] == metric) & frame["group"].str.fullmatch(GROUP)]
    parts = rows["group"].str.extract(GROUP)
    most = pd.to_numeric(parts[1], errors="coerce").max()
    k = pd.to_numeric(parts[1].replace("all", str(4 * (1 if np.isnan(most) else most))))
    return rows.assign(scale=parts[0], k=k)


@style.styled
def probing(results: pd.DataFrame) -> Figure:
    """Accuracy of balanced probes against k, a panel a time scale, a row a world; chance is ½.

    Lines: learned dictionaries (mean over seeds, bars ± s.e.); dotted: the residual stream with
    its k best dimensions. Nulls are in the tables. Needs ``probe_sparse`` and ``probe_residual``
    rows, groups ``document|k=5`` and so on.
    """
    frame = tidy.main(tidy.prepare(results))
    tidy.pick(frame, "probe_sparse", "token|k=all")
    codes, residual = curves(frame, "probe_sparse"), curves(frame, "probe_residual")
    codes = codes[~codes["system"].map(tidy.is_null)]
    worlds, systems = tidy.ordered(codes["world"]), tidy.ordered(codes["system"])
    height = len(worlds) * 1.65 + 0.2 + 0.15 * -(-(len(systems) + 1) // 5)
    figure, axes = style.panels(
        len(worlds), len(tidy.SCALES), style.PAGE, height, sharex=True, sharey="row"
    )
    for row, world in zip(axes, worlds, strict=True):
        for panel, scale in zip(row, tidy.SCALES, strict=True):
            here = codes[(codes["world"] == world) & (codes["scale"] == scale)]
            for system in systems:
                mine = here[here["system"] == system]
                if len(mine):
                    line = tidy.summary(mine, ("k",)).sort_values("k")
                    error = line["se"].fillna(0.0)
                    panel.errorbar(
                        line["k"], line["mean"], error, **style.look(system), ms=3, elinewidth=0.6
                    )
            mine = residual[(residual["world"] == world) & (residual["scale"] == scale)]
            if len(mine):
                line = tidy.summary(mine, ("k",)).sort_values("k")
                panel.plot(line["k"], line["mean"], **RESIDUAL)
            panel.set_xscale("log")
            ks = sorted(codes["k"].unique())
            panel.set_xticks(ks, [f"{k:g}" for k in ks[:-1]] + ["all"])
            panel.minorticks_off()
            panel.set_title(f"{tidy.WORLDS.get(world, world)}: {scale}s")
        row[0].set_ylabel("accuracy (chance ½)")
    for panel in axes[-1]:
        panel.set_xlabel("latents the probe may use, k")
    style.legend(figure, systems, columns=5, lines={"residual stream": RESIDUAL})
    return figure
