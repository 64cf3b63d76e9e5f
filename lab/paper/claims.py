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

from lab.paper.tables import Column, cell, escape, latex
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
    column = Column(ours["metric"], ours.get("group", "all"), world=ours["world"])
    if not (baseline := ours.get("baseline")):
        text = cell(results[results["system"] == ours["system"]], column)
        return ("", UNKNOWN) if text == "--" else (text, "")
    rows = column.rows(judged)
    rows = rows[(rows["system"] == ours["system"]) & (rows["baseline"] == baseline)]
    if rows.empty:
        return "", UNKNOWN
    row = rows.iloc[0]
    return f"${row['diff']:+.3f}$ [${row['lo']:+.3f}$, ${row['hi']:+.3f}$]", row["verdict"]


def table(claims: list[dict[str, Any]], results: pd.DataFrame, differences: pd.DataFrame) -> str:
    """The claims as a LaTeX table, a row a claim."""
    frame, judged = tidy.main(tidy.prepare(results)), tidy.judged(differences)
    lines = []
    for claim in claims:
        ours = claim["ours"]
        number, said = answer(ours, frame, judged)
        what = f"{display(ours['system'])}, {ours.get('group', '').split(':')[-1]} ".rstrip()
        what += f" {metric(ours['metric']).head}"
        what += f" − {display(ours['baseline'])}" if ours.get("baseline") else ""
        where = WORLDS.get(ours["world"], ours["world"])
        who = "ours" if claim["who"] == "ours" else rf"\citet{{{claim['who']}}}"
        decided = claim.get("holds") and said not in ("", UNKNOWN, "undecided")
        bears = {True: "yes", False: "no"}[said in claim["holds"]] if decided else ""
        lines.append((escape(claim["claim"]), who, escape(str(claim["theirs"])),
                      escape(f"{what} ({where})"), number, said, bears))  # fmt: skip
    wide = r">{\raggedright\arraybackslash}"
    sizes = ("3.9cm", "1.8cm", "2.4cm", "3.1cm", "2.2cm", "1.5cm")
    caption = (
        "Claims, published and ours: what was said, and what is measured here, as a difference with "
        "its 95\\% interval. A verdict is better or worse (of the named quantity), equivalent "
        "(smaller than the smallest effect of interest) or undecided; the last column says whether "
        "that bears the claim out."
    )
    heads = ("Claim", "By", "Theirs", "Measured here", "Ours", "Verdict", "Holds")
    columns = "".join(f"{wide}p{{{size}}}" for size in sizes) + "l"
    return latex("claims", caption, heads, {"": lines}, columns)
