"""The PDF from the paper's sources and a figures stage, and where finished things are put."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.pipeline import notebooks
from lab.pipeline.alone import remove_unfinished
from lab.pipeline.stages import Stage, other_parts, paper_sources
from tsae.errors import UserError
from tsae.files import atomic

REPRODUCIBLE = {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}
LATEX_SECONDS = 300


def tex_is_here() -> bool:
    """Whether latexmk and pdflatex can be called."""
    return bool(shutil.which("latexmk") and shutil.which("pdflatex"))


def build(root: Path, directory: Path, figures_dir: Path, part: str = "") -> None:
    """Make ``directory/main.pdf`` with latexmk, bit for bit the same each time.

    The sources of ``paper/`` are copied beside ``figures/`` and ``generated/`` of the figures
    stage, which fill one ``part`` of the paper (by default the main one); the other parts come from
    what is committed. Raises :class:`UserError` with LaTeX's first complaint.
    """
    if not tex_is_here():
        raise UserError("latexmk or pdflatex is missing; install TeX (see README) and run again.")
    for source in paper_sources(root):
        shutil.copyfile(source, directory / source.name)
    shown = {"figures": root / "figures", "generated": root / "paper" / "generated"}
    for name, committed in shown.items():
        shutil.rmtree(directory / name, ignore_errors=True)
        for file in other_parts(committed, part):
            copy(file, directory / name / file.name)
        copy(figures_dir / name, directory / name / part)
    command = ["latexmk", "-pdf", "-gg", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    with open(directory / "latex.log", "wb") as log:
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, **REPRODUCIBLE},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=LATEX_SECONDS,
        )
    if done.returncode:
        lines = (directory / "latex.log").read_text(errors="replace").splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith("!")), None)
        told = lines[first : first + 2] if first is not None else lines[-1:]
        raise UserError(f"LaTeX stopped: {' '.join(' '.join(told).split())}")
    for rest in directory.glob("main.*"):
        if rest.suffix not in {".tex", ".pdf"}:
            rest.unlink()


def rebuild(root: Path) -> Path:
    """``paper/main.pdf`` again, from the committed figures and tables of all parts, for a text that
    changed where no stage did; returns its path. Raises :class:`UserError` as :func:`build`."""
    with tempfile.TemporaryDirectory() as name:
        shown, directory = Path(name) / "shown", Path(name) / "made"
        shown.mkdir()
        directory.mkdir()
        (shown / "figures").symlink_to(root / "figures")
        (shown / "generated").symlink_to(root / "paper" / "generated")
        build(root, directory, shown)
        with atomic(root / "paper" / "main.pdf") as temporary:
            shutil.copyfile(directory / "main.pdf", temporary)
    return root / "paper" / "main.pdf"


def copy(source: Path, target: Path) -> None:
    """A file or a folder into ``target``, whose folders are made; nothing if it is missing."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def published(
    stages: Sequence[Stage], root: Path, canonical: bool, part: str = ""
) -> Iterator[tuple[Path, Path]]:
    """(file of a finished stage, place where readers look for it) for everything that is shown.

    The canonical profile fills ``figures/``, ``paper/generated/`` and ``paper/main.pdf``; one with
    a ``part`` the folders of that name in the first two, and ``paper/main.pdf``; any other one
    ``results/<profile>/figures`` and ``results/<profile>/paper``. Merged tables and executed
    notebooks go to ``results/<profile>/``.
    """
    results = root / Path(stages[0].directory).parents[1]
    shown = canonical or bool(part)
    figures = (root / "figures" if shown else results / "figures") / part
    paper = root / "paper" if shown else results / "paper"
    for stage in stages:
        directory = root / stage.directory
        if not (root / stage.manifest).is_file():
            continue
        if stage.notebook:
            label = stage.name.replace("/", "-")
            yield directory / "notebook.ipynb", results / "notebooks" / f"{label}.ipynb"
        else:
            yield directory / "main.pdf", paper / "main.pdf"
        if stage.name == "figures/all":
            yield from ((file, results / file.name) for file in directory.glob("*.parquet"))
            for file in sorted(directory.glob("figures/*.*")):
                yield file, figures / file.name
            for file in sorted(directory.glob("generated/*.*")):
                yield file, paper / "generated" / part / file.name


def publish(stages: Sequence[Stage], root: Path, canonical: bool, part: str = "") -> int:
    """Copy what differs from its published place; return how many files were written."""
    written = 0
    for source, place in published(stages, root, canonical, part):
        content = notebooks.tidy_bytes(source) if source.suffix == ".ipynb" else source.read_bytes()
        remove_unfinished(place.parent.glob(f"{place.name}.*"))
        if place.is_file() and place.read_bytes() == content:
            continue
        with atomic(place) as temporary:
            temporary.write_bytes(content)
        written += 1
    return written
