"""LaTeX tables of pattern detection and of unlearning by strategy."""

from collections.abc import Mapping

import pandas as pd

from lab.paper.figures.strategies import ordered, title
from lab.paper.tables.latex import cell, escape, floated, panel
from lab.results import tidy
from tsae.errors import UserError

DETECTION = (
    ("chain_ap", r"AP $\uparrow$"),
    ("chain_ap_chance", "chance"),
    ("chain_precision", "precision"),
    ("chain_recall", "recall"),
    ("chain_lag_accuracy", "lag right"),
    ("dependency_match_f1", "match F1"),
)
GROUPS = (("labels", "true labels"), ("single", "one latent"), ("joint", "conjunctions"))
CHOSEN = ("forget", "near", "far")


def detection(results: pd.DataFrame, smoke: bool = False) -> str:
    """Pattern detection accuracy: a row a system and way of reading steps from its codes.

    Needs ``chain_ap`` with groups labels, single and joint (family ``dependencies``).
    """
    frame = tidy.main(tidy.prepare(results))
    rows = frame[frame["metric"].isin([name for name, _ in DETECTION])]
    if rows[rows["metric"] == "chain_ap"].empty:
        raise UserError("The results hold no 'chain_ap' rows: run the family dependencies.")
    body = [" & ".join(["System", "steps read by", *(t for _, t in DETECTION)]) + r"\\"]
    for world in tidy.ordered(rows["world"]):
        body += [r"\midrule", panel(world, 2 + len(DETECTION))]
        here = rows[rows["world"] == world]
        systems = [s for s in tidy.ordered(here["system"]) if not tidy.is_null(s)]
        for place, system in enumerate(systems):
            mine = here[here["system"] == system]
            for group, name in GROUPS:
                if group == "labels" and place:
                    continue
                cells = [cell(mine, metric, group) for metric, _ in DETECTION]
                head = "--" if group == "labels" else escape(tidy.display(system))
                body.append(" & ".join([head, name, *cells]) + r"\\")
    caption = (
        "Pattern detection: true arrows between steps, found from codes. All ordered pairs of "
        "matched steps are ranked by transfer entropy of significant edges ($q\\le.05$); lag right: "
        "of the true pairs found. Conjunctions: up to three latents a step, matched on other "
        "documents."
    )
    return floated(body, "ll" + "r" * len(DETECTION), caption, "chains", smoke)


def strategies(results: pd.DataFrame, smoke: bool = False) -> str:
    """Accuracies of each strategy at settings picked on other facts, and forgetting beyond clamp.

    Needs ``unlearn_chosen_{forget,near,far}_accuracy`` with group = strategy.
    """
    frame = tidy.main(tidy.prepare(results))
    rows = frame[frame["metric"].str.startswith(("unlearn_chosen_", "unlearn_difference"))]
    if rows.empty:
        raise UserError("The results hold no 'unlearn_chosen' rows: run the unlearning stage.")
    heads = ["System", "strategy", *(f"{name} acc." for name in CHOSEN)]
    body = [" & ".join([*heads, r"$\Delta$ forget to clamp"]) + r"\\"]
    for world in tidy.ordered(rows["world"]):
        body += [r"\midrule", panel(world, 6)]
        here = rows[rows["world"] == world]
        for system in tidy.ordered(here["system"]):
            mine = here[here["system"] == system]
            chosen = mine[mine["metric"] == "unlearn_chosen_forget_accuracy"]
            for strategy in ordered(chosen["group"]):
                cells = [cell(mine, f"unlearn_chosen_{name}_accuracy", strategy) for name in CHOSEN]
                cells.append(difference(mine, f"{strategy}|forget"))
                names = [escape(tidy.display(system)), escape(title(strategy))]
                body.append(" & ".join([*names, *cells]) + r"\\")
    caption = (
        "Unlearning by strategy: share of the clean model's right answers that is left. Settings "
        "are picked on one half of the facts (lowest forget accuracy with near $\\ge.95$ and far "
        "$\\ge.99$; none: no edit) and judged on the other, both ways. $\\Delta$: paired difference "
        "with its 95\\% bootstrap interval over facts, mean over seeds; bold where it excludes 0."
    )
    return floated(body, "ll" + "r" * 4, caption, "strategies", smoke)


def difference(mine: pd.DataFrame, group: str) -> str:
    """``-0.41 [-0.52, -0.30]``, means over seeds; "--" for the baseline itself."""
    values = []
    for name in ("", "_lo", "_hi"):
        found = mine[(mine["metric"] == f"unlearn_difference{name}") & (mine["group"] == group)]
        if found.empty:
            return "--"
        values.append(float(found["value"].mean()))
    diff, low, high = values
    text = f"{diff:+.2f} [{low:.2f}, {high:.2f}]".replace("-", r"\textminus ")
    return rf"\textbf{{{text}}}" if low > 0 or high < 0 else text


def made(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, str]:
    """Every table of this file that the tables allow."""
    results = found.get("results")
    if results is None or results.empty:
        return {}
    out, metrics = {}, set(results["metric"])
    if "chain_ap" in metrics:
        out["chains"] = detection(results, smoke)
    if "unlearn_chosen_forget_accuracy" in metrics:
        out["strategies"] = strategies(results, smoke)
    return out
