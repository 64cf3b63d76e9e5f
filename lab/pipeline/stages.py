"""The plan: a profile's grid as stages, each one run of one notebook in a directory of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.pipeline import fingerprint
from lab.pipeline.profile import leaves, listed, part_of_paper, read
from tsae.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_SECONDS = 30.0
DEFAULT_MEMORY = 8000


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
    threads: int
    """Threads that the notebook computes with."""
    seconds: float
    """Expected wall time, for the estimate of what is left."""
    memory: int = DEFAULT_MEMORY
    """Megabytes that a cluster is asked for; on this machine nothing is bounded."""

    @property
    def manifest(self) -> str:
        """The file whose existence means that the stage is done."""
        return f"{self.directory}/manifest.json"

    @property
    def rule(self) -> str:
        """Its name as a rule of Snakemake, and so in a cluster's logs."""
        return self.name.replace("/", "_").replace("-", "_").replace(".", "_")


class Planner:
    """Collects the stages of one profile in the order in which they can run."""

    def __init__(self, name: str, profile: dict[str, Any], root: Path, house: Path) -> None:
        self.name, self.profile, self.root, self.house = name, profile, root, house
        self.stages: list[Stage] = []

    def add(
        self, notebook: str, label: str, world: str, inputs: list[Stage], given: dict[str, Any]
    ) -> Stage:
        """Append the stage that runs ``notebook`` (such as ``03_train``) on ``given``."""
        short = notebook.partition("_")[2]
        name = f"{short}/{label}"
        if any(stage.name == name for stage in self.stages):
            raise UserError(
                f"profile {self.name}: two runs are both {name}; give one of them another act or "
                "seed, move it to ablate, or give its world a label."
            )
        threads = self.of_notebook("threads", short, world, 1)
        parameters = {**given, "profile": self.name, "threads": threads}
        check_json(parameters, f"stage {name}")
        path = f"notebooks/{notebook}.ipynb"
        code = fingerprint.code_fingerprint(self.root / path, self.house)
        files = self.outside_files(parameters)
        if short == "figures":  # the paper's text says which numbers are written
            shown = [*paper_sources(self.root), *paper_tables(self.root)]
            files |= {f.name: fingerprint.path_fingerprint(f) for f in shown}
        digest = fingerprint.of_parameters(code, parameters, files)
        directory = f"results/{self.name}/{short}/{label}-{digest[:12]}"
        stage = Stage(
            name=name,
            notebook=path,
            parameters={**parameters, "out_dir": directory},
            inputs=tuple(stage.name for stage in inputs),
            directory=directory,
            fingerprint=digest,
            threads=threads,
            seconds=float(self.of_notebook("seconds", short, world, DEFAULT_SECONDS)),
            memory=int(self.of_notebook("memory", short, world, DEFAULT_MEMORY)),
        )
        self.stages.append(stage)
        return stage

    def of_notebook(self, key: str, short: str, world: str, default: Any) -> Any:
        """``threads``, ``seconds`` or ``memory`` of a notebook: ``train/<world>``, ``train``, or a number."""
        value = self.profile.get(key, default)
        if not isinstance(value, dict):
            return value
        return value.get(f"{short}/{world}", value.get(short, default))

    def outside_files(self, parameters: Mapping[str, Any]) -> dict[str, str]:
        """Fingerprints of a world's own text and model, since a path does not show its content.

        What is no path (a text known by name) or is missing is left to the world to judge.
        """
        options = parameters.get("options") or {}
        named = [key for key in ("text", "model", "questions", "tasks") if options.get(key)]
        paths = {
            name: self.root / value
            for key in named
            for name, value in leaves(options[key], key)
            if isinstance(value, str)
        }
        return {
            key: fingerprint.path_fingerprint(path)
            for key, path in paths.items()
            if path.expanduser().exists()
        }

    def world(self, world: dict[str, Any]) -> None:
        """Append all stages of one world."""
        label, profile = world.get("label", world["world"]), self.profile
        given = {
            "world": world["world"],
            "seed": world.get("seed", 0),
            "options": world.get("options") or {},
            "layer": world.get("layer"),
            "tokens": world["tokens"],
        }
        made = self.add("01_worlds", label, label, [], given)
        saes = []
        for run in self.runs(world, world.get("variants", profile.get("variants", []))):
            act = run["act"] if run["act"] != run["variant"] else None
            kind = "-".join(filter(None, (run["variant"], act)))
            run_label = f"{label}-{kind}-s{run['seed']}"
            given = {**run, "world_dir": made.directory}
            saes.append(self.add("03_train", run_label, label, [made], given))
        for notebook in ("04_evaluate", "05_unlearn"):
            for entry in listed(world.get(notebook.partition("_")[2])):
                self.measure(notebook, label, made, saes, dict(entry))
        for entry in listed(world.get("ablate")):
            settings = dict(entry)
            grid = self.runs(world, settings.pop("grid", []))
            name = settings.pop("name", None)
            for part, chunk in parts(label, name, grid, settings.pop("chunk", None)):
                given = {**settings, "world_dir": made.directory, "grid": chunk}
                self.add("06_ablate", part, label, [made], given)

    def measure(
        self, notebook: str, label: str, made: Stage, saes: list[Stage], settings: dict[str, Any]
    ) -> None:
        """Append the stages that measure the trained SAEs, ``chunk`` at a time.

        ``only``: variants to measure; ``name``: what tells several entries of a world apart.
        """
        only, name = settings.pop("only", None), settings.pop("name", None)
        chosen = [s for s in saes if only is None or s.parameters["variant"] in only]
        for part, chunk in parts(label, name, chosen, settings.pop("chunk", None)):
            directories = [stage.directory for stage in chunk]
            given = {**settings, "world_dir": made.directory, "sae_dirs": directories}
            self.add(notebook, part, label, [made, *chunk], given)

    def structure(self) -> None:
        """Append the sweep over how temporal a microworld is: a stage, with a world of its own,
        for each strength."""
        if settings := dict(self.profile.get("structure") or {}):
            sizes = {key: settings.pop(key) for key in ("limit_tokens", "selection_tokens")}
            for strength in settings.pop("strengths"):
                swept = {**settings, "strengths": [strength]}
                given = {"world_dir": "", "grid": [], "structure": swept, **sizes}
                self.add("06_ablate", f"structure-{strength:g}", "structure", [], given)

    def runs(self, world: dict[str, Any], entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One dictionary per training run: entries × swept values × seeds, defaults filled in."""
        runs = []
        for entry in entries:
            entry = dict(entry)
            sweep = entry.pop("sweep", {})
            default = entry.pop("seeds", world.get("seeds", self.profile.get("seeds", [0])))
            base = {"act": None, "ablation": "", **world["sae"], **world["train"], **entry}
            base["options"] = {**world["sae"].get("options", {}), **entry.get("options", {})}
            swept = [(key, value) for key, values in sweep.items() for value in values]
            for key, value in swept or [("", None)]:
                run = {**base, "options": dict(base["options"])}
                if key:
                    run["ablation"] = f"{key}={value}"
                    (run if key in base else run["options"])[key] = value
                runs += [{**run, "seed": seed} for seed in default]
        return runs


def plan(
    profile_path: str | Path,
    root: str | Path = ROOT,
    overrides: Mapping[str, Any] | None = None,
    house: str | Path = ROOT,
) -> list[Stage]:
    """All stages of a profile, each after the stages that it needs.

    ``overrides`` (model, text, layer) go to the profile's local world; ``house`` holds the
    packages that notebooks import. Torch is not imported. Raises :class:`UserError`, in one sentence, for
    a profile, notebook or text file that cannot be used.
    """
    profile_path = Path(profile_path)
    fingerprint.forget()
    profile = read(profile_path, overrides)
    planner = Planner(profile_path.stem, profile, Path(root), Path(house))
    for world in profile["worlds"]:
        planner.world(world)
    planner.structure()
    before = list(planner.stages)
    directories = [stage.directory for stage in before]
    given = {**(profile.get("figures") or {}), "stage_dirs": directories}
    planner.add("07_figures", "all", "", before, given)
    paper = paper_stage(planner)
    return planner.stages + ([paper] if paper else [])


def paper_sources(root: Path) -> list[Path]:
    """The hand-written files that the PDF is made from."""
    kinds = {".tex", ".bib", ".sty", ".cls", ".bst"}
    return sorted(file for file in (root / "paper").glob("*.*") if file.suffix in kinds)


def paper_tables(root: Path) -> list[Path]:
    """Numbers beside the text that come from no stage: reported ones, and costs of steps."""
    return sorted(file for file in (root / "paper").glob("*.*") if file.suffix in {".csv", ".json"})


def other_parts(folder: Path, part: str) -> list[Path]:
    """What a committed folder of figures or tables holds of the parts other than ``part``: each
    part is a folder of its own, the main one (``""``) the files beside them."""
    found = sorted(folder.glob("*"))
    return [path for path in found if path.name != part and (path.is_dir() or part)]


def paper_stage(planner: Planner) -> Stage | None:
    """The stage that turns paper/main.tex and the figures' stage into a PDF; None without it."""
    figures = planner.stages[-1]
    sources = paper_sources(planner.root)
    if not any(file.name == "main.tex" for file in sources):
        return None
    root, part = planner.root, part_of_paper(planner.profile)
    for folder in (root / "figures", root / "paper" / "generated"):
        sources += other_parts(folder, part)
    content = {str(file.relative_to(root)): fingerprint.path_fingerprint(file) for file in sources}
    digest = fingerprint.of_parameters(figures.directory, content)
    return Stage(
        name="paper",
        notebook="",
        parameters={"figures_dir": figures.directory, "part": part},
        inputs=(figures.name,),
        directory=f"results/{planner.name}/paper/main-{digest[:12]}",
        fingerprint=digest,
        threads=1,
        seconds=10.0,
    )


def split(items: list[Any], size: int | None) -> list[list[Any]]:
    """``items`` in chunks of at most ``size`` (None: one chunk)."""
    size = size or max(len(items), 1)
    return [items[start : start + size] for start in range(0, len(items), size)]


def parts(
    label: str, name: str | None, items: list[Any], size: int | None
) -> list[tuple[str, list[Any]]]:
    """The chunks of ``items``, each with its stage's label: world, entry and number."""
    whole, chunks = "-".join(filter(None, (label, name))), split(items, size)
    if len(chunks) == 1:
        return [(whole, chunks[0])]
    return [(f"{whole}-{number}", chunk) for number, chunk in enumerate(chunks, start=1)]


def check_json(value: Any, where: str) -> None:
    """Raise :class:`UserError` for what papermill would turn into text: dates, numpy numbers."""
    for name, leaf in leaves(value):
        if not (leaf is None or type(leaf) in (str, int, float, bool)):
            kind = type(leaf).__name__
            raise UserError(f"{where}: {name} is a {kind}; use text, numbers, lists or mappings.")
