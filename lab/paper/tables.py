"""One builder for every table: columns are metrics, rows are systems, settings or groups.

Headings, directions and decimals come from :mod:`lab.results.metrics`. The same table is printed in
LaTeX (booktabs) or, for the README, in Markdown.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from lab.results import tidy
from lab.results.systems import WORLDS, display, is_null, ordered
from tsae.errors import UserError

SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "−": "$-$",
    "Δ": r"$\Delta$", "θ": r"$\theta$", "β": r"$\beta$", "τ": r"$\tau$", "²": "$^2$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    **{letter: "\\" + letter for letter in "&%$#_{}"},
}  # fmt: skip
Entry = tuple[str, str, pd.DataFrame]
"""A row of a table: its key, its name in print, and the rows of results that it shows."""


def escape(text: str) -> str:
    r"""Text that LaTeX prints as it stands: ``a_b`` gives ``a\_b``."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


class Column(NamedTuple):
    """A column: metric and group, its head where the metric's own does not do, its world where it
    is not that of the row's panel."""

    metric: str
    group: str = "all"
    head: str = ""
    world: str = ""

    def title(self) -> str:
        """The head in plain text, with an arrow to the better side."""
        return tidy.heading(self.metric, self.group, self.head)


def rows_of(frame: pd.DataFrame, column: Column) -> pd.DataFrame:
    """The rows of results that a column shows."""
    here = frame[frame["metric"] == column.metric]
    if column.world:
        here = here[here["world"] == column.world]
    return tidy.of_group(here, column.group)


def cell(frame: pd.DataFrame, name: str, group: str = "all") -> str:
    r"""Mean over seeds ``± s.e.`` (without it for one seed), or ``--`` when not measured."""
    rows = rows_of(frame, Column(name, group))
    if rows.empty:
        return "--"
    table = tidy.summary(rows, ("metric",)).iloc[0]
    text = tidy.number(name, table["mean"])
    if table["seeds"] > 1 and table["se"] < float("inf"):
        text += rf"\,{{\scriptsize$\pm$\,{tidy.number(name, table['se'], table['mean'])}}}"
    return text


def by_system(frame: pd.DataFrame) -> Iterable[Entry]:
    """A row a system, readings and nulls last."""
    for system in ordered(frame["system"]):
        yield system, display(system), frame[frame["system"] == system]


def by_ablation(*variants: str) -> Callable[[pd.DataFrame], Iterable[Entry]]:
    """Each setting of the variants (of all, where none is named) below the run that it changes."""

    def entries(frame: pd.DataFrame) -> Iterable[Entry]:
        for system in ordered(frame["system"]):
            case = frame[frame["system"] == system]
            if is_null(system) or (variants and case["variant"].iloc[0] not in variants):
                continue
            names = [n for n in case["ablation"].unique() if n not in ("", tidy.BASE)]
            names = [n for n in names if not tidy.SWEEP.match(n)]
            if names:
                yield system, display(system), tidy.unchanged(case)
            for name in sorted(names, key=tidy.natural):
                yield name, f"  {name}", case[case["ablation"] == name]

    return entries


def by_group(name: str) -> Callable[[pd.DataFrame], Iterable[Entry]]:
    """A row a group that ``name`` was measured for, whose other columns are of the same group."""

    def entries(frame: pd.DataFrame) -> Iterable[Entry]:
        groups = frame.loc[frame["metric"] == name, "group"].unique()
        for group in sorted(groups, key=tidy.natural):
            yield group, group, frame[frame["group"] == group].assign(group="all")

    return entries


def seeds_note(frame: pd.DataFrame) -> str:
    """What a cell shows, by the number of seeds in it."""
    seeds = frame.groupby(["world", "system"])["seed"].nunique()
    if seeds.max() == 1:
        return "One seed."
    note = f"Mean $\\pm$ standard error over {seeds.max()} seeds"
    return (
        f"{note}." if seeds.min() == seeds.max() else f"{note}; one seed where no error is shown."
    )


@dataclass(frozen=True)
class Table:
    """A table of the paper: what it is called, what its caption says, and its columns."""

    name: str
    caption: str
    """LaTeX; ``{seeds}`` becomes :func:`seeds_note`."""
    columns: Sequence[Column]
    marks: Mapping[str, Callable[[str, str], str]] = field(default_factory=dict)
    """By metric, what is put behind its cell in a world's row."""
    verdicts: str = ""
    """The baseline against which a cell is bold (better) or slanted (worse); none by default."""
    star: bool = True
    """Whether it is as wide as the page."""
    first: str = "System"

    def verdict(self, differences: pd.DataFrame | None) -> dict[tuple[str, ...], str]:
        """(world, system, metric, group) → verdict against :attr:`verdicts`."""
        if not self.verdicts or differences is None or differences.empty:
            return {}
        frame = tidy.judged(differences, self.verdicts)
        frame["metric"] = frame["metric"].replace("fvu", "fve")
        keys = ["world", "system", "metric"]
        return {
            (*(getattr(row, key) for key in keys), group): row.verdict
            for row in frame.itertuples()
            for group in {row.group, row.group.split(":")[-1]}
        }

    def latex(
        self,
        frame: pd.DataFrame,
        entries: Callable[[pd.DataFrame], Iterable[Entry]],
        smoke: bool = False,
        differences: pd.DataFrame | None = None,
    ) -> str:
        """The LaTeX float, a panel a world. Columns and rows of which nothing is measured are left
        out; raises :class:`tsae.errors.UserError` when that is all."""
        shown = {world: list(entries(frame[frame["world"] == world]))
                 for world in ordered(frame["world"])}  # fmt: skip
        whole = pd.concat([frame[:0], *(rows for listed in shown.values() for *_, rows in listed)])
        columns = [column for column in self.columns if len(rows_of(whole, column))]
        if not columns:
            raise UserError(f"The results hold nothing of table {self.name}: run its stage first.")
        said = self.verdict(differences)
        lines: dict[str, list[tuple[str, ...]]] = {}
        for world, listed in shown.items():
            before = False
            for key, name, rows in listed:
                if not any(len(rows_of(rows, column)) for column in columns):
                    continue
                cells = [escape(name).replace("  ", r"\quad ", 1)]
                if is_null(key) and not before and lines.get(world):
                    cells[0] = rf"\cmidrule(lr){{1-{len(columns) + 1}}}" + cells[0]
                before = is_null(key)
                for column in columns:
                    text = cell(rows, column.metric, column.group)
                    look = said.get((world, key, column.metric, column.group), "")
                    text = {"better": rf"\textbf{{{text}}}", "worse": rf"\textit{{{text}}}"}.get(
                        look, text
                    )
                    mark = self.marks.get(column.metric)
                    cells.append(text + (mark(world, key) if mark else ""))
                lines.setdefault(world, []).append(tuple(cells))
        heads = [self.first, *(column.title() for column in columns)]
        caption = self.caption.replace("{seeds}", seeds_note(frame))
        return Table(self.name, caption, columns, star=self.star).text(heads, lines, smoke)

    def text(
        self,
        heads: Sequence[str],
        lines: Mapping[str, Sequence[tuple[str, ...]]],
        smoke: bool = False,
        columns: str = "",
    ) -> str:
        """The LaTeX float of ready cells, ``lines`` by world (by ``""`` without a panel's head);
        ``heads`` are plain text; ``columns`` is the tabular's, by default a name and numbers."""
        body = [" & ".join(map(escape, heads)) + r"\\"]
        for world, rows in lines.items():
            body.append(r"\midrule")
            if world:
                name = escape(WORLDS.get(world, world))
                body.append(rf"\multicolumn{{{len(heads)}}}{{@{{}}l}}{{\textit{{{name}}}}}\\")
            body += [" & ".join(cells) + r"\\" for cells in rows]
        environment = "table*" if self.star else "table"
        mark = rf"\textbf{{{tidy.SMOKE}.}} " if smoke else ""
        space = "2.2pt" if len(heads) > 10 else "3.5pt"
        return "\n".join(
            [
                rf"\begin{{{environment}}}[tp]",
                rf"\centering\footnotesize\setlength{{\tabcolsep}}{{{space}}}",
                rf"\caption{{{mark}{self.caption}}}\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{@{{}}{columns or 'l' + 'r' * (len(heads) - 1)}@{{}}}}",
                r"\toprule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                rf"\end{{{environment}}}",
                "",
            ]
        )

    def markdown(self, frame: pd.DataFrame, differences: pd.DataFrame | None = None) -> str:
        """Systems × columns in Markdown: bold and italic as in LaTeX; a column whose ``world`` is
        empty takes the first world."""
        said, worlds = self.verdict(differences), ordered(frame["world"])
        columns = [c if c.world else c._replace(world=worlds[0]) for c in self.columns]
        columns = [column for column in columns if len(rows_of(frame, column))]
        lines = [["system", *(c.title() for c in columns)], ["---", *["--:"] * len(columns)]]
        for key, name, rows in by_system(frame):
            cells = [name]
            for column in columns:
                mine = rows_of(rows, column)
                text = tidy.number(column.metric, mine["value"].mean()) if len(mine) else ""
                text = text.replace("$-$", "−").replace("\\,", " ")
                look = said.get((column.world, key, column.metric, column.group), "")
                cells.append({"better": f"**{text}**", "worse": f"*{text}*"}.get(look, text))
                mark = self.marks.get(column.metric)
                cells[-1] += mark(column.world, key) if mark and text else ""
            if any(cells[1:]):
                lines.append(cells)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
