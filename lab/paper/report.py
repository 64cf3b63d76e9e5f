"""The paper's figures, LaTeX tables and numbers, all from the merged tidy tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lab.paper import figures, tables
from lab.paper.figures import further as figures_further
from lab.paper.tables import further as tables_further
from lab.paper.tables import structure
from lab.results import tidy
from lab.results.comparison import told
from lab.results.rows import merge
from lab.runs.training import read_configs, read_curves
from tsae.errors import UserError
from tsae.files import atomic, read_json

PAPER = Path(__file__).resolve().parents[2] / "paper"
TABLES = ("results", "documents", "dwell", "heatmap")
REDRAWN = ("pareto", "smoothness", "dwell", "heatmap", "curves")
"""Figures that need none of the stages' documents."""
REDRAWN_FROM = ("results", "dwell", "heatmap", "curves")


def gather(stage_dirs: Iterable[str | Path]) -> dict[str, pd.DataFrame]:
    """The tables of all stages, merged, and the training curves of those that trained."""
    directories = [Path(directory) for directory in stage_dirs]
    found = {name: merge(directories, name) for name in [*TABLES, *further(directories)]}
    # An SAE that two stages measured in the same way counts once.
    for name in ("results", "documents"):
        found[name] = found[name].drop_duplicates(ignore_index=True)
    found["heatmap"] = one_run_each(
        merge([d], "heatmap") for d in with_table(directories, "heatmap")
    )
    trained = [directory for directory in directories if (directory / "run.json").is_file()]
    found["curves"] = read_curves(trained)
    found["configs"] = read_configs(trained)
    found["facts"] = facts(trained)
    if "structure" in found:
        counted = structure.facts(found["structure"])
        found["facts"] = pd.concat([found["facts"], counted], ignore_index=True)
    return found


def further(directories: Iterable[Path]) -> list[str]:
    """Names of the tables that only some families or stages give."""
    names = {file.stem for directory in directories for file in directory.glob("*.parquet")}
    return sorted(names - set(TABLES))


def with_table(directories: Iterable[Path], name: str) -> list[Path]:
    """Those of the directories that hold the table."""
    return [directory for directory in directories if (directory / f"{name}.parquet").is_file()]


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
    """Sizes of the runs, one row a (world, key): dictionary, steps, tokens."""
    rows = {}
    for directory in directories:
        run = read_json(Path(directory) / "run.json")
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


def basic_drawings(
    found: Mapping[str, pd.DataFrame], smoke: bool, part: str = ""
) -> dict[str, Callable[[], Figure]]:
    """The figures that belong to no single system or evaluation, each drawn when called.

    The schema of the systems, which holds no data, belongs to the main ``part`` of the paper.
    """
    results = found["results"]
    basic = {} if part else {"systems": lambda: figures.systems(smoke=smoke)}
    basic |= {
        "pareto": lambda: figures.pareto(results, smoke=smoke),
        "smoothness": lambda: figures.smoothness(results, smoke=smoke),
        "dwell": lambda: figures.dwell(found["dwell"], smoke=smoke),
        "heatmap": lambda: figures.heatmap(found["heatmap"], smoke=smoke),
        "curves": lambda: figures.curves(found["curves"], smoke=smoke),
    }
    if (results["metric"] == "recovery_f1").any():
        basic["recovery"] = lambda: figures.recovery(results, found["documents"], smoke=smoke)
    if results["metric"].str.startswith("unlearn_").any():
        basic["unlearning"] = lambda: figures.unlearning(results, smoke=smoke)
    if (results["ablation"] != "").any():
        basic["ablation"] = lambda: figures.ablation(compared(results), smoke=smoke)
    return basic


def drawings(
    found: Mapping[str, pd.DataFrame], smoke: bool, part: str = "", shown: Iterable[str] = ()
) -> dict[str, Figure]:
    """Every figure that the tables allow, by name; a missing part is left out by name alone.

    ``shown``: draw these alone.
    """
    basic, shown = basic_drawings(found, smoke, part), set(shown)
    drawn = {name: drawing() for name, drawing in basic.items() if not shown or name in shown}
    for family in figures_further.FURTHER:
        drawn |= family.drawn(found, smoke)
    return {name: figure for name, figure in drawn.items() if not shown or name in shown}


def compared(results: pd.DataFrame) -> pd.DataFrame:
    """The rows without the ablations of variants whose smoothness was not measured in them."""
    ablated = results["ablation"] != ""
    whole = results.loc[ablated & (results["metric"] == "smoothness"), "variant"].unique()
    return results[~ablated | results["variant"].isin(whole)]


def draw(
    found: Mapping[str, pd.DataFrame],
    directory: str | Path,
    smoke: bool,
    part: str = "",
    shown: Iterable[str] = (),
) -> dict[str, Figure]:
    """:func:`drawings`, each also written as PDF and PNG."""
    drawn = drawings(found, smoke, part, shown)
    for name, figure in drawn.items():
        figures.save(figure, directory, name)
    return drawn


def numbers(
    found: Mapping[str, pd.DataFrame],
    smoke: bool,
    partial: bool = False,
    part: str = "",
    paper: str | Path = PAPER,
) -> str:
    """``numbers.tex`` of one ``part`` of the paper: the macros that its text uses.

    Raises :class:`tsae.errors.UserError` when the paper uses a number that the results do not
    hold; a ``partial`` run, which leaves out worlds or stages, says so in print instead.
    """
    given = {f"{row.world} {row.key}": row.value for row in found["facts"].itertuples()}
    files = sorted(Path(paper).glob("*.tex"))
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    return tables.numbers_tex(
        found["results"], found["differences"], source, given, smoke, partial, part
    )


def committed(profile: str, root: Path, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Tables of ``results/<profile>`` by name; :class:`tsae.errors.UserError` when one is missing."""
    folder = root / "results" / profile
    missing = [name for name in names if not (folder / f"{name}.parquet").is_file()]
    if missing:
        raise UserError(
            f"results/{profile} lacks {', '.join(missing)}; make it with ./run_all.sh --profile "
            f"{profile}."
        )
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in names}


def redrawn(profile: str, root: Path) -> dict[str, Figure]:
    """The figures that committed tables give without the stages' documents, drawn again.

    Raises :class:`tsae.errors.UserError` when a table is missing.
    """
    basic = basic_drawings(committed(profile, root, REDRAWN_FROM), smoke=False)
    return {name: basic[name]() for name in REDRAWN}


def beside(paper: Path, smoke: bool = False) -> dict[str, str]:
    """The LaTeX tables of what comes from no stage, in the main part alone: reported numbers, and
    what steps cost."""
    reference = pd.read_csv(paper / "reference_numbers.csv", dtype=str)
    return {
        "table_reference": tables.reference_table(reference),
        "table_cost": tables.cost_table(read_json(paper / "step_costs.json"), smoke=smoke),
    }


def rewrite_numbers(profile: str, root: Path, part: str = "") -> Path:
    """``numbers.tex`` again from the committed tables of ``results/<profile>``, for a text that
    uses other numbers of a run whose stages are not here, and the tables :func:`beside` it;
    returns its path.

    Raises :class:`tsae.errors.UserError` when the tables are missing, and as :func:`numbers`.
    """
    found = committed(profile, root, ("results", "differences", "facts"))
    path = root / "paper" / "generated" / part / "numbers.tex"
    made = {"numbers": numbers(found, False, False, part, root / "paper")}
    made |= {} if part else beside(root / "paper")
    for name, text in made.items():
        with atomic(path.with_stem(name)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


def write_latex(
    found: Mapping[str, pd.DataFrame],
    directory: str | Path,
    smoke: bool,
    partial: bool = False,
    part: str = "",
    paper: str | Path = PAPER,
    shown: Iterable[str] = (),
) -> list[str]:
    """The LaTeX tables and :func:`numbers` that one ``part`` of the paper reads; of the tables
    those ``shown`` alone, if given. Returns their names."""
    results = found["results"]
    shown = {"numbers", *shown} if shown else set()
    basic = {
        "numbers": lambda: numbers(found, smoke, partial, part, paper),
        "table_main": lambda: tables.main_table(results, smoke=smoke),
    }
    if (results["metric"] == "recovery_f1").any():
        basic["table_recovery"] = lambda: tables.recovery_table(
            results, found["differences"], smoke=smoke
        )
    if (results["ablation"] != "").any():
        basic["table_ablation"] = lambda: tables.ablation_table(results, smoke=smoke)
    made = {name: table() for name, table in basic.items() if not shown or name in shown}
    made |= {} if part else beside(Path(paper), smoke)
    for family in tables_further.FURTHER:
        made |= family.made(found, smoke)
    made = {name: text for name, text in made.items() if not shown or name in shown}
    for name, text in made.items():
        with atomic(Path(directory) / f"{name}.tex") as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [f"{name}.tex" for name in made]


def findings(found: Mapping[str, pd.DataFrame]) -> list[str]:
    """One sentence a paired difference from TopK: decided only by an interval without 0."""
    lines = []
    for row in found["differences"].itertuples():
        if row.baseline != "topk" or tidy.is_null(row.variant):
            continue
        world, system = tidy.WORLDS.get(row.world, row.world), tidy.display(row.variant)
        lines.append(f"{world}: {system} - TopK, {told(row)}")
    return lines
