"""LaTeX table of what a training step costs, from ``benchmarks/overheads.py --out``."""

from collections.abc import Mapping
from typing import Any

from lab.paper.tables.latex import escape, floated
from lab.results import tidy
from tsae.errors import UserError


def operation(name: str) -> str:
    """torch's name of an operation, but a word for the sparse products' long one."""
    return "sparse product" if "embedding_bag" in name else name.rstrip("_")


def cost_table(measured: Mapping[str, Any], smoke: bool = False) -> str:
    """Per variant the CPU time of a step, its ratio to ``topk``'s and its costliest operations.

    ``measured``: ``settings`` (width, latents, k, repeats) and ``rows`` (variant, ms, ratio, top).
    Raises :class:`UserError` where the static row is missing.
    """
    rows = sorted(measured["rows"], key=lambda row: row["ratio"])
    if "topk" not in [row["variant"] for row in rows]:
        raise UserError("The step costs lack topk: run benchmarks/overheads.py --out again.")
    body = [r"System & ms & ratio & largest operations\\", r"\midrule"]
    for row in rows:
        top = ", ".join(f"{operation(name)} {share:.0%}" for name, share in row["top"][:2])
        name = escape(tidy.display(row["variant"]))
        body.append(f"{name} & {row['ms']:.0f} & {row['ratio']:.2f} & {escape(top)}" + r"\\")
    size = measured["settings"]
    caption = (
        rf"What a training step costs: CPU milliseconds of one thread for 2048 tokens at "
        rf"$d={size['width']}$, $F={size['latents']}$, $k={size['k']}$ (median of "
        rf"{size['repeats']}, all in turns), and as a ratio to the static step."
    )
    return floated(body, "lrrl", caption, "cost", smoke, star=False)
