"""Probing and use: sparse probes, linguistic tasks, absorption, removal, explanations, isolation."""

from collections.abc import Iterable

import pandas as pd

from lab.paper.register import tables
from lab.paper.tables import Column, Entry, Table, by_system, columns
from tsae.sequences import SCALES


def tasks(frame: pd.DataFrame) -> list[Column]:
    """A column a linguistic task."""
    groups = sorted(set(frame.loc[frame["metric"] == "probe_one_accuracy", "group"]) - {"all"})
    return [Column("probe_one_accuracy", task, task) for task in groups if "|" not in task]


def with_residual(frame: pd.DataFrame) -> Iterable[Entry]:
    """A row a system, and the same probe on the residual last."""
    yield from by_system(frame)
    rows = frame[frame["metric"] == "probe_residual_one_accuracy"]
    yield "residual", "residual", rows.assign(metric="probe_one_accuracy")


def groups(frame: pd.DataFrame) -> list[Column]:
    """A column a group of latents that was edited alone."""
    names = frame.loc[frame["metric"] == "isolation_gap", "group"].unique()
    return [Column("isolation_gap", name, name.replace("|", ", ")) for name in names]


tables(
    Table(
        "concepts",
        "Concepts. Accuracy (chance 0.5) of probes on $k$ latents of pooled codes; SCR and TPP when "
        "10 or 50 latents are ablated, which their critics call noise on real models; absorption of "
        "parents by children; detection: balanced accuracy of a lexical explanation. {seeds}",
        columns(*(("probe_sparse", f"{scale}|k={k}", f"{scale[:3]}. k={k}")
                  for scale in SCALES for k in (1, 5)),
                ("scr", "n=10", "SCR 10"), ("tpp", "n=10", "TPP 10"), ("tpp", "n=50", "TPP 50"),
                "absorption", "detection"),
        verdicts="topk",
    ),
    Table(
        "linguistic",
        "Agreement, coreference and disambiguation read from the best single latent at the deciding "
        "token: accuracy (chance 0.5), beside the best dimension of the residual. {seeds}",
        tasks, with_residual,
    ),
    Table(
        "isolation",
        "Knowledge isolation: the most that editing one group of latents alone forgets beyond "
        "what it costs, and the same of random latents. {seeds}",
        groups,
    ),
)  # fmt: skip
