"""Composition in numbers: how sparse W is, whether it holds in text, what parents mean."""

from collections.abc import Mapping

import pandas as pd

from lab.paper.tables.latex import cell, escape, floated, panel, seeds_note
from lab.results import tidy
from tsae.errors import UserError

COLUMNS = (
    ("l0_level1", r"$L_0^1$"),
    ("l0_level2", r"$L_0^2$"),
    ("fve", "FVE"),
    ("fve_parents", r"FVE$_2$"),
    ("composition_r2", "$R^2$"),
    ("composition_small", "Small"),
    ("children_median", "Children"),
)
MEANING = (
    ("parent_given_child", "P(p$|$c)"),
    ("parent_given_child_null", "null"),
    ("child_given_parent", "P(c$|$p)"),
    ("child_given_parent_null", "null"),
    ("parent_purity", "Purity"),
    ("parent_purity_null", "null"),
)
ABSORBED = (("absorption", "Abs.", "all"), ("absorption", "Abs.$_2$", "level2"))
EXCESSES = (
    ("parent_given_child_excess", "all", r"P(parent $|$ child)"),
    ("child_given_parent_excess", "all", r"P(child $|$ parent)"),
    ("parent_purity_excess", "all", "Purity, over a leaf of like frequency"),
    *(("parent_purity_excess", scale, f"the same, {scale} labels") for scale in tidy.SCALES),
)


def made(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, str]:
    """Every table of this file that the results allow."""
    results = found["results"]
    if not results["metric"].eq("composition_small").any():
        return {}
    return {
        "composition": composition(results, smoke),
        "composition_meaning": meaning(results, smoke),
        "composition_excess": excess(results, smoke),
    }


def composition(results: pd.DataFrame, smoke: bool = False) -> str:
    """How sparse and how well fitted both levels are."""
    caption = (
        r"Composition. $L_0^1$, $L_0^2$: active latents and parents per token; FVE$_2$: from "
        r"parents alone; $R^2$: of parents given their children; Small: share of $|W|<10^{-3}$; "
        "Children: edges of the median parent."
    )
    return settings(results, COLUMNS, caption, "composition", smoke)


def meaning(results: pd.DataFrame, smoke: bool = False) -> str:
    """Whether the composition holds in text, and how pure parents are, beside the nulls."""
    caption = (
        "Parents in text. P: of parent given child and of child given parent, over edges; Purity: "
        "of each parent's best label. Nulls: leaves of like frequency in the children's place."
    )
    columns: tuple[tuple[str, ...], ...] = MEANING
    if (results["metric"].eq("absorption") & results["group"].eq("level2")).any():
        columns += ABSORBED
        caption += " Abs., Abs.$_2$: absorption of classes by latents and by parents."
    return settings(results, columns, caption, "composition-meaning", smoke)


def settings(results: pd.DataFrame, columns: tuple, caption: str, label: str, smoke: bool) -> str:
    """Hierarchical runs and their ablations by column: mean ± s.e. over seeds, a panel a world.

    ``columns``: metric, head and, unless it is ``all``, group.
    """
    frame = tidy.prepare(results)
    measured = frame[frame["metric"] == "composition_small"]
    if measured.empty:
        raise UserError("The results hold no 'composition_small' rows: run family 'composition'.")
    body = [" & ".join(["Setting", *(head for _, head, *_ in columns)]) + r"\\"]
    for world in tidy.ordered(measured["world"]):
        body += [r"\midrule", panel(world, len(columns) + 1)]
        here = measured[measured["world"] == world]
        for name in sorted(here["ablation"].unique(), key=tidy.natural):
            mine = frame[frame["system"].isin(here["system"]) & (frame["world"] == world)]
            mine = mine[mine["ablation"] == name]
            title = rf"\texttt{{{escape(name)}}}" if name else "Hierarchical"
            cells = [cell(mine, metric, *group) for metric, _, *group in columns]
            body.append(" & ".join([title, *cells]) + r"\\")
    caption = f"{caption} {seeds_note(measured)}"
    return floated(body, "l" + "r" * len(columns), caption, label, smoke)


def excess(results: pd.DataFrame, smoke: bool = False) -> str:
    """What composition gives beyond each null, a seed a column, with 95% intervals."""
    frame = tidy.main(tidy.prepare(results))
    frame = frame[
        frame["metric"].str.startswith("parent") | frame["metric"].str.startswith("child")
    ]
    seeds = sorted(frame["seed"].unique())
    body = [" & ".join(["Beyond its null", *(f"seed {s}" for s in seeds)]) + r"\\"]
    for world in tidy.ordered(frame["world"]):
        body += [r"\midrule", panel(world, len(seeds) + 1)]
        for metric, group, title in EXCESSES:
            rows = frame[(frame["world"] == world) & (frame["group"] == group)]
            cells = [interval(rows[rows["seed"] == s], metric) for s in seeds]
            if set(cells) != {"--"}:
                body.append(" & ".join([title, *cells]) + r"\\")
    caption = (
        r"Parents against their nulls: difference with its 95\% bootstrap interval over documents; "
        "bold where the interval excludes 0."
    )
    return floated(body, "l" + "r" * len(seeds), caption, "composition-excess", smoke)


def interval(rows: pd.DataFrame, metric: str) -> str:
    """``+0.165 [0.154, 0.174]`` of one run, bold when the interval excludes 0; ``--`` if absent."""
    value = rows.set_index("metric")["value"]
    if metric not in value:
        return "--"
    low, high = value[f"{metric}_low"], value[f"{metric}_high"]
    text = f"{value[metric]:+.3f} [{low:.3f}, {high:.3f}]".replace("-", r"\textminus ")
    return text if low <= 0 <= high else rf"\textbf{{{text}}}"
