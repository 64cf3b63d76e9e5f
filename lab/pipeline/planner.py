"""From a profile's grid to its stages, each in a directory named by what it depends on."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lab.pipeline import fingerprint
from lab.pipeline.profile import leaves, listed, read
from tsae.errors import UserError
from tsae.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
PATHS = ("text", "model", "questions", "tasks")
"""Options of a world that may be paths, whose content counts."""
FAMILIES = {"core", "splice", "temporal", "consistency", "context", "switches", "recovery"}
"""What may be measured when the parameters name no families; see :mod:`lab.measures`."""


@dataclass(frozen=True)
class Stage:
    """One run of one notebook."""

    name: str
    """What is run, such as ``train-microworld-conv-topk-s0``; unique in a plan."""
    notebook: str
    """Path of the notebook from the root."""
    parameters: dict[str, Any]
    """What the notebook's parameters cell is given; JSON types; paths are from the root."""
    inputs: list[str]
    """Names of the stages whose directories are among the parameters."""
    directory: str
    """Where its files go, from the root; ends in the first 12 digits of the fingerprint."""
    fingerprint: str
    """SHA-256 of everything the result depends on."""
    uses: list[str]
    """World, variants and families whose code counts; empty: all code does."""
    seconds: float
    """Expected wall time on the profile's machine, for the estimate of what is left."""
    memory: int
    """Megabytes that a cluster is asked for; on this machine nothing is bounded."""

    @property
    def manifest(self) -> str:
        """The file whose existence means that the stage is done."""
        return f"{self.directory}/manifest.json"

    def is_done(self, root: Path) -> bool:
        """Whether the manifest exists."""
        return (root / self.manifest).is_file()


def digest(
    notebook: str, parameters: Mapping[str, Any], uses: Iterable[str], root: Path, house: Path
) -> str:
    """The fingerprint of a stage, from the files as they are now.

    What its profile is called is no part of it, so that profiles share what is equal; the last
    notebook, whose ``uses`` are empty, depends on the paper's text and its own tables too.
    """
    apart = {"out_dir", "profile"} if uses else {"out_dir"}
    given = {key: value for key, value in parameters.items() if key not in apart}
    options = given.get("options") or {}
    named = [leaf for key in PATHS for leaf in leaves(options.get(key), key)]
    files = {name: (root / value).expanduser() for name, value in named if isinstance(value, str)}
    if not uses:
        kinds = {".tex", ".bib", ".sty", ".cls", ".bst", ".csv", ".yaml"}
        files |= {f.name: f for f in (root / "paper").glob("*.*") if f.suffix in kinds}
    # A text known by name is no path; the world judges it.
    content = {name: fingerprint.of_path(path) for name, path in files.items() if path.exists()}
    code = fingerprint.of_code(root / notebook, house, frozenset(uses))
    return sha256(json.dumps([code, given, content], sort_keys=True).encode()).hexdigest()


def require_unchanged(stage: Stage, root: Path, house: Path = ROOT) -> None:
    """Raise :class:`UserError` when what ``stage`` depends on is not what it was planned from."""
    if digest(stage.notebook, stage.parameters, stage.uses, root, house) != stage.fingerprint:
        raise UserError(
            "a notebook, the code or a text changed while this run was at work; run again, what is "
            "still valid is kept."
        )


def keep(stages: Sequence[Stage], path: Path) -> None:
    """Write the plan as JSON."""
    write_json(path, [asdict(stage) for stage in stages])


def kept(path: Path) -> list[Stage]:
    """What :func:`keep` wrote. Raises :class:`UserError` when it is missing or cut short."""
    return [Stage(**stage) for stage in read_json(path)]


class Planner:
    """Collects the stages of one profile in the order in which they can run."""

    def __init__(self, name: str, profile: dict[str, Any], root: Path, house: Path) -> None:
        self.name, self.profile, self.root, self.house = name, profile, root, house
        self.stages: list[Stage] = []

    def add(
        self,
        notebook: str,
        label: str,
        world: str,
        inputs: Sequence[Stage],
        given: Mapping[str, Any],
        uses: set[str],
    ) -> Stage:
        """Append the stage that runs ``notebook`` on ``given``; ``uses``: names beyond those in
        ``given``, empty for all."""
        kind = notebook.partition("_")[2]
        name = "-".join(filter(None, (kind, label)))
        if any(stage.name == name for stage in self.stages):
            raise UserError(
                f"profile {self.name}: two runs are both {name}; give one of them another act or "
                "seed, move it to ablate, or give its world a label."
            )

        def of_kind(key: str, default: float) -> Any:
            """``threads``, ``seconds``, ``memory``: of ``evaluate/<world>-<entry>``, of
            ``evaluate/<world>``, of ``evaluate``, of all."""
            value = self.profile.get(key, default)
            if not isinstance(value, dict):
                return value
            names = (f"{kind}/{label}", f"{kind}/{world}", kind)
            return next((value[name] for name in names if name in value), default)

        parameters = {**given, "profile": self.name, "threads": of_kind("threads", 1)}
        path = f"notebooks/{notebook}.ipynb"
        if uses:
            parameters["device"] = self.profile.get("device", "auto")
            uses = uses | {value for _, value in leaves(given) if isinstance(value, str)}
            if notebook in ("04_evaluate", "06_ablate") and not given.get("families"):
                uses |= FAMILIES
        named = sorted(use for use in uses if "/" not in use)
        found = digest(path, parameters, named, self.root, self.house)
        directory = f"results/stages/{name}-{found[:12]}"
        stage = Stage(
            name=name,
            notebook=path,
            parameters={**parameters, "out_dir": directory},
            inputs=[stage.name for stage in inputs],
            directory=directory,
            fingerprint=found,
            uses=named,
            seconds=of_kind("seconds", 30.0),
            memory=of_kind("memory", 8000),
        )
        self.stages.append(stage)
        return stage

    def world(self, world: dict[str, Any]) -> None:
        """Append all stages of one world."""
        name, label = world["world"], world.get("label", world["world"])
        given = {
            "world": name,
            "seed": world.get("seed", 0),
            "options": world.get("options") or {},
            "layer": world.get("layer"),
            "tokens": world["tokens"],
        }
        made = self.add("01_worlds", label, label, [], given, {name})
        saes = []
        for run in self.runs(world, world.get("variants", self.profile.get("variants", []))):
            act = run["act"] if run["act"] != run["variant"] else None
            parts = filter(None, (label, run["variant"], act, f"s{run['seed']}"))
            given = {**run, "world_dir": made.directory}
            saes.append(self.add("03_train", "-".join(parts), label, [made], given, {name}))
        for notebook in ("04_evaluate", "05_unlearn"):
            for entry in listed(world.get(notebook.partition("_")[2])):
                settings = dict(entry)
                only, seeds = settings.pop("only", None), settings.pop("seeds", None)
                chosen = [sae for sae in saes if is_chosen(sae.parameters, only, seeds)]
                for part, chunk in parts_of(label, settings, chosen):
                    directories = [stage.directory for stage in chunk]
                    given = {**settings, "world_dir": made.directory, "sae_dirs": directories}
                    uses = {name, *(stage.parameters["variant"] for stage in chunk)}
                    self.add(notebook, part, label, [made, *chunk], given, uses)
        for entry in listed(world.get("ablate")):
            settings = dict(entry)
            grid = self.runs(world, settings.pop("grid"), settings.pop("ablation", ""))
            for part, chunk in parts_of(label, settings, grid):
                given = {**settings, "world_dir": made.directory, "grid": chunk}
                self.add("06_ablate", part, label, [made], given, {name})

    def runs(
        self, world: dict[str, Any], entries: list[dict[str, Any]], ablation: str | None = None
    ) -> list[dict[str, Any]]:
        """One dictionary per training run: entries × swept values × seeds, defaults filled in.

        Seeds are those of the entry, of the world (a list, or lists by variant; not for an
        ``ablation``), of the profile.
        """
        runs = []
        for entry in entries:
            entry = dict(entry)
            sweep = entry.pop("sweep", {})
            default = self.profile.get("seeds", [0])
            seeds = world.get("seeds", default) if ablation is None else default
            seeds = seeds.get(entry["variant"], default) if isinstance(seeds, dict) else seeds
            seeds = entry.pop("seeds", seeds)
            given = {**world["sae"], **world["train"], **entry}
            base = {"act": None, "ablation": ablation or "", **given}
            base["options"] = {**world["sae"].get("options", {}), **entry.get("options", {})}
            swept = [(key, value) for key, values in sweep.items() for value in values]
            for key, value in swept or [("", None)]:
                run = {**base, "options": dict(base["options"])}
                if key:
                    run["ablation"] = f"{key}={value}"
                    (run if key in base else run["options"])[key] = value
                if ablation is not None and not run["ablation"]:
                    lacks = f"{run['variant']} lacks ablation or sweep"
                    raise UserError(f"profile {self.name}, ablate.grid: {lacks}.")
                runs += [{**run, "seed": seed} for seed in seeds]
        return runs


def is_chosen(run: Mapping[str, Any], only: Any, seeds: Any) -> bool:
    """Whether an entry is about the run: ``only`` holds its variant, or that with its seed, and
    ``seeds`` its seed; None holds all."""
    variant, seed = run["variant"], run["seed"]
    wanted = only is None or variant in only or f"{variant}-s{seed}" in only
    return wanted and (seeds is None or seed in seeds)


def parts_of(label: str, settings: dict[str, Any], items: list[Any]) -> list[tuple[str, list[Any]]]:
    """``items`` in chunks of at most ``chunk`` (without one: all together), each with its stage's
    label: world, ``name`` of the entry, number. Takes both keys out of ``settings``."""
    label = "-".join(filter(None, (label, settings.pop("name", None))))
    size = settings.pop("chunk", None) or max(len(items), 1)
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    if len(chunks) == 1:
        return [(label, items)]
    return [(f"{label}-{number}", chunk) for number, chunk in enumerate(chunks, start=1)]


def plan(
    profile_path: str | Path,
    root: str | Path = ROOT,
    overrides: Mapping[str, Any] | None = None,
    house: str | Path = ROOT,
) -> list[Stage]:
    """All stages of a profile, each after the stages that it needs; torch is not imported.

    ``overrides``: those of :func:`lab.pipeline.profile.read`; ``house`` holds the packages that
    notebooks import. Raises :class:`UserError` for what cannot be used.
    """
    fingerprint.forget()
    profile = read(Path(profile_path), overrides)
    planner = Planner(Path(profile_path).stem, profile, Path(root), Path(house))
    for world in profile["worlds"]:
        planner.world(world)
    before = list(planner.stages)
    given = {**(profile.get("figures") or {}), "stage_dirs": [s.directory for s in before]}
    planner.add("07_figures", "", "", before, given, set())
    return planner.stages
