"""LaTeX tables and ``numbers.tex``, from the tidy tables alone."""

from lab.paper.tables.cost import cost_table
from lab.paper.tables.latex import ablation_table, main_table, recovery_table, reference_table
from lab.paper.tables.numbers import numbers_tex, used

__all__ = [
    "ablation_table",
    "cost_table",
    "main_table",
    "numbers_tex",
    "recovery_table",
    "reference_table",
    "used",
]
