"""The table of claims: who says what, their number, ours with its interval, and the verdict.

``paper/claims.yaml`` is a list of ``claim``, ``who`` (a BibTeX key, or ``ours``), ``theirs`` (their
number, as text) and ``ours``: ``world``, ``system``, ``metric``, ``group`` (``all`` by default) and
``baseline``, or without one a number alone; ``holds`` lists the verdicts that bear the claim out;
``made`` is the command and ``notebook`` the notebook that make it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lab.paper.tables import Table, cell, escape
from lab.results import tidy
from lab.results.metrics import VERDICTS, metric
from lab.results.systems import WORLDS, display
from tsae.errors import UserError

FIELDS = ("claim", "who", "theirs", "ours", "made", "notebook")
UNKNOWN = "not measured"


def read(path: str | Path) -> list[dict[str, Any]]:
    """The claims of a file. Raises :class:`tsae.errors.UserError` for one that is not whole."""
    claims = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or []
    for place, claim in enumerate(claims, 1):
        absent = [name for name in FIELDS if name not in claim]
        absent += [
            f"ours.{n}" for n in ("world", "system", "metric") if n not in claim.get("ours", {})
        ]
        wrong = set(claim.get("holds", ())) - set(VERDICTS)
        if absent or wrong:
            raise UserError(
                f"Claim {place} of {path} lacks {', '.join(absent) or 'nothing'}"
                f"{f' and knows no verdict {sorted(wrong)}' if wrong else ''}; its verdicts are "
                f"{', '.join(VERDICTS)}."
            )
    return claims


def answer(ours: Mapping[str, Any], results: pd.DataFrame, judged: pd.DataFrame) -> tuple[str, str]:
    """Our number (of a difference, with its interval) in LaTeX, and the verdict: empty where the
    claim names no baseline. ``results``: prepared main rows; ``judged``: :func:`tidy.judged`."""
    group = ours.get("group", "all")
    if not (baseline := ours.get("baseline")):
        rows = results[(results["world"] == ours["world"]) & (results["system"] == ours["system"])]
        text = cell(rows, ours["metric"], group)
        return ("", UNKNOWN) if text == "--" else (text, "")
    keys = {"world": ours["world"], "system": ours["system"], "baseline": baseline}
    rows = judged[judged["metric"] == ours["metric"]]
    rows = tidy.of_group(rows, group)
    for name, value in keys.items():
        rows = rows[rows[name] == value]
    if rows.empty:
        return "", UNKNOWN
    row = rows.iloc[0]
    return f"${row['diff']:+.3f}$ [${row['lo']:+.3f}$, ${row['hi']:+.3f}$]", row["verdict"]


def judge(
    claims: list[dict[str, Any]], results: pd.DataFrame, differences: pd.DataFrame
) -> list[tuple[dict[str, Any], str, str]]:
    """Each claim with our number and its verdict."""
    frame = tidy.main(tidy.prepare(results))
    judged = tidy.judged(differences)
    return [(claim, *answer(claim["ours"], frame, judged)) for claim in claims]


def table(
    claims: list[dict[str, Any]],
    results: pd.DataFrame,
    differences: pd.DataFrame,
    smoke: bool = False,
) -> str:
    """The claims as a LaTeX table, a row a claim."""
    lines = []
    for claim, number, said in judge(claims, results, differences):
        ours = claim["ours"]
        what = f"{display(ours['system'])}, {metric(ours['metric']).head}"
        what += f" {ours['group']}" if ours.get("group") else ""
        what += f" − {display(ours['baseline'])}" if ours.get("baseline") else ""
        where = WORLDS.get(ours["world"], ours["world"])
        who = "ours" if claim["who"] == "ours" else rf"\citet{{{claim['who']}}}"
        bears = {True: "yes", False: "no"}[said in claim["holds"]] if claim.get("holds") else ""
        bears = "" if said in ("", UNKNOWN, "undecided") else bears
        lines.append((escape(claim["claim"]), who, escape(str(claim["theirs"])),
                      escape(f"{what} ({where})"), number, said, bears))  # fmt: skip
    wide = r">{\raggedright\arraybackslash}"
    sizes = ("4.1cm", "1.7cm", "2.3cm", "2.9cm", "2.2cm", "1.5cm")
    columns = "".join(f"{wide}p{{{size}}}" for size in sizes) + "l"
    made = Table(
        "claims",
        "Claims, published and ours: what was said, and what is measured here, as a difference with "
        "its 95\\% interval. A verdict is better or worse (of the named quantity), equivalent "
        "(smaller than the smallest effect of interest) or undecided; the last column says whether "
        "that bears the claim out.",
        [],
    )
    heads = ("Claim", "By", "Theirs", "Measured here", "Ours", "Verdict", "Holds")
    return made.text(heads, {"": lines}, smoke, columns)
