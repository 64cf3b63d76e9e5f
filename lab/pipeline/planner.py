"""From a profile's grid to its stages, each in a directory named by what it depends on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.pipeline import fingerprint
from lab.pipeline.profile import leaves, listed, part_of_paper, read
from lab.pipeline.stages import ROOT, Stage, digest, paper_stage
from tsae.errors import UserError

DEFAULT_SECONDS = 30.0
DEFAULT_MEMORY = 8000
FAMILIES = {
    "04_evaluate": ("core", "splice", "temporal", "consistency", "context", "switches", "recovery"),
    "06_ablate": ("core", "temporal", "recovery"),
}
"""What a notebook measures when its parameters name no families."""


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
        inputs: list[Stage],
        given: dict[str, Any],
        uses: set[str],
    ) -> Stage:
        """Append the stage that runs ``notebook`` (such as ``03_train``) on ``given``; ``uses``:
        names beyond those in ``given``, empty for all."""
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
        if uses:
            uses |= set() if given.get("families") else set(FAMILIES.get(notebook, ()))
            uses |= {value for _, value in leaves(given) if isinstance(value, str)}
        named = tuple(sorted(use for use in uses if "/" not in use))
        found = digest(path, parameters, named, self.root, self.house)
        directory = f"results/{self.name}/{short}/{label}-{found[:12]}"
        stage = Stage(
            name=name,
            notebook=path,
            parameters={**parameters, "out_dir": directory},
            inputs=tuple(stage.name for stage in inputs),
            directory=directory,
            fingerprint=found,
            uses=named,
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
        named = {world["world"]}
        made = self.add("01_worlds", label, label, [], given, {*named})
        saes = []
        for run in self.runs(world, world.get("variants", profile.get("variants", []))):
            act = run["act"] if run["act"] != run["variant"] else None
            kind = "-".join(filter(None, (run["variant"], act)))
            run_label = f"{label}-{kind}-s{run['seed']}"
            given = {**run, "world_dir": made.directory}
            saes.append(self.add("03_train", run_label, label, [made], given, {*named}))
        for notebook in ("04_evaluate", "05_unlearn"):
            for entry in listed(world.get(notebook.partition("_")[2])):
                self.measure(notebook, label, made, saes, dict(entry))
        for entry in listed(world.get("ablate")):
            settings = dict(entry)
            grid = self.runs(world, settings.pop("grid", []))
            name = settings.pop("name", None)
            for part, chunk in parts(label, name, grid, settings.pop("chunk", None)):
                given = {**settings, "world_dir": made.directory, "grid": chunk}
                self.add("06_ablate", part, label, [made], given, {*named})

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
            uses = {made.parameters["world"], *(s.parameters["variant"] for s in chunk)}
            self.add(notebook, part, label, [made, *chunk], given, uses)

    def structure(self) -> None:
        """Append the sweep over how temporal a microworld is: a stage, with a world of its own,
        for each strength."""
        if settings := dict(self.profile.get("structure") or {}):
            sizes = {key: settings.pop(key) for key in ("limit_tokens", "selection_tokens")}
            for strength in settings.pop("strengths"):
                swept = {**settings, "strengths": [strength]}
                given = {"world_dir": "", "grid": [], "structure": swept, **sizes}
                label = f"structure-{strength:g}"
                self.add("06_ablate", label, "structure", [], given, {"microworld"})

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
    packages that notebooks import. Torch is not imported. Raises :class:`UserError`, in one
    sentence, for a profile, notebook or text file that cannot be used.
    """
    profile_path, root = Path(profile_path), Path(root)
    fingerprint.forget()
    profile = read(profile_path, overrides)
    planner = Planner(profile_path.stem, profile, root, Path(house))
    for world in profile["worlds"]:
        planner.world(world)
    planner.structure()
    before = list(planner.stages)
    given = {**(profile.get("figures") or {}), "stage_dirs": [s.directory for s in before]}
    figures = planner.add("07_figures", "all", "", before, given, set())
    if (root / "paper" / "main.tex").is_file():
        planner.stages.append(paper_stage(planner.name, figures, part_of_paper(profile), root))
    return planner.stages


def parts(
    label: str, name: str | None, items: list[Any], size: int | None
) -> list[tuple[str, list[Any]]]:
    """``items`` in chunks of at most ``size`` (None: one chunk), each with its stage's label:
    world, entry and number."""
    size = size or max(len(items), 1)
    whole = "-".join(filter(None, (label, name)))
    if len(items) <= size:
        return [(whole, items)] if items else []
    starts = range(0, len(items), size)
    return [
        (f"{whole}-{number}", items[start : start + size])
        for number, start in enumerate(starts, start=1)
    ]


def check_json(value: Any, where: str) -> None:
    """Raise :class:`UserError` for what papermill would turn into text: dates, numpy numbers."""
    for name, leaf in leaves(value):
        if not (leaf is None or type(leaf) in (str, int, float, bool)):
            kind = type(leaf).__name__
            raise UserError(f"{where}: {name} is a {kind}; use text, numbers, lists or mappings.")
