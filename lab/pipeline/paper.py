"""Where finished things are put, and the PDF from the paper's sources and what was put there."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.pipeline import notebooks
from lab.pipeline.planner import Stage
from lab.pipeline.profile import part_of_paper
from tsae.errors import UserError
from tsae.files import atomic

REPRODUCIBLE = {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}
LATEX = "latexmk -pdf -interaction=nonstopmode -halt-on-error"
ELSEWHERE = ("table_claims", "table_reference")
SHOWN = ("figures", "paper/generated")
"""What fills the paper: a folder a part of it, the main part beside those folders."""
NO_TEX = "paper/main.pdf is skipped: TeX is missing (latexmk, pdflatex); install it and run again."
NO_PAPER = "The PDF is skipped: there is no paper/main.tex; restore it with git."


def home(name: str, profile: Mapping[str, Any], root: Path) -> Path:
    """Where ``figures/``, ``paper/generated/`` and ``paper/main.pdf`` of a profile lie: in the
    repository's root for the canonical profile and for one that fills a part of the paper."""
    shown = profile.get("canonical") or part_of_paper(profile)
    return root if shown else root / "results" / name


def missing(root: Path) -> str:
    """The line that says why no PDF can be made here; empty where it can."""
    if not (root / "paper" / "main.tex").is_file():
        return NO_PAPER
    return "" if shutil.which("latexmk") and shutil.which("pdflatex") else NO_TEX


def sources(root: Path, home: Path) -> dict[str, Path]:
    """Place in the folder that LaTeX works in → file, for all that the PDF is made from: the text,
    what ``home`` shows, and the parts of the paper that other profiles fill."""
    kinds = {".tex", ".bib", ".sty", ".cls", ".bst"}
    files = (*(root / "paper").glob("*.*"), *(root / "workflow").glob("*.tex"))
    text = [file for file in files if file.suffix in kinds]
    found = {file.name: file for file in text}
    for base, pattern in ((root, "*/*.*"), (home, "**/*.*")):
        for folder in map(Path, SHOWN):
            for file in (base / folder).glob(pattern):
                found[str(folder.name / file.relative_to(base / folder))] = file
    return found


def listing(places: Iterable[str]) -> str:
    """``shown.tex``: a line a table, then a line a figure; those that tell of other runs left out."""
    own = [Path(place) for place in sorted(places) if place.count("/") == 1]
    tables = [p for p in own if p.stem.startswith("table_") and p.stem not in ELSEWHERE]
    lines = [rf"\input{{{path}}}" for path in tables] + [r"\clearpage"]
    figures = [path.stem for path in own if path.suffix == ".pdf"]
    return "\n".join([*lines, *(rf"\drawn{{{f}}}{{{f.replace('_', ' ')}}}" for f in figures), ""])


def build(root: Path, home: Path, text: str = "main") -> Path:
    """Make ``home/paper/<text>.pdf`` with latexmk, bit for bit the same each time; returns its path.
    ``text``: the paper's ``main``, or ``report``, which shows tables and figures alone.

    Raises :class:`UserError` with LaTeX's first complaint, and where TeX is missing.
    """
    if lacks := missing(root):
        raise UserError(lacks)
    with tempfile.TemporaryDirectory() as name:
        for place, file in (files := sources(root, home)).items():
            (target := Path(name) / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        (Path(name) / "shown.tex").write_text(listing(files), encoding="utf-8")
        environment = os.environ | REPRODUCIBLE
        command, silent = [*LATEX.split(), f"{text}.tex"], subprocess.DEVNULL
        done = subprocess.run(command, cwd=name, env=environment, stdin=silent, capture_output=True)
        if done.returncode:
            lines = done.stdout.decode(errors="replace").splitlines() or ["no message"]
            first = next((i for i, line in enumerate(lines) if line.startswith("!")), -1)
            raise UserError(f"LaTeX stopped: {' '.join(' '.join(lines[first:][:2]).split())}")
        with atomic(pdf := home / "paper" / f"{text}.pdf") as temporary:
            shutil.copyfile(Path(name) / pdf.name, temporary)
    return pdf


def is_current(root: Path, pdf: Path) -> bool:
    """Whether the PDF is there and none of its sources is newer."""
    home = pdf.parents[1]
    files = sources(root, home).values()
    return pdf.is_file() and all(f.stat().st_mtime <= pdf.stat().st_mtime for f in files)


def published(
    name: str, profile: Mapping[str, Any], stages: Sequence[Stage], root: Path
) -> Iterator[tuple[Path, Path]]:
    """(file of a finished stage, place where readers look for it) for everything that is shown:
    executed notebooks and the last stage's tables in ``results/<profile>``, its figures and LaTeX
    tables where :func:`home` says."""
    results, part = root / "results" / name, part_of_paper(profile)
    for stage in (stage for stage in stages if stage.is_done(root)):
        directory = root / stage.directory
        yield directory / "notebook.ipynb", results / "notebooks" / f"{stage.name}.ipynb"
        if stage is stages[-1]:
            yield from ((file, results / file.name) for file in directory.glob("*.parquet"))
            for folder in SHOWN:
                for file in sorted((directory / Path(folder).name).glob("*.*")):
                    yield file, home(name, profile, root) / folder / part / file.name


def publish(name: str, profile: Mapping[str, Any], stages: Sequence[Stage], root: Path) -> int:
    """Copy what differs from its published place; return how many files were written."""
    written = 0
    for source, place in published(name, profile, stages, root):
        book = source.suffix == ".ipynb"
        content = notebooks.tidy_bytes(source) if book else source.read_bytes()
        if not (place.is_file() and place.read_bytes() == content):
            with atomic(place) as temporary:
                temporary.write_bytes(content)
            written += 1
    return written
