"""Profiles: the grid of runs as data (``workflow/profiles/*.yaml``), read and checked."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from tsae.errors import UserError

SCHEMA = Path(__file__).resolve().parents[2] / "workflow" / "profile.schema.yaml"


class Loader(yaml.SafeLoader):
    """YAML 1.1 in which ``1e-3`` is a number, as in YAML 1.2."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
)


def find(name: str, root: Path) -> Path:
    """``workflow/profiles/<name>.yaml`` under ``root``; :class:`UserError` lists the others."""
    folder = root / "workflow" / "profiles"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise UserError(f"There is no profile {name!r}; choose one of: {names}.")
    return path


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The profile in ``path``, checked, with ``overrides``: a device, and model, text and layer of
    the local world.

    Raises :class:`UserError` for broken YAML and for what ``workflow/profile.schema.yaml`` forbids.
    """
    where = f"profile {path.stem}"
    try:
        profile = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    wrong = best_match(Draft202012Validator(schema).iter_errors(profile))
    if wrong:
        place = wrong.json_path.removeprefix("$").removeprefix(".")
        raise UserError(f"{where}: {': '.join(filter(None, (place, wrong.message)))}.")
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    profile["device"] = given.pop("device", profile.get("device", "auto"))
    override(profile, given, where)
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
    if given and not worlds:
        raise UserError(
            f"{where} has no local world, so --{next(iter(given))} has no use; "
            "add --profile local, or leave the option out."
        )
    for world in worlds:
        world["layer"] = given.get("layer", world.get("layer"))
        options = {key: given[key] for key in ("model", "text") if key in given}
        world["options"] = {**(world.get("options") or {}), **options}
        if not world["options"].get("model"):
            raise UserError(
                f"{where} needs a model: add --model with a Hugging Face folder or a GGUF file."
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
