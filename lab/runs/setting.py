"""A world with the store of its activations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lab import worlds
from tsae.errors import UserError
from tsae.files import in_turn
from tsae.models import check_layer
from tsae.saes.registry import check_device
from tsae.store import ActivationStore, harvest


class Setting(NamedTuple):
    """A built world and the store of its activations."""

    world: worlds.World
    store: ActivationStore


def compute_on(device: str, threads: int) -> str:
    """Take ``threads`` of the CPU and ``device`` (``auto``: a GPU where torch sees one), say so in
    a line, and return the device. Raises :class:`UserError` for a GPU where there is none."""
    torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    name = "" if device == "cpu" else f" ({torch.cuda.get_device_name(device)})"
    print(f"Computed on {device}{name}, with {threads} thread{'s' * (threads > 1)} of the CPU.")
    return device


def make_setting(
    directory: str | Path,
    *,
    world: str,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    layer: int | None = None,
    tokens: Mapping[str, int],
    device: str = "cpu",
    progress: bool = True,
) -> Setting:
    """Build ``world`` and harvest its activations into ``directory/{world,store}``.

    ``tokens`` are those of each split; validation, where it is left out, has as many as the test.
    What is there already is kept; another process that makes the same waits. Raises
    :class:`UserError` for a world, layer or text that cannot be used, ``ValueError`` for an
    unknown option.
    """
    directory = Path(directory)
    with in_turn(directory):
        made = worlds.build(
            world, directory / "world", seed=seed, progress=progress, **dict(options or {})
        )
        layer = made.layer if layer is None else layer
        check_layer(made, layer)
        sizes = dict(tokens)
        if "test" in sizes:
            sizes.setdefault("validation", sizes["test"])
        given: dict[str, Any] = {"layer": layer, "device": device, "progress": progress}
        store = harvest(made, directory / "store", tokens=sizes, **given)
    return Setting(made, store)


def open_setting(directory: str | Path) -> Setting:
    """The world and store that :func:`make_setting` left in ``directory``."""
    directory = Path(directory)
    made = worlds.load(directory / "world")
    store = ActivationStore.open(directory / "store")
    if store.fingerprint != made.fingerprint:
        raise UserError(
            f"The store in {directory} was harvested from another world; make it again."
        )
    return Setting(made, store)
