"""Names of the variants, and how one is built, saved and loaded."""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tsae.errors import CheckpointError, UserError
from tsae.files import atomic, read_json, write_json
from tsae.saes.base import SAE, SAEConfig

FORMAT = 1

_VARIANTS: dict[str, tuple[type[SAE], type[SAEConfig], dict[str, Any]]] = {}


def register(name: str, config: type[SAEConfig], **fixed: Any) -> Callable[[type], type]:
    """Class decorator: make ``name`` buildable. ``fixed`` are config values the name implies.

    Raises ``ValueError`` when the name is taken.
    """

    def add(cls: type) -> type:
        if name in _VARIANTS:
            raise ValueError(f"variant name {name!r} is registered twice; choose another name.")
        _VARIANTS[name] = (cls, config, fixed)
        return cls

    return add


def names() -> list[str]:
    """All registered variants, in alphabetical order."""
    return sorted(_VARIANTS)


def name_of(cls: type[SAE]) -> str:
    """The first name under which a variant is registered."""
    return next(name for name, (known, *_) in _VARIANTS.items() if known is cls)


def build(name: str, **options: Any) -> SAE:
    """The variant ``name`` with fresh weights; ``options`` are its config's fields.

    Raises ``ValueError`` for an unknown name or option (listing the valid ones), for a bad value,
    and for an ``act`` that contradicts a name which fixes it (``topk`` with ``act="relu"``).
    """
    if name not in _VARIANTS:
        raise ValueError(f"variant {name!r} is unknown; choose one of {', '.join(names())}.")
    cls, config, fixed = _VARIANTS[name]
    valid = [field.name for field in fields(config)]
    for option in options:
        if option not in valid:
            raise ValueError(
                f"variant {name!r} has no option {option!r}; its options are {', '.join(valid)}."
            )
    for field, value in fixed.items():
        if options.get(field, value) != value:
            raise ValueError(
                f"{field}={options[field]!r} contradicts variant {name!r}, which fixes {value!r}."
            )
    sae = cls(config(**{**options, **fixed}))
    sae.name = name
    return sae


def save(sae: SAE, directory: str | Path) -> None:
    """Write ``cfg.json`` and ``sae.safetensors`` into ``directory``, replacing it in one step."""
    with atomic(directory) as temporary:
        temporary.mkdir()
        state = {name: tensor.contiguous() for name, tensor in sae.state_dict().items()}
        save_file(state, temporary / "sae.safetensors")
        config = {"format": FORMAT, "variant": sae.name, "config": asdict(sae.cfg)}
        write_json(temporary / "cfg.json", {**config, "meta": sae.meta})


def check_device(device: str) -> None:
    """Raise :class:`UserError` for a GPU where torch sees none."""
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(
            f"device={device!r} was asked for, but torch sees no GPU here: use device='cpu'."
        )


def load(directory: str | Path, device: str = "cpu") -> SAE:
    """Read what :func:`save` wrote, in ``eval`` mode.

    Raises :class:`CheckpointError`, in one sentence, when the directory is missing, truncated,
    foreign or of another format version, and :class:`UserError` for a device that is not there.
    """
    check_device(device)
    directory = Path(directory)
    record = read_json(directory / "cfg.json", CheckpointError)
    if not isinstance(record, dict) or not {"format", "variant", "config"} <= set(record):
        raise CheckpointError(f"{directory} is not a tsae checkpoint: its cfg.json is foreign.")
    if record["format"] != FORMAT:
        raise CheckpointError(
            f"{directory} has checkpoint format {record['format']}, this tsae reads {FORMAT}; "
            "train it again or use the tsae version that wrote it."
        )
    try:
        sae = build(record["variant"], **record["config"])
        tensors = load_file(directory / "sae.safetensors", device=device)
        for name, own in sae.state_dict().items():
            if name not in tensors:
                raise ValueError(f"tensor {name} is missing")
            if tensors[name].shape != own.shape:
                shape = tuple(tensors[name].shape)
                raise ValueError(f"{name} has shape {shape}, not {tuple(own.shape)}")
        sae.load_state_dict(tensors)
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no sae.safetensors; train it again.") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{directory} cannot be read ({reason}); train it again.") from None
    sae.meta = record.get("meta", {})
    return sae.to(device).eval()
