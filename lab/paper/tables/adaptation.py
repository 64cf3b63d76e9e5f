"""LaTeX tables of temporal adaptation: every setting, and what is claimed with its interval."""

from collections.abc import Callable, Mapping

import pandas as pd

from lab.paper.tables.latex import cell, escape, floated, panel
from lab.results import tidy
from lab.runs import adaptation
from tsae.errors import UserError

SETTINGS = (
    ("adaptation_theta", "all", r"$\theta$"),
    ("adaptation_beta", "all", r"$\beta$"),
    ("adaptation_tau", "all", r"$\tau$"),
    ("adaptation_half_life", "q=0.5", "Half-life"),
    ("l0", "all", "L0"),
    ("fve", "all", r"FVE $\uparrow$"),
    ("recovery_f1", "document", r"Doc.\ F1 $\uparrow$"),
    ("smoothness", "all", r"Smooth.\ $\downarrow$"),
)
SYMBOLS = {"theta": r"$\theta$", "beta": r"$\beta$", "tau": r"$\tau$"}
COMPARED = {"fvu": ("FVE", -1), "smoothness": ("smoothness", 1), "ap": ("document AP", 1)}
TRAINED = {
    "all": "trained on all positions",
    "first": "trained on the first half",
    "first - all": "difference of the two",
}


def made(found: Mapping[str, pd.DataFrame], smoke: bool = False) -> dict[str, str]:
    """The tables of this file that the tidy tables allow, by name."""
    tables = {}
    cases: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
        "adaptation": (settings_table, ("results",)),
        "adaptation_intervals": (intervals_table, ("results", "documents")),
    }
    for name, (table, needs) in cases.items():
        if all(need in found and len(found[need]) for need in needs):
            try:
                tables[name] = table(*(found[need] for need in needs), smoke=smoke)
            except UserError:
                continue  # a run without this system's rows
    return tables


def settings_table(results: pd.DataFrame, smoke: bool = False) -> str:
    """Every setting of GLTA, the unchanged one first: what was learned and what it gives.

    Needs ``adaptation_theta`` rows (family ``adaptation``); what else was not measured is ``--``.
    """
    frame = tidy.prepare(results)
    frame = frame[(frame["variant"] == adaptation.SYSTEM) & (frame["act"] == "topk")]
    tidy.pick(frame, "adaptation_theta")
    ablated = frame[~frame["ablation"].isin(["", tidy.BASE])]
    ablated = ablated[~ablated["ablation"].str.match(tidy.SWEEP)]
    body = [" & ".join(["Setting", *(label for *_, label in SETTINGS)]) + r"\\"]
    for world in tidy.ordered(frame["world"]):
        body += [r"\midrule", panel(world, len(SETTINGS) + 1)]
        here, changed = (rows[rows["world"] == world] for rows in (frame, ablated))
        cases = {"full budget": tidy.main(here), "one law": tidy.unchanged(here)}
        if here["ablation"].ne(tidy.BASE).all():
            del cases["full budget"]
        for name in sorted(changed["ablation"].unique(), key=tidy.natural):
            cases[name] = changed[changed["ablation"] == name]
        for name, mine in cases.items():
            if len(mine):
                plain = name in ("full budget", "one law")
                title = name.capitalize() if plain else rf"\quad\texttt{{{escape(name)}}}"
                cells = [cell(mine, metric, group) for metric, group, _ in SETTINGS]
                body.append(" & ".join([title, *cells]) + r"\\")
    caption = (
        r"GLTA: what is learned and what it gives, by setting. $\theta$, $\beta$: means over "
        r"latents where each has its own. Half-life: median over latents, in tokens. Full budget: "
        r"the main run; below it, the ablations and the run that they change, at their own budget."
    )
    return floated(body, "l" + "r" * len(SETTINGS), caption, "adaptation", smoke)


def intervals_table(results: pd.DataFrame, documents: pd.DataFrame, smoke: bool = False) -> str:
    """What is claimed of GLTA with its 95% interval: sign and size, scope, position gap.

    Needs at least two seeds of ``adaptation_theta``, or document rows of ablation
    ``scope=feature``, or ``position_fvu`` document rows; what is missing is left out.
    """
    frame = tidy.prepare(results)
    learned = adaptation.learned_intervals(frame)
    order = ["", tidy.BASE, adaptation.SCOPE]
    learned = learned[learned["ablation"].isin(order) & (learned["parameter"] != "tau")]
    learned = learned.sort_values("ablation", key=lambda names: names.map(order.index))
    prepared = tidy.prepare(documents, ("world", "variant", "seed", "ablation", "metric", "group"))
    scope = adaptation.scope_differences(prepared)
    gaps = adaptation.position_gaps(prepared)
    if not (len(learned) or len(scope) or len(gaps)):
        raise UserError("The tables hold no rows of glta: train it with several seeds first.")
    body = [r"Quantity & Value & 95\% interval & Seeds\\"]
    for world in tidy.ordered({*learned["world"], *scope["world"], *gaps["world"]}):
        body += [r"\midrule", panel(world, 4)]
        for row in learned[learned["world"] == world].itertuples():
            of = {"": "", tidy.BASE: ", at the ablations' budget"}.get(row.ablation)
            of = ", mean over latents (a law per latent)" if of is None else of
            body.append(line(SYMBOLS[row.parameter] + of, row.mean, row.lo, row.hi, row.seeds))
        for row in scope[scope["world"] == world].itertuples():
            name, sign = COMPARED[row.metric]
            lo, hi = sorted((sign * row.lo, sign * row.hi))
            title = f"{name}: a law per latent $-$ one law"
            body.append(line(title, sign * row.diff, lo, hi, row.seeds))
        for row in gaps[gaps["world"] == world].itertuples():
            title = f"position gap, {escape(tidy.display(row.variant))}, {TRAINED[row.trained]}"
            body.append(line(title, row.diff, row.lo, row.hi, row.seeds))
    caption = (
        r"What is claimed of GLTA. $\theta$, $\beta$: mean over seeds, Student $t$ interval. "
        "Differences and gaps: bootstrap over documents and seeds. Position gap: FVE in the second half of "
        "the sequence minus FVE in the first."
    )
    return floated(body, "lrrr", caption, "adaptation-intervals", smoke)


def line(title: str, value: float, lo: float, hi: float, seeds: int) -> str:
    """A row with four decimals, since these numbers are small; bold if 0 is excluded."""
    shown = [f"{x:+.4f}".replace("-", "$-$").replace("+", "$+$") for x in (value, lo, hi)]
    number = rf"\textbf{{{shown[0]}}}" if lo > 0 or hi < 0 else shown[0]
    return rf"{title} & {number} & [{shown[1]}, {shown[2]}] & {seeds}\\"
