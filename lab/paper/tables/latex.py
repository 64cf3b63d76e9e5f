"""LaTeX tables (booktabs) from the tidy tables."""

from collections.abc import Callable, Sequence

import pandas as pd

from lab.results import tidy
from tsae.errors import UserError

MAIN = (
    ("l0", "L0"),
    ("fve", r"FVE $\uparrow$"),
    ("ce_score", r"CE score $\uparrow$"),
    ("kl_score", r"KL score $\uparrow$"),
    ("alive", "Alive"),
    ("smoothness", r"Smoothness $\downarrow$"),
    ("smoothness_null", "same, shuffled"),
    ("mean_dwell", "Mean dwell"),
    ("births_per_100", "Births/100"),
)
ABLATION = (
    ("l0", "all", "L0"),
    ("fve", "all", "FVE"),
    ("recovery_f1", "document", "Doc.\\ F1"),
    ("smoothness", "all", "Smooth."),
    ("mean_dwell", "all", "Mean dwell"),
)
REFERENCE = ("system", "setting", "metric", "value", "source")
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{letter: "\\" + letter for letter in "&%$#_{}"},
}


def escape(text: str) -> str:
    r"""Text that LaTeX prints as it stands: ``a_b`` gives ``a\_b``."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def cell(frame: pd.DataFrame, metric: str, group: str = "all") -> str:
    r"""Mean over seeds ``± s.e.`` (without it for one seed), or ``--`` when not measured."""
    rows = frame[(frame["metric"] == metric) & (frame["group"] == group)]
    if rows.empty:
        return "--"
    table = tidy.summary(rows, ("metric",)).iloc[0]
    text = tidy.number(metric, table["mean"])
    if table["seeds"] > 1 and table["se"] < float("inf"):
        text += rf"\,{{\scriptsize$\pm$\,{tidy.number(metric, table['se'], table['mean'])}}}"
    return text


def floated(
    body: list[str], columns: str, caption: str, label: str, smoke: bool, star: bool = True
) -> str:
    """A table float around booktabs ``body``; ``star``: as wide as the page."""
    environment = "table*" if star else "table"
    mark = rf"\textbf{{{tidy.SMOKE}.}} " if smoke else ""
    return "\n".join(
        [
            rf"\begin{{{environment}}}[tp]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3.5pt}",
            rf"\caption{{{mark}{caption}}}\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\end{{{environment}}}",
            "",
        ]
    )


def panel(world: str, width: int) -> str:
    """A line that names the world of the rows below it."""
    name = escape(tidy.WORLDS.get(world, world))
    return rf"\multicolumn{{{width}}}{{@{{}}l}}{{\textit{{{name}}}}}\\"


def rows_of_systems(
    frame: pd.DataFrame, columns: int, row: Callable[[str], Sequence[str]]
) -> list[str]:
    """The lines of a panel: ``row(system)`` gives the cells after its name; a rule parts the nulls
    from the systems above them."""
    systems, body = tidy.ordered(frame["system"]), []
    for place, system in enumerate(systems):
        if place and tidy.is_null(system) and not tidy.is_null(systems[place - 1]):
            body.append(rf"\cmidrule(lr){{1-{columns}}}")
        body.append(" & ".join([escape(tidy.display(system)), *row(system)]) + r"\\")
    return body


def seeds_note(frame: pd.DataFrame) -> str:
    """What a cell shows, by the number of seeds in it."""
    seeds = frame.groupby(["world", "system"])["seed"].nunique()
    if seeds.max() == 1:
        return "One seed."
    note = f"Mean $\\pm$ standard error over {seeds.max()} seeds"
    return (
        f"{note}." if seeds.min() == seeds.max() else f"{note}; one seed where no error is shown."
    )


def main_table(results: pd.DataFrame, smoke: bool = False) -> str:
    r"""Systems × metrics, a panel a world: mean ± s.e. over seeds, nulls below a rule.

    A dagger at L0 marks a system more than 2% away from TopK's L0 in the same world. Needs ``l0``
    and ``fve`` (group all) and a ``topk`` run in each world; metrics not measured show ``--``.
    """
    frame = tidy.main(tidy.prepare(results))
    tidy.pick(frame, "fve")
    matched = tidy.matched_l0(frame)
    body = [" & ".join(["System", *(label for _, label in MAIN)]) + r"\\"]
    for world in tidy.ordered(matched.index.get_level_values(0)):
        body += [r"\midrule", panel(world, len(MAIN) + 1)]
        here = frame[frame["world"] == world]

        def row(system: str, here=here, world=world) -> list[str]:
            cells = [cell(here[here["system"] == system], metric) for metric, _ in MAIN]
            cells[0] += "" if matched[world, system] else r"$^\dagger$"
            return cells

        body += rows_of_systems(here, len(MAIN) + 1, row)
    caption = (
        rf"{seeds_note(frame)} $\dagger$: L0 more than {tidy.MATCHED:.0%}".replace("%", r"\%")
        + r" away from TopK's, so not comparable at equal sparsity. Mean dwell in tokens; births "
        "per 100 tokens. Below the rule: nulls, in which nothing temporal is learned."
    )
    return floated(body, "l" + "r" * len(MAIN), caption, "main", smoke)


def recovery_table(
    results: pd.DataFrame, differences: pd.DataFrame, smoke: bool = False, baseline: str = "topk"
) -> str:
    r"""F1 by time scale, and the paired difference from ``baseline`` with its 95% interval.

    ``differences``: world, variant, baseline, metric, group, diff, lo, hi. Bold: the interval
    excludes 0; dagger: L0 not matched. Needs ``l0``, and ``recovery_f1`` of at least
    one time scale.
    """
    frame = tidy.main(tidy.prepare(results))
    scales = tidy.scales(frame)
    rows = pd.concat([tidy.pick(frame, "recovery_f1", scale) for scale in scales])
    matched = tidy.matched_l0(frame, baseline)
    paired = tidy.prepare(differences, ("world", "variant", "baseline", "metric", "group", "diff"))
    paired = paired[(paired["baseline"] == baseline) & (paired["metric"] == "recovery_f1")]
    paired = paired.set_index(["world", "variant", "group"])
    name = escape(tidy.display(baseline))
    heads = " & ".join(rf"\multicolumn{{2}}{{c}}{{{scale.title()}}}" for scale in scales)
    rules = "".join(rf"\cmidrule(lr){{{i}-{i + 1}}}" for i in range(2, 2 * len(scales) + 1, 2))
    body = [f" & {heads}" + r"\\", rules]
    body.append("System" + rf" & F1 $\uparrow$ & $\Delta$ to {name}" * len(scales) + r"\\")
    for world in tidy.ordered(rows["world"]):
        body += [r"\midrule", panel(world, 1 + 2 * len(scales))]
        here = rows[rows["world"] == world]
        for system in tidy.ordered(here["system"]):
            dagger = "" if matched[world, system] else r"$^\dagger$"
            cells = [escape(tidy.display(system)) + dagger]
            for scale in scales:
                cells.append(cell(here[here["system"] == system], "recovery_f1", scale))
                found = (world, system, scale) in paired.index
                cells.append(change(paired.loc[(world, system, scale)]) if found else "--")
            body.append(" & ".join(cells) + r"\\")
    caption = (
        f"F1 of the best single latent per class, averaged over the classes of a time scale. "
        rf"{seeds_note(rows)} $\Delta$: paired difference with its 95\% bootstrap interval over "
        r"documents; bold where the interval excludes 0. $\dagger$: L0 not within 2\% of "
        f"{name}'s."
    )
    return floated(body, "l" + "rr" * len(scales), caption, "recovery", smoke)


def change(row: pd.Series) -> str:
    """``+0.080 [0.050, 0.110]``, bold when the interval excludes 0."""
    text = f"{row['diff']:+.3f} [{row['lo']:.3f}, {row['hi']:.3f}]"
    text = text.replace("-", r"\textminus ")
    return text if row["lo"] <= 0 <= row["hi"] else rf"\textbf{{{text}}}"


def ablation_table(results: pd.DataFrame, smoke: bool = False) -> str:
    """Every ablation below the run it changes. Needs rows with ``ablation != ""``."""
    frame = tidy.prepare(results)
    frame = frame[~frame["ablation"].str.match(tidy.SWEEP)]
    ablated = frame[~frame["ablation"].isin(["", tidy.BASE])]
    if ablated.empty:
        raise UserError("The results hold no ablation rows: run the ablate stage first.")
    body = [" & ".join(["Setting", *(label for *_, label in ABLATION)]) + r"\\"]
    for world in tidy.ordered(ablated["world"]):
        body += [r"\midrule", panel(world, len(ABLATION) + 1)]
        here = frame[frame["world"] == world]
        for system in tidy.ordered(ablated.loc[ablated["world"] == world, "system"]):
            runs = here[here["system"] == system]
            base = tidy.unchanged(runs)
            runs = pd.concat([base.assign(ablation=""), ablated[ablated["world"] == world]])
            runs = runs[runs["system"] == system]
            for name in sorted(runs["ablation"].unique(), key=tidy.natural):
                mine = runs[runs["ablation"] == name]
                title = rf"\quad\texttt{{{escape(name)}}}" if name else escape(tidy.display(system))
                cells = [cell(mine, metric, group) for metric, group, _ in ABLATION]
                body.append(" & ".join([title, *cells]) + r"\\")
    caption = (
        f"Ablations (seeds: {ablated['seed'].nunique()}), each below the run it changes "
        f"(seeds: {tidy.unchanged(frame)['seed'].nunique()})."
    )
    return floated(body, "l" + "r" * len(ABLATION), caption, "ablation", smoke, star=True)


def reference_table(numbers: pd.DataFrame) -> str:
    """What others report (``paper/reference_numbers.csv``), in a table of its own.

    Columns: system, setting, metric, value, source; ``source`` is a BibTeX key, or ``seed`` for
    the baselines this project started from. Values are printed as they are written there.
    """
    absent = [name for name in REFERENCE if name not in numbers.columns]
    if absent:
        raise UserError(f"The reference numbers lack the column(s) {', '.join(absent)}.")
    body = [r"System & Setting & Reported & Source\\", r"\midrule"]
    for (system, setting, source), rows in numbers.groupby(
        ["system", "setting", "source"], sort=False
    ):
        said = "; ".join(
            f"{escape(str(metric))}~{escape(str(value))}"
            for metric, value in zip(rows["metric"], rows["value"], strict=True)
        )
        cited = "seed runs" if source == "seed" else rf"\citet{{{source}}}"
        body.append(f"{escape(system)} & {escape(setting)} & {said} & {cited}" + r"\\")
    caption = (
        "Reported elsewhere: other models, texts and budgets. For orientation only; none of these "
        "was produced by this repository's pipeline, and none is compared with ours. Seed runs: "
        "measurements this project started from, at the budget given."
    )
    columns = r"l>{\raggedright}p{3.0cm}>{\raggedright}p{6.9cm}>{\raggedright\arraybackslash}p{3cm}"
    return floated(body, columns, caption, "reference", smoke=False)
