"""The results table of README.md, from the committed tables of the canonical profile."""

from pathlib import Path

import pandas as pd

from lab.paper.tables import Column, Table
from lab.results import tidy
from tsae.errors import UserError
from tsae.files import atomic

PROFILE = "laptop"
START = "<!-- results: written by `python -m lab.pipeline readme` -->"
END = "<!-- end of the results -->"
COLUMNS = (
    Column("fve"),
    Column("ap", "domain"),
    Column("ap", "narrator"),
    Column("fve", head="SmolLM2: FVE", world="smollm2"),
    Column("ap", "section", head="SmolLM2: section AP", world="smollm2"),
)


def readme_table(results: pd.DataFrame, differences: pd.DataFrame, baseline: str = "topk") -> str:
    """Systems × those of :data:`COLUMNS` that are measured, in Markdown: means over seeds.

    Bold: better than ``baseline`` by the paired interval and the metric's smallest effect; italic:
    worse. A dagger: L0 not within 2% of the baseline's.
    """
    frame = tidy.compared(results)
    matched = tidy.matched_l0(frame, baseline)
    marks = {"fve": lambda world, row: "" if matched.get((world, row), True) else " †"}
    return Table("readme", "", COLUMNS, marks, baseline).markdown(frame, differences)


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
    folder = root / "results" / PROFILE
    try:
        tables = [pd.read_parquet(folder / f"{n}.parquet") for n in ("results", "differences")]
    except FileNotFoundError:
        raise UserError(f"results/{PROFILE} is not there; make it with ./run_all.sh.") from None
    return readme_table(*tables)


def rewrite(root: Path) -> Path:
    """Write the table into ``README.md``; returns its path."""
    path = root / "README.md"
    text = with_table(path.read_text(encoding="utf-8"), from_committed(root))
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
