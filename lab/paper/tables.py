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
Entries = Callable[[pd.DataFrame], Iterable[Entry]]


def escape(text: str) -> str:
    r"""Text that LaTeX prints as it stands: ``a_b`` gives ``a\_b``."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


class Column(NamedTuple):
    """A column of a table or a panel of a figure: metric and group, its head where the metric's own
    does not do, its world where it is not that of the row, and the metric of a panel's ticks."""

    metric: str
    group: str = "all"
    head: str = ""
    world: str = ""
    tick: str = ""

    def title(self) -> str:
        """The head in plain text, with an arrow to the better side."""
        return tidy.heading(self.metric, self.group, self.head)

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of results that the column shows."""
        here = frame[frame["metric"] == self.metric]
        if self.world:
            here = here[here["world"] == self.world]
        return tidy.of_group(here, self.group)


def columns(*given: str | tuple[str, ...]) -> list[Column]:
    """Columns from metrics, or from tuples of metric, group and head."""
    return [Column(each) if isinstance(each, str) else Column(*each) for each in given]


def cell(frame: pd.DataFrame, column: Column) -> str:
    r"""Mean over seeds ``± s.e.`` (without it for one seed), or ``--`` when not measured."""
    rows = column.rows(frame)
    if rows.empty:
        return "--"
    table = tidy.summary(rows, ("metric",)).iloc[0]
    text = tidy.number(column.metric, table["mean"])
    if table["seeds"] > 1 and table["se"] < float("inf"):
        text += rf"\,{{\scriptsize$\pm$\,{tidy.number(column.metric, table['se'], table['mean'])}}}"
    return text


def by_system(frame: pd.DataFrame) -> Iterable[Entry]:
    """A row a system, readings and nulls last."""
    for system in ordered(frame["system"]):
        yield system, display(system), frame[frame["system"] == system]


def by_ablation(*variants: str) -> Entries:
    """Each setting of the variants (of all, where none is named) below the run that it changes."""

    def entries(frame: pd.DataFrame) -> Iterable[Entry]:
        for system in ordered(frame["system"]):
            case = frame[frame["system"] == system]
            if is_null(system) or (variants and case["variant"].iloc[0] not in variants):
                continue
            if names := tidy.settings(case):
                yield system, display(system), tidy.unchanged(case)
            for name in names:
                yield name, f"  {name}", case[case["ablation"] == name]

    return entries


def by_group(name: str) -> Entries:
    """A row a group that ``name`` was measured for, whose other columns are of the same group."""

    def entries(frame: pd.DataFrame) -> Iterable[Entry]:
        groups = frame.loc[frame["metric"] == name, "group"].unique()
        for group in sorted(groups, key=tidy.natural):
            yield group, group, frame[frame["group"] == group].assign(group="all")

    return entries


def seeds_note(frame: pd.DataFrame) -> str:
    """What a cell shows, by the number of seeds in it; of several worlds, each world's number."""
    counts = frame.groupby(["world", "system"])["seed"].nunique().groupby("world")
    most, least = counts.max(), counts.min()
    if most.max() == 1:
        return "One seed."
    worlds = [w for w in ordered(most.index) if most[w] > 1]
    note = f"Mean $\\pm$ standard error over {most.max()} seeds"
    if most[worlds].min() < most.max():
        told = (f"{most[w]} seeds ({WORLDS.get(w, w)})" for w in worlds)
        note = f"Mean $\\pm$ standard error over {', '.join(told)}"
    return f"{note}." if least.min() > 1 else f"{note}; one seed where no error is shown."


@dataclass(frozen=True)
class Table:
    """A table of the paper, which is a drawing: called with the tables, it gives its LaTeX."""

    name: str
    caption: str
    """LaTeX; ``{seeds}`` becomes :func:`seeds_note`."""
    columns: Sequence[Column] | Callable[[pd.DataFrame], Sequence[Column]]
    """Columns of which nothing is measured are left out."""
    entries: Entries = by_system
    rows: Callable[[pd.DataFrame], pd.DataFrame] = tidy.compared
    """The results that it shows."""
    marks: Mapping[str, Callable[[pd.DataFrame], Mapping[tuple[str, str], str]]] = field(
        default_factory=dict
    )
    """By metric, what stands behind its cell in a (world, system)'s row."""
    verdicts: str = ""
    """The baseline against which a cell is bold (better) or slanted (worse); none by default."""
    first: str = "System"

    def verdict(self, differences: pd.DataFrame | None) -> dict[tuple[str, ...], str]:
        """(world, system, metric, group) → verdict against :attr:`verdicts`."""
        if not self.verdicts or differences is None or differences.empty:
            return {}
        frame = tidy.judged(differences, self.verdicts)
        frame["metric"] = frame["metric"].replace("fvu", "fve")
        return {
            (row.world, row.system, row.metric, group): row.verdict
            for row in frame.itertuples()
            for group in {row.group, row.group.split(":")[-1]}
        }

    def cells(
        self, found: Mapping[str, pd.DataFrame], looks: Mapping[str, str]
    ) -> tuple[list[Column], dict[str, list[tuple[str, list[str]]]]]:
        """Columns with rows, and by world (``""`` where the columns name theirs) each row's key and
        cells; ``looks``: by verdict, how a cell is printed. Raises :class:`tsae.errors.UserError`
        when nothing is measured."""
        frame = self.rows(found["results"])
        asked = self.columns(frame) if callable(self.columns) else self.columns
        parts = {world: frame[frame["world"] == world] for world in ordered(frame["world"])}
        if all(column.world for column in asked):
            parts = {"": frame}
        worlds = {world: list(self.entries(part)) for world, part in parts.items()}
        every = [rows for listed in worlds.values() for *_, rows in listed]
        whole = pd.concat([frame[:0], *every])
        if not (shown := [column for column in asked if len(column.rows(whole))]):
            raise UserError(f"The results hold nothing of table {self.name}: run its stage first.")
        said = self.verdict(found.get("differences"))
        marks = {name: mark(frame) for name, mark in self.marks.items()}
        lines: dict[str, list[tuple[str, list[str]]]] = {}
        for world, listed in worlds.items():
            for key, name, rows in listed:
                if not any(len(column.rows(rows)) for column in shown):
                    continue
                texts = [name]
                for column in shown:
                    at = (column.world or world, key)
                    look = looks.get(said.get((*at, column.metric, column.group), ""), "{}")
                    mark = marks.get(column.metric, {}).get(at, "")
                    texts.append(look.replace("{}", cell(rows, column)) + mark)
                lines.setdefault(world, []).append((key, texts))
        return shown, lines

    def __call__(self, found: Mapping[str, pd.DataFrame]) -> str:
        """The LaTeX float, a panel a world."""
        looks = {"better": r"\textbf{{}}", "worse": r"\textit{{}}"}
        shown, lines = self.cells(found, looks)
        rule = rf"\cmidrule(lr){{1-{len(shown) + 1}}}"
        body: dict[str, list[list[str]]] = {}
        for world, rows in lines.items():
            for place, (key, (name, *texts)) in enumerate(rows):
                starts = place > 0 and is_null(key) and not is_null(rows[place - 1][0])
                head = rule * starts + escape(name).replace("  ", r"\quad ", 1)
                body.setdefault(world, []).append([head, *texts])
        caption = self.caption.replace("{seeds}", seeds_note(self.rows(found["results"])))
        heads = [self.first, *(column.title() for column in shown)]
        return latex(self.name, caption, heads, body)


def latex(
    name: str,
    caption: str,
    heads: Sequence[str],
    lines: Mapping[str, Iterable[Sequence[str]]],
    columns: str = "",
) -> str:
    """The LaTeX float of ready cells, ``lines`` by world (by ``""`` without a panel's head);
    ``heads`` are plain text; ``columns`` is the tabular's, by default a name and numbers."""
    body = [" & ".join(map(escape, heads)) + r"\\"]
    for world, rows in lines.items():
        body.append(r"\midrule")
        if world:
            title = escape(WORLDS.get(world, world))
            body.append(rf"\multicolumn{{{len(heads)}}}{{@{{}}l}}{{\textit{{{title}}}}}\\")
        body += [" & ".join(cells) + r"\\" for cells in rows]
    space = "2.2pt" if len(heads) > 10 else "3.5pt"
    return "\n".join(
        [
            r"\begin{table*}[tp]",
            rf"\centering\footnotesize\setlength{{\tabcolsep}}{{{space}}}",
            rf"\caption{{\smokeline {caption}}}\label{{tab:{name}}}",
            rf"\begin{{tabular}}{{@{{}}{columns or 'l' + 'r' * (len(heads) - 1)}@{{}}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )
