"""The results table of README.md, from the committed tables of the canonical profile."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lab.paper.report import committed
from lab.paper.tables import Column, Table
from lab.results import tidy
from tsae.errors import UserError
from tsae.files import atomic

START = "<!-- results: written by `python -m lab.pipeline readme` -->"
END = "<!-- end of the results -->"


def daggers(sign: str):
    """``sign`` behind the L0 (or another metric) of what is not within 2% of TopK's."""
    return lambda frame: {key: sign for key, equal in tidy.matched_l0(frame).items() if not equal}


TABLE = Table(
    "readme",
    "",
    [
        Column("fve", world="microworld"),
        Column("ap", "domain", world="microworld"),
        Column("ap", "narrator", world="microworld"),
        Column("fve", head="SmolLM2: FVE", world="smollm2"),
        Column("ap", "section", head="SmolLM2: section AP", world="smollm2"),
    ],
    marks={"fve": daggers(" †")},
    verdicts="topk",
)


def markdown(found: Mapping[str, pd.DataFrame]) -> str:
    """Systems × those columns of :data:`TABLE` that are measured: means (± s.e.) over seeds.

    Bold: better than TopK by the paired interval and the metric's smallest effect; italic: worse. A
    dagger: L0 not within 2% of TopK's.
    """
    shown, lines = TABLE.cells(found, {"better": "**{}**", "worse": "*{}*"})
    rows = [["system", *(c.title() for c in shown)], ["---", *["--:"] * len(shown)]]
    rows += [texts for _, texts in lines[""]]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    plain = {r"\,{\scriptsize$\pm$\,": "±", "}": "", "$-$": "−", "\\,": " ", "| -- ": "|  "}
    for old, new in plain.items():
        text = text.replace(old, new)
    return text


def with_table(text: str, table: str) -> str:
    """``text`` with ``table`` between the two marks. Raises :class:`tsae.errors.UserError` when
    they are not there."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f"README.md lacks the marks {START} and {END}; restore it with git.")
    return f"{before}{start}\n\n{table}\n\n{end}{after}"


def from_committed(root: Path) -> str:
    """The table of ``results/laptop``; :class:`tsae.errors.UserError` when it is not there."""
    return markdown(committed("laptop", root, ["results", "differences"]))


def rewrite(root: Path) -> Path:
    """Write the table into ``README.md``; returns its path."""
    path = root / "README.md"
    text = with_table(path.read_text(encoding="utf-8"), from_committed(root))
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
