"""``python -m lab.measures``: can the verdicts be trusted?

aa DIRECTORY…       the verdicts of systems compared with themselves
agree FOLDER OTHER  the verdicts of two runs of one profile, on other threads or another machine
"""

import sys
from pathlib import Path

import pandas as pd

from lab.results.comparison import KEYS, against_itself, verdict_shares
from tsae.command import Parser, positive
from tsae.errors import UserError

WRONG, AGREE = 0.05, 0.98
"""The largest share of better and worse in an A/A test; the least that two runs have to agree in."""


def documents_of(directories: list[Path]) -> pd.DataFrame:
    """The document rows of every evaluation below the directories; raises UserError without any."""
    found = [path for place in directories for path in sorted(place.rglob("documents.parquet"))]
    if not found:
        places = ", ".join(map(str, directories))
        raise UserError(f"There is no documents.parquet below {places}: run an evaluation first.")
    return pd.concat([pd.read_parquet(path) for path in found], ignore_index=True)


def aa(directories: list[Path], draws: int, tex: Path | None) -> bool:
    """Whether at most 5% of the verdicts of systems on themselves are better or worse."""
    table = against_itself(documents_of(directories), n_boot=draws)
    if table.empty:
        raise UserError(
            "No system can be compared with itself: that takes four seeds of one system, or "
            "topk and causal, without feedback, at the same seeds."
        )
    share = verdict_shares(table)
    wrong = share["better"] + share["worse"]
    print(table.groupby("baseline")["verdict"].value_counts().unstack(fill_value=0).to_string())
    print(f"{len(table)} comparisons of a system with itself: {wrong:.1%} better or worse")
    if tex:
        lines = [rf"\newcommand{{\aaComparisons}}{{{len(table)}}}"]
        lines.append(rf"\newcommand{{\aaWrong}}{{{100 * wrong:.1f}}}")
        tex.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return bool(wrong <= WRONG)


def agree(folder: Path, other: Path) -> bool:
    """Whether two folders' verdicts agree in at least 98%; one that is on one side alone does not."""
    paths = [place / "differences.parquet" for place in (folder, other)]
    if absent := [str(path) for path in paths if not path.exists()]:
        raise UserError(f"There is no {' and no '.join(absent)}: make the run's figures first.")
    sides = [pd.read_parquet(path).set_index(KEYS)["verdict"] for path in paths]
    table = pd.concat(sides, axis=1, keys=["first", "second"]).fillna("absent")
    if table.empty:
        raise UserError(f"{paths[0]} and {paths[1]} hold no verdict.")
    same = table["first"] == table["second"]
    if not same.all():
        print(table[~same].to_string())
    print(f"{len(table)} verdicts: {same.mean():.1%} agree, {(~same).sum()} differ")
    return bool(same.mean() >= AGREE)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 where the verdicts cannot be trusted, 2 for a bad call."""
    parser = Parser(prog="lab.measures", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("aa", help="the A/A test of the verdicts")
    one.add_argument(
        "directories", nargs="+", type=Path, help="evaluations, or a profile's results"
    )
    one.add_argument("--draws", type=positive, default=1000, help="resamples of the documents")
    one.add_argument("--tex", type=Path, help="file for the paper's macros")
    one.set_defaults(run=lambda g: aa(g.directories, g.draws, g.tex))
    two = commands.add_parser("agree", help="the verdicts of two runs of one profile")
    two.add_argument("folder", type=Path, help="a profile's results, such as results/laptop")
    two.add_argument("other", type=Path, help="those of the other run")
    two.set_defaults(run=lambda g: agree(g.folder, g.other))
    given = parser.parse_args(arguments)
    try:
        return int(not given.run(given))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
