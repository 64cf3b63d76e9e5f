"""LaTeX table of the temporal convolution's ablations, by what was chosen differently."""

from collections.abc import Mapping

import pandas as pd

from lab.paper.tables.latex import cell, escape, floated, panel, seeds_note
from lab.results import tidy
from tsae.errors import UserError

SYSTEM = "conv"
COLUMNS = (
    ("l0", "all", "L0"),
    ("fve", "all", r"FVE $\uparrow$"),
    ("recovery_f1", "document", r"Doc.\ F1 $\uparrow$"),
    ("recovery_f1", "section", r"Sec.\ F1 $\uparrow$"),
    ("recovery_f1", "token", r"Tok.\ F1 $\uparrow$"),
    ("smoothness", "all", r"Smooth.\ $\downarrow$"),
    ("shuffle_gap_fve", "shuffle=8", "Shuffle gap"),
    ("boundary_f1", "learned", r"Gate F1 $\uparrow$"),
)
CHOICES = {
    "window": "Window",
    "lag_rank": "Rank of the lags",
    "gate": "Gate",
    "gate_level": "Gate",
    "group_shares": "Groups",
    "k_shares": "Groups",
    "consistency_weights": "Weights of the consistency loss",
    "consistency": "Consistency loss",
    "group_levels": "Consistency loss",
    "lags": "Consistency loss",
}


def made(found: Mapping[str, pd.DataFrame], smoke: bool = False) -> dict[str, str]:
    """The table of this file, where the results hold ablations of the convolution."""
    try:
        return {"context": context_table(found["results"], smoke=smoke)}
    except UserError:
        return {}


def choice(ablation: str) -> str:
    """What an ablation is about: ``window=4`` the window; of several settings the first counts."""
    return CHOICES.get(ablation.split("=", 1)[0], "Other")


def context_table(results: pd.DataFrame, smoke: bool = False) -> str:
    """Ablations of ``conv`` with TopK activation, grouped by choice, below the unchanged run.

    Shuffle gap: FVE minus that with tokens shuffled in windows of 8; gate F1: peaks of the learned
    gate against true boundaries. What was not measured is ``--``. Raises :class:`UserError` without
    ablations of ``conv``.
    """
    frame = tidy.prepare(results)
    frame = frame[(frame["variant"] == SYSTEM) & (frame["act"] == "topk")]
    ablated = frame[~frame["ablation"].isin(["", tidy.BASE])]
    ablated = ablated[~ablated["ablation"].str.match(tidy.SWEEP)]
    if ablated.empty:
        raise UserError(f"The results hold no ablations of {SYSTEM}: run the ablate stage first.")
    ablated = ablated.assign(choice=ablated["ablation"].map(choice))
    body = [" & ".join(["Setting", *(label for *_, label in COLUMNS)]) + r"\\"]
    for world in tidy.ordered(ablated["world"]):
        body += [r"\midrule", panel(world, len(COLUMNS) + 1)]
        here = ablated[ablated["world"] == world]
        base = tidy.unchanged(frame[frame["world"] == world])
        body.append(line("unchanged", base))
        for name in dict.fromkeys([*CHOICES.values(), "Other"]):
            mine = here[here["choice"] == name]
            if mine.empty:
                continue
            body.append(rf"\multicolumn{{{len(COLUMNS) + 1}}}{{@{{}}l}}{{\quad {name}}}\\")
            for ablation in sorted(mine["ablation"].unique(), key=tidy.natural):
                title = rf"\quad\quad\texttt{{{escape(ablation)}}}"
                body.append(line(title, mine[mine["ablation"] == ablation]))
    caption = (
        "The temporal convolution with one choice changed at a time, at the ablations' own budget. "
        f"{seeds_note(ablated)} Shuffle gap: FVE lost when tokens are shuffled within windows of "
        "8; gate F1: peaks of a learned gate against true boundaries."
    )
    return floated(body, "l" + "r" * len(COLUMNS), caption, "context", smoke)


def line(title: str, rows: pd.DataFrame) -> str:
    """One row of the table."""
    return " & ".join([title, *(cell(rows, metric, group) for metric, group, _ in COLUMNS)]) + r"\\"
