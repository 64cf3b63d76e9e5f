"""LaTeX table of temporal probing: accuracies by task and condition, beside residual and model."""

from collections.abc import Mapping

import pandas as pd

from lab.paper.tables.latex import cell, escape, floated, panel
from lab.results import tidy
from tsae.errors import UserError


def made(found: Mapping[str, pd.DataFrame], smoke: bool = False) -> dict[str, str]:
    """The tables of this file that the tidy tables allow, by name."""
    if not len(found.get("results", ())):
        return {}
    try:
        return {"temporal_probing": probing_table(found["results"], smoke)}
    except UserError:
        return {}  # a run without this family


def probing_table(results: pd.DataFrame, smoke: bool = False) -> str:
    """Accuracy of a probe on all latents, and on the best single one, by world, system and task.

    Needs ``probe_accuracy`` rows (family ``temporal_probing``) with a group a task.
    """
    frame = tidy.main(tidy.prepare(results))
    rows = frame[frame["metric"] == "probe_accuracy"]
    if rows.empty:
        raise UserError("The results hold no 'probe_accuracy': run family temporal_probing.")
    groups = sorted(rows["group"].unique(), key=tidy.natural)
    body: list[str] = []
    for world in tidy.ordered(rows["world"]):
        here = frame[frame["world"] == world]
        tasks = [g for g in groups if "|" not in g and (here["group"] == g).any()]
        names = [escape(task) for task in tasks for _ in range(2)]
        kinds = [kind for _ in tasks for kind in ("all", "one")]
        width = 1 + 2 * len(tasks)
        body += [r"\midrule"] * bool(body) + [panel(world, width)]
        body.append(
            " & ".join(["System", *(f"{n} ({k})" for n, k in zip(names, kinds, strict=True))])
        )
        body[-1] += r"\\ \midrule"
        metrics = ("probe{}_accuracy", "probe{}_one_accuracy")
        for system in tidy.ordered(rows.loc[rows["world"] == world, "system"]):
            mine = here[here["system"] == system]
            cells = [cell(mine, metric.format(""), task) for task in tasks for metric in metrics]
            body.append(" & ".join([tidy.display(system), *cells]) + r"\\")
        once = here[here["system"] == tidy.ordered(rows.loc[rows["world"] == world, "system"])[0]]
        cells = [cell(once, m.format("_residual"), task) for task in tasks for m in metrics]
        body += [r"\midrule", " & ".join(["Residual stream", *cells]) + r"\\"]
        cells = [cell(once, "probe_model_accuracy", task) for task in tasks for _ in metrics]
        body.append(" & ".join(["The model's choice", *cells]) + r"\\")
    caption = (
        "Temporal probing: accuracy on held-out templates and words of a logistic probe on the "
        "code at the deciding token, on all latents and on the best single one (of the residual: "
        "dimension). Chance is 0.5."
    )
    widest = max(line.count("&") for line in body)
    return floated(body, "l" + "r" * widest, caption, "temporal_probing", smoke)
