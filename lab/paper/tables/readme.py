"""The results table of README.md, from the committed tables of the full profile."""

from pathlib import Path

import pandas as pd

from lab.paper.tables import glance
from lab.results import tidy
from tsae.errors import UserError
from tsae.files import atomic

PROFILE = "full"
START = "<!-- results: written by `python -m lab.pipeline readme` -->"
END = "<!-- end of the results -->"
COLUMNS = (
    ("microworld", "fve", "all", "FVE", "fvu"),
    *(("microworld", "recovery_f1", s, f"{s} F1", "recovery_f1") for s in tidy.SCALES),
    ("microworld", "mean_dwell", "all", "mean stay", ""),
    ("smollm2", "fve", "all", "SmolLM2: FVE", "fvu"),
    ("smollm2", "recovery_f1", "document", "SmolLM2: document F1", "recovery_f1"),
)
"""World, metric, group, head, and the metric of the paired differences (empty: none)."""


def readme_table(results: pd.DataFrame, differences: pd.DataFrame, baseline: str = "topk") -> str:
    """Systems × :data:`COLUMNS` in Markdown: means over seeds, shuffled nulls left out.

    Bold: better than ``baseline`` by the 95% interval of the paired difference over documents;
    italic: worse. A dagger: L0 not within 2% of the baseline's. Needs ``l0`` and a run of the
    baseline in every world.
    """
    frame = tidy.main(tidy.prepare(results))
    matched = tidy.matched_l0(frame, baseline)
    keys = ["world", "variant", "metric", "group"]
    paired = differences[differences["baseline"] == baseline].set_index(keys)
    lines = [["system", *(head for *_, head, _ in COLUMNS)], ["---", *["--:"] * len(COLUMNS)]]
    for system in tidy.ordered(frame["system"]):
        if system.startswith("shuffled"):
            continue
        cells = [tidy.display(system) + ("" if matched[:, system].all() else " †")]
        for world, metric, group, _, counts in COLUMNS:
            mine = frame[(frame["world"] == world) & (frame["system"] == system)]
            if mine.empty:
                cells.append("")
                continue
            text = glance.mean(mine, metric, group).replace("$-$", "−")
            sign = 0
            if counts and (world, system, counts, group) in paired.index:
                found = paired.loc[(world, system, counts, group)]
                sign = int(found["lo"] > 0) - int(found["hi"] < 0)
                sign = -sign if counts in glance.FEWER_IS_BETTER else sign
            cells.append(f"**{text}**" if sign > 0 else f"*{text}*" if sign < 0 else text)
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_table(text: str, table: str) -> str:
    """``text`` with ``table`` between the two marks. Raises :class:`tsae.errors.UserError` when
    they are not there."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f"README.md lacks the marks {START} and {END}; restore it with git.")
    return f"{before}{start}\n\n{table}\n\n{end}{after}"


def from_committed(root: Path) -> str:
    """The table of ``results/full``; :class:`tsae.errors.UserError` when it is not there."""
    folder = root / "results" / PROFILE
    try:
        tables = [pd.read_parquet(folder / f"{n}.parquet") for n in ("results", "differences")]
    except FileNotFoundError:
        raise UserError(
            f"results/{PROFILE} is not there; make it with ./run_all.sh --profile {PROFILE}."
        ) from None
    return readme_table(*tables)


def rewrite(root: Path) -> Path:
    """Write the table into ``README.md``; returns its path."""
    path = root / "README.md"
    text = with_table(path.read_text(encoding="utf-8"), from_committed(root))
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
