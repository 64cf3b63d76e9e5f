"""Probing and use: sparse probes, linguistic tasks, absorption, removal, explanations, isolation."""

import pandas as pd

from lab.paper.register import Found, register
from lab.paper.tables import Column, Table, by_system
from lab.results import tidy


@register("table_concepts", "probe_sparse", figure=False)
def table(found: Found, smoke: bool) -> str:
    """Systems × probing, removal, perturbation, absorption and explanation."""
    frame = tidy.compared(found["results"])
    columns = [Column("probe_sparse", f"{scale}|k={k}", f"{scale[:3]}. k={k}")
               for scale in tidy.SCALES for k in (1, 5)]  # fmt: skip
    columns += [Column("scr", "n=10", "SCR 10"), Column("tpp", "n=10", "TPP 10"),
                Column("tpp", "n=50", "TPP 50"), Column("absorption"), Column("detection")]  # fmt: skip
    table = Table(
        "concepts",
        "Concepts. Accuracy (chance 0.5) of probes on $k$ latents of pooled codes; SCR and TPP when "
        "10 or 50 latents are ablated, which their critics call noise on real models; absorption of "
        "parents by children; detection: balanced accuracy of a lexical explanation. {seeds}",
        columns,
        verdicts="topk",
    )
    return table.latex(frame, by_system, smoke, found.get("differences"))


@register("table_linguistic", "probe_one_accuracy", figure=False)
def linguistic(found: Found, smoke: bool) -> str:
    """Linguistic probes on the best latent of the deciding token, a column a task; the last row is
    the same probe on the residual."""
    frame = tidy.compared(found["results"])
    tasks = frame.loc[frame["metric"] == "probe_one_accuracy", "group"]
    tasks = sorted(t for t in tasks.unique() if "|" not in t and t != "all")
    residual = frame[frame["metric"] == "probe_residual_one_accuracy"]
    residual = residual.assign(system="residual", metric="probe_one_accuracy")
    table = Table(
        "linguistic",
        "Agreement, coreference and disambiguation read from the best single latent at the deciding "
        "token: accuracy (chance 0.5), beside the best dimension of the residual. {seeds}",
        [Column("probe_one_accuracy", task, task) for task in tasks],
    )
    return table.latex(pd.concat([frame, residual]), by_system, smoke)


@register("table_isolation", "isolation_gap", figure=False)
def isolation(found: Found, smoke: bool) -> str:
    """Which group of latents holds the forget facts: the unlearning score of editing it alone."""
    frame = tidy.compared(found["results"])
    groups = frame.loc[frame["metric"] == "isolation_gap", "group"].unique()
    table = Table(
        "isolation",
        "Knowledge isolation: the most that editing one group of latents alone forgets beyond "
        "what it costs, and the same of random latents. {seeds}",
        [Column("isolation_gap", group, group.replace("|", ", ")) for group in groups],
    )
    return table.latex(frame, by_system, smoke)
