"""The paper's figures, LaTeX tables and numbers, all from the merged tidy tables."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lab.paper import claims, register, style
from lab.paper.numbers import numbers_tex
from lab.paper.tables import escape, latex
from lab.results import tidy
from lab.results.comparison import verdict_shares
from lab.results.metrics import metric
from lab.results.rows import merge
from lab.results.systems import WORLDS, display, is_null
from lab.runs.training import read_configs, read_curves
from tsae.errors import UserError
from tsae.files import atomic, read_json

PAPER = Path(__file__).resolve().parents[2] / "paper"
TABLES = ("results", "documents", "dwell", "heatmap")


def gather(stage_dirs: Iterable[str | Path]) -> dict[str, pd.DataFrame]:
    """The tables of all stages, merged; curves, settings and sizes of all that trained, ablations
    among them, whose runs lie in folders below their stage."""
    directories = [Path(directory) for directory in stage_dirs]
    names = {file.stem for directory in directories for file in directory.glob("*.parquet")}
    found = {name: merge(directories, name) for name in sorted(names.union(TABLES))}
    # An SAE that two stages measured in the same way counts once.
    for name in ("results", "documents"):
        found[name] = found[name].drop_duplicates(ignore_index=True)
    found["heatmap"] = one_run_each(
        merge([d], "heatmap") for d in directories if (d / "heatmap.parquet").is_file()
    )
    trained = [file.parent for d in directories for file in sorted(d.rglob("run.json"))]
    found["curves"] = read_curves(trained).drop_duplicates(ignore_index=True)
    found["configs"] = read_configs(trained)
    found["facts"] = facts(trained)
    return found


def one_run_each(heatmaps: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Of each (world, variant) the rows of the first table that has it: a map shows one run."""
    kept, seen = [], set()
    for table in heatmaps:
        for key, rows in table.groupby(["world", "variant"], sort=False):
            if key not in seen:
                seen.add(key)
                kept.append(rows)
    return pd.concat(kept, ignore_index=True)


def facts(directories: Iterable[str | Path]) -> pd.DataFrame:
    """Sizes of the main runs, one row a (world, key): dictionary, steps, tokens."""
    rows = {}
    for directory in directories:
        run = read_json(Path(directory) / "run.json")
        if not run["keys"]["ablation"]:
            for key, value in run["sizes"].items():
                rows[run["keys"]["world"], key] = value
    table = [(world, key, value) for (world, key), value in rows.items()]
    return pd.DataFrame(table, columns=["world", "key", "value"])


def write_tables(found: Mapping[str, pd.DataFrame], directory: str | Path) -> None:
    """Each table as ``directory/<name>.parquet``; the per-document rows, which are many, stay with
    their stages."""
    for name in set(found) - {"documents"}:
        with atomic(Path(directory) / f"{name}.parquet") as temporary:
            found[name].to_parquet(temporary, index=False, compression="zstd")


def draw(
    found: dict[str, pd.DataFrame], directory: str | Path, smoke: bool, shown: Iterable[str] = ()
) -> dict[str, Figure]:
    """Every figure that the tables allow, also written as PDF and PNG; what is left out is
    printed by name, with what it lacks. ``shown``: draw these alone."""
    drawn, without = register.made(found, smoke, True, shown)
    for name, figure in drawn.items():
        style.save(figure, directory, name)
    for name, why in without.items():
        print(f"without {name}: {why}")
    return drawn


def source(paper: str | Path) -> str:
    """The paper's LaTeX, all files."""
    return "".join(f.read_text(encoding="utf-8") for f in sorted(Path(paper).glob("*.tex")))


def numbers(
    found: Mapping[str, pd.DataFrame],
    smoke: bool,
    partial: bool = False,
    part: str = "",
    paper: str | Path = PAPER,
) -> str:
    """``numbers.tex`` of one ``part`` of the paper: the macros that its text uses.

    Raises :class:`tsae.errors.UserError` when the paper uses a number that the results do not
    hold; a ``partial`` run, which leaves out worlds or stages, says so in print instead. Table
    ``twins``, if it is there, holds the verdicts on systems that are the same (the A/A test).
    """
    given = {f"{row.world} {row.key}": row.value for row in found["facts"].itertuples()}
    if len(twins := found.get("twins", ())):
        turned = verdict_shares(twins)[["better", "worse"]].sum()
        given |= {"twins": len(twins), "twins turned": f"{turned:.1%}"}
    text = source(paper)
    return numbers_tex(found["results"], found["differences"], text, given, smoke, partial, part)


def reference_table(given: pd.DataFrame) -> str:
    """What others report (``paper/reference_numbers.csv``), printed as it is written there.

    Columns: system, setting, metric, value, source; ``source`` is a BibTeX key, or ``seed`` for
    the measurements that this project started from.
    """
    lines = []
    keys = ["system", "setting", "source"]
    for (system, setting, source), rows in given.groupby(keys, sort=False):
        said = "; ".join(
            f"{escape(str(row.metric))}~{escape(str(row.value))}" for row in rows.itertuples()
        )
        cited = "seed runs" if source == "seed" else rf"\citet{{{source}}}"
        lines.append((escape(system), escape(setting), said, cited))
    caption = (
        "Reported elsewhere: other models, texts and budgets. For orientation only; none of these "
        "was produced by this repository's pipeline, and none is compared with ours."
    )
    columns = r"l>{\raggedright}p{3.0cm}>{\raggedright}p{6.9cm}>{\raggedright\arraybackslash}p{3cm}"
    heads = ("System", "Setting", "Reported", "Source")
    return latex("reference", caption, heads, {"": lines}, columns)


def write_latex(
    found: dict[str, pd.DataFrame],
    directory: str | Path,
    smoke: bool,
    partial: bool = False,
    part: str = "",
    paper: str | Path = PAPER,
    shown: Iterable[str] = (),
) -> list[str]:
    """The LaTeX tables and :func:`numbers` that one ``part`` of the paper reads; of the tables
    those ``shown`` alone, if given. A number that the text uses and the results lack is printed,
    and makes the paper a partial one. Returns the names of what was written."""
    shown, paper = set(shown), Path(paper)
    made, _ = register.made(found, smoke, False, shown)
    if not part:
        given = pd.read_csv(paper / "reference_numbers.csv", dtype=str)
        made["table_reference"] = reference_table(given)
    said = claims.read(paper / "claims.yaml")
    made["table_claims"] = claims.table(said, found["results"], found["differences"])
    made = {name: text for name, text in made.items() if not shown or name in shown}
    try:
        made["numbers"] = numbers(found, smoke, partial, part, paper)
    except UserError as error:  # a run of an hour is not lost for one word of the text
        print(error)
        made["numbers"] = numbers(found, smoke, True, part, paper)
    for name, text in made.items():
        with atomic(Path(directory) / f"{name}.tex") as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [f"{name}.tex" for name in made]


def committed(profile: str, root: Path, names: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """Tables of ``results/<profile>`` by name, by default all; :class:`tsae.errors.UserError` when
    one is missing."""
    folder = root / "results" / profile
    names = names or sorted({"results", *(file.stem for file in folder.glob("*.parquet"))})
    missing = [name for name in names if not (folder / f"{name}.parquet").is_file()]
    if missing:
        raise UserError(
            f"results/{profile} lacks {', '.join(missing)}; make it with ./run_all.sh --profile "
            f"{profile}."
        )
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in names}


def redrawn(profile: str, root: Path, part: str = "") -> dict[str, Figure]:
    """Every figure again from the committed tables, in ``figures/<part>``.

    Raises :class:`tsae.errors.UserError` when the tables are missing.
    """
    return draw(committed(profile, root), root / "figures" / part, False)


def rewrite_numbers(profile: str, root: Path, part: str = "", partial: bool = False) -> Path:
    """``numbers.tex`` and the tables again from the committed ``results/<profile>``, for a text
    that uses other numbers of a run whose stages are not here; returns the path of the numbers.

    Raises :class:`tsae.errors.UserError` when the tables are missing, and as :func:`numbers`.
    """
    found = committed(profile, root)
    directory = root / "paper" / "generated" / part
    write_latex(found, directory, False, partial, part, root / "paper")
    return directory / "numbers.tex"


def findings(found: Mapping[str, pd.DataFrame]) -> list[str]:
    """One sentence a paired difference from TopK: its verdict, then the difference."""
    lines = []
    for row in tidy.judged(found["differences"], "topk").itertuples():
        if ":" not in row.group and not is_null(row.system):
            what = metric(row.metric).phrase.format(group=row.group)
            who = f"{WORLDS.get(row.world, row.world)}: {display(row.variant)} - TopK"
            numbers = f"{row.diff:+.3f} [{row.lo:+.3f}, {row.hi:+.3f}]"
            lines.append(f"{who}, {what}: {row.verdict} ({numbers})")
    return lines
