"""``python -m lab.measures aa DIRECTORY…``: the verdicts of systems compared with themselves."""

import sys
from pathlib import Path

import pandas as pd

from lab.results.comparison import against_itself, verdict_shares
from tsae.command import Parser, positive
from tsae.errors import UserError


def documents_of(directories: list[Path]) -> pd.DataFrame:
    """The document rows of every evaluation below the directories; raises UserError without any."""
    found = [path for place in directories for path in sorted(place.rglob("documents.parquet"))]
    if not found:
        places = ", ".join(map(str, directories))
        raise UserError(f"There is no documents.parquet below {places}: run an evaluation first.")
    return pd.concat([pd.read_parquet(path) for path in found], ignore_index=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 when more than 5% of verdicts are better or worse, 2 for a bad call."""
    parser = Parser(prog="lab.measures", description=__doc__)
    aa = parser.add_subparsers(required=True).add_parser("aa", help="the A/A test of the verdicts")
    aa.add_argument("directories", nargs="+", type=Path, help="evaluations, or a profile's results")
    aa.add_argument("--draws", type=positive, default=1000, help="resamples of the documents")
    aa.add_argument("--tex", type=Path, help="file for the paper's macros")
    given = parser.parse_args(arguments)
    try:
        table = against_itself(documents_of(given.directories), n_boot=given.draws)
        if table.empty:
            raise UserError(
                "No system can be compared with itself: that takes four seeds of one system, or "
                "topk and causal, without feedback, at the same seeds."
            )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    share = verdict_shares(table)
    wrong = share["better"] + share["worse"]
    print(table.groupby("baseline")["verdict"].value_counts().unstack(fill_value=0).to_string())
    print(f"{len(table)} comparisons of a system with itself: {wrong:.1%} better or worse")
    if given.tex:
        lines = [rf"\newcommand{{\aaComparisons}}{{{len(table)}}}"]
        lines.append(rf"\newcommand{{\aaWrong}}{{{100 * wrong:.1f}}}")
        given.tex.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return int(wrong > 0.05)


if __name__ == "__main__":
    sys.exit(main())
