"""Profiles: the grid of runs as data (``workflow/profiles/*.yaml``), read and checked."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tsae.errors import UserError

PROFILE_KEYS = {
    "about", "canonical", "threads", "seeds", "variants", "worlds", "structure", "figures", "seconds",
    "step_seconds", "memory",
}  # fmt: skip
WORLD_KEYS = {
    "world", "label", "seed", "seeds", "layer", "options", "tokens", "sae", "train", "variants",
    "evaluate", "unlearn", "ablate",
}  # fmt: skip
SAE_KEYS = {"act", "k", "d_sae", "options"}
RUN_KEYS = SAE_KEYS | {"variant", "seeds"}
NUMBER_AS_TEXT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def find(name: str, root: Path) -> Path:
    """``workflow/profiles/<name>.yaml`` under ``root``; :class:`UserError` lists the others."""
    folder = root / "workflow" / "profiles"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise UserError(f"There is no profile {name!r}; choose one of: {names}.")
    return path


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The profile in ``path`` as a dictionary, checked, with ``overrides`` in its local world.

    ``overrides`` may hold model, text and layer. Raises :class:`UserError`, in one sentence, for
    a file that is not such a profile: broken YAML, an unknown key, a missing one, a number that
    YAML reads as text (``1e-3``).
    """
    where = f"profile {path.stem}"
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}.") from None
    require_keys(profile, PROFILE_KEYS, {"worlds"}, where)
    if not isinstance(profile["worlds"], list) or not profile["worlds"]:
        raise UserError(f"{where}: worlds must be a list of at least one world.")
    for name, value in leaves(profile):
        if isinstance(value, str) and NUMBER_AS_TEXT.fullmatch(value):
            number = float(value)
            raise UserError(f"{where}: {name} is the text {value!r} to YAML; write {number!r}.")
    for world in profile["worlds"]:
        require_keys(world, WORLD_KEYS, {"world", "tokens", "sae", "train"}, f"{where}, worlds")
        inside = f"{where}, world {world['world']}"
        require_keys(world["sae"], SAE_KEYS, {"k", "d_sae"}, f"{inside}, sae")
        require_keys(world["train"], None, {"steps", "lr"}, f"{inside}, train")
        keys = RUN_KEYS | set(world["train"]) | {"positions", "ablation"}
        for run in world.get("variants", profile.get("variants", [])):
            require_keys(run, keys, {"variant"}, f"{inside}, variants")
        for run in (run for entry in listed(world.get("ablate")) for run in entry["grid"]):
            require_keys(run, keys | {"sweep"}, {"variant"}, f"{inside}, ablate.grid")
            if not (run.get("sweep") or run.get("ablation")):
                raise UserError(f"{inside}, ablate.grid: {run['variant']} lacks ablation or sweep.")
    if structure := profile.get("structure"):
        sizes = {"strengths", "runs", "limit_tokens", "selection_tokens"}
        require_keys(structure, None, sizes, f"{where}, structure")
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if given:
        override(profile, given, where)
    for world in profile["worlds"]:
        if world["world"] == "local" and not (world.get("options") or {}).get("model"):
            raise UserError(
                f"{where} needs a model: add --model with a Hugging Face folder or a GGUF file."
            )
    return profile


def part_of_paper(profile: Mapping[str, Any]) -> str:
    """The part of the paper that the profile fills: ``figures.part``; empty for the main one."""
    return (profile.get("figures") or {}).get("part", "")


def listed(entries: Any) -> list[dict[str, Any]]:
    """A profile's entry or list of entries, as a list; without any, an empty one."""
    return entries if isinstance(entries, list) else [] if entries is None else [entries]


def override(profile: dict[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Put model, text and layer into the profile's ``local`` worlds, in place."""
    worlds = [world for world in profile["worlds"] if world["world"] == "local"]
    if not worlds:
        raise UserError(
            f"{where} has no local world, so --{next(iter(given))} has no use; "
            "add --profile local, or leave the option out."
        )
    for world in worlds:
        if "layer" in given:
            world["layer"] = given["layer"]
        options = {key: given[key] for key in ("model", "text") if key in given}
        world["options"] = {**(world.get("options") or {}), **options}


def require_keys(value: Any, allowed: set[str] | None, required: set[str], where: str) -> None:
    """Raise :class:`UserError` unless ``value`` is a mapping with these keys (None: any)."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: a mapping with {', '.join(sorted(required))} is expected.")
    if missing := sorted(required - set(value)):
        raise UserError(f"{where}: {', '.join(missing)} is missing.")
    if allowed is not None and (unknown := sorted(set(value) - allowed)):
        raise UserError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; "
            f"the keys are {', '.join(sorted(allowed))}."
        )


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar inside nested lists and mappings, with its dotted name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{name}[{index}]")
    else:
        yield name, value
