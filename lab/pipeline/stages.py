"""A stage is one run of one notebook; a plan is the list of a profile's stages, kept as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.pipeline import fingerprint
from lab.pipeline.profile import leaves
from tsae.errors import UserError
from tsae.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("text", "model", "questions", "tasks")
"""Options of a world that may be paths, whose content counts."""


@dataclass(frozen=True)
class Stage:
    """One run of one notebook."""

    name: str
    """What is run, such as ``train/microworld-conv-topk-s0``; unique in a plan."""
    notebook: str
    """Path of the notebook from the root; empty for the paper."""
    parameters: dict[str, Any]
    """What the notebook's parameters cell is given; JSON types; paths are from the root."""
    inputs: tuple[str, ...]
    """Names of the stages whose directories are among the parameters."""
    directory: str
    """Where its files go, from the root; ends in the first 12 digits of the fingerprint."""
    fingerprint: str
    """SHA-256 of everything the result depends on."""
    uses: tuple[str, ...]
    """World, variants and families whose code counts; empty: all code does."""
    threads: int
    """Threads that the notebook computes with."""
    seconds: float
    """Expected wall time on the profile's machine, for the estimate of what is left."""
    memory: int = 8000
    """Megabytes that a cluster is asked for; on this machine nothing is bounded."""

    @property
    def manifest(self) -> str:
        """The file whose existence means that the stage is done."""
        return f"{self.directory}/manifest.json"

    @property
    def rule(self) -> str:
        """Its name as a rule of Snakemake, and so in a cluster's logs."""
        return self.name.replace("/", "_").replace("-", "_").replace(".", "_")


def digest(
    notebook: str, parameters: Mapping[str, Any], uses: tuple[str, ...], root: Path, house: Path
) -> str:
    """The fingerprint of a stage, from the files as they are now."""
    if not notebook:
        return paper_digest(parameters["figures_dir"], parameters["part"], root)
    given = {key: value for key, value in parameters.items() if key != "out_dir"}
    code = fingerprint.code_fingerprint(root / notebook, house, frozenset(uses) or None)
    options = given.get("options") or {}
    files = {
        name: root / value
        for key in OUTSIDE
        for name, value in leaves(options.get(key), key)
        if isinstance(value, str)  # a text known by name is no path; the world judges it
    }
    if not uses:  # the paper's text says which numbers are written
        files |= {file.name: file for file in [*paper_sources(root), *paper_tables(root)]}
    content = {
        key: fingerprint.path_fingerprint(path)
        for key, path in files.items()
        if path.expanduser().exists()
    }
    return fingerprint.of_parameters(code, given, content)


def keep(stages: Sequence[Stage], machine: float, path: Path) -> None:
    """Write the plan and how many times the expected seconds this machine takes."""
    write_json(path, {"machine": machine, "stages": [asdict(stage) for stage in stages]})


def kept(path: Path) -> tuple[list[Stage], float]:
    """What :func:`keep` wrote. Raises :class:`UserError` when it is missing or cut short."""
    record = read_json(path)
    stages = [
        Stage(**{**stage, "inputs": tuple(stage["inputs"]), "uses": tuple(stage["uses"])})
        for stage in record["stages"]
    ]
    return stages, record["machine"]


def require_unchanged(stage: Stage, root: Path, house: Path = ROOT) -> None:
    """Raise :class:`UserError` when what ``stage`` depends on is not what it was planned from."""
    fingerprint.forget()
    if digest(stage.notebook, stage.parameters, stage.uses, root, house) != stage.fingerprint:
        raise UserError(
            f"stage {stage.name}: a notebook, the code or a text changed while this run was at "
            "work; run again, what is still valid is kept."
        )


def paper_sources(root: Path) -> list[Path]:
    """The hand-written files that the PDF is made from."""
    kinds = {".tex", ".bib", ".sty", ".cls", ".bst"}
    return sorted(file for file in (root / "paper").glob("*.*") if file.suffix in kinds)


def paper_tables(root: Path) -> list[Path]:
    """Numbers beside the text that come from no stage: reported ones, and costs of steps."""
    return sorted(file for file in (root / "paper").glob("*.*") if file.suffix in {".csv", ".yaml"})


def other_parts(folder: Path, part: str) -> list[Path]:
    """What a committed folder of figures or tables holds of the parts other than ``part``: each
    part is a folder of its own, the main one (``""``) the files beside them."""
    found = sorted(folder.glob("*"))
    return [path for path in found if path.name != part and (path.is_dir() or part)]


def paper_digest(figures_dir: str, part: str, root: Path) -> str:
    """The fingerprint of the PDF: the figures' stage, the text and the committed other parts."""
    sources = paper_sources(root)
    for folder in (root / "figures", root / "paper" / "generated"):
        sources += other_parts(folder, part)
    content = {str(file.relative_to(root)): fingerprint.path_fingerprint(file) for file in sources}
    return fingerprint.of_parameters(figures_dir, content)


def paper_stage(profile: str, figures: Stage, part: str, root: Path) -> Stage:
    """The stage that turns paper/main.tex and the figures' stage into a PDF."""
    found = paper_digest(figures.directory, part, root)
    return Stage(
        name="paper",
        notebook="",
        parameters={"figures_dir": figures.directory, "part": part},
        inputs=(figures.name,),
        directory=f"results/{profile}/paper/main-{found[:12]}",
        fingerprint=found,
        uses=(),
        threads=1,
        seconds=10.0,
    )
