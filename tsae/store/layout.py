"""What a store's files hold: ``store.json`` and one raw file per shard.

A shard of n sequences is these arrays one after another, each starting at a multiple of 64 bytes:

    x           [n, T, d]  float16 or bfloat16, the raw residual
    tokens      [n, T]     int32
    doc         [n, T]     int32, −1 at BOS and padding
    boundary    [n, T]     uint8, the level that starts at the token
    validity    [n, T]     uint8: BOS or padding 0, valid 1, massive activation 2
    labels      [n, L, T]  int16, in the order of the manifest, −1 where one does not apply
    statistics  [d + 2]    float64: Σ x, Σ ‖x‖², number, over the shard's valid tokens

``store.json`` names the world, the layer and the settings, lists the shards of each split with size
and SHA-256, and holds the normalisation once the harvest is complete.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from tsae import files
from tsae.errors import StoreError
from tsae.sequences import SPLITS, LabelSpec

FORMAT, VERSION = "tsae-activations", 2
MANIFEST = "store.json"
OUTSIDE, VALID, MASSIVE = 0, 1, 2
ALIGNMENT = 64
SMALL = ("tokens", "doc", "boundary", "validity", "labels")
"""The arrays beside ``x`` that every sequence has a row of."""
KEYS = {
    "world": str,
    "fingerprint": str,
    "layer": int,
    "hook": str,
    "dtype": str,
    "seq_len": int,
    "d_model": int,
    "labels": list,
    "shards": dict,
    "complete": bool,
}
COMPLETE_KEYS = {"median_norm": float, "scale": float, "mean": list, "massive_share": float}


def sections(n: int, manifest: dict[str, Any]) -> dict[str, tuple[int, np.dtype, tuple[int, ...]]]:
    """Offset, dtype and shape of every array of a shard with ``n`` sequences; "end" is its size.

    ``x`` appears as uint16 bit patterns, because NumPy has no bfloat16.
    """
    length, d, n_labels = manifest["seq_len"], manifest["d_model"], len(manifest["labels"])
    arrays: tuple[tuple[str, type, tuple[int, ...]], ...] = (
        ("x", np.uint16, (n, length, d)),
        ("tokens", np.int32, (n, length)),
        ("doc", np.int32, (n, length)),
        ("boundary", np.uint8, (n, length)),
        ("validity", np.uint8, (n, length)),
        ("labels", np.int16, (n, n_labels, length)),
        ("statistics", np.float64, (d + 2,)),
    )
    found: dict[str, tuple[int, np.dtype, tuple[int, ...]]] = {}
    offset = 0
    for name, kind, shape in arrays:
        found[name] = (offset, np.dtype(kind), shape)
        offset += math.prod(shape) * np.dtype(kind).itemsize
        offset += -offset % ALIGNMENT
    found["end"] = (offset, np.dtype(np.uint8), (0,))
    return found


def shard_bytes(n: int, manifest: dict[str, Any]) -> int:
    """Size of the file of a shard with ``n`` sequences."""
    return sections(n, manifest)["end"][0]


def read_array(
    directory: Path, shard: dict[str, Any], name: str, manifest: dict, row: int | None = None
) -> np.ndarray:
    """An array of a shard, or one sequence's row of it, read into memory."""
    offset, kind, shape = sections(shard["sequences"], manifest)[name]
    if row is not None:
        shape = shape[1:]
        offset += row * math.prod(shape) * kind.itemsize
    with open(directory / shard["file"], "rb") as file:
        return np.fromfile(file, kind, math.prod(shape), offset=offset).reshape(shape)


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Replace ``store.json`` in one step."""
    files.write_json(directory / MANIFEST, {"format": FORMAT, "version": VERSION, **manifest})


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read ``store.json``.

    Raises :class:`StoreError` when it is missing, foreign, damaged or of another version.
    """
    path = directory / MANIFEST
    if not path.exists():
        raise StoreError(
            f"{directory} is not an activation store (it has no {MANIFEST}): "
            "give the directory of a harvest, or harvest into a new one."
        )
    try:
        manifest = files.read_json(path, StoreError)
    except StoreError:
        raise StoreError(f"{path} is cut short: harvest again into a new directory.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(
            f"{path} was not written by a harvest: give the directory of an activation store."
        )
    if manifest.get("version") != VERSION:
        raise StoreError(
            f"{directory} is of store version {manifest.get('version')}, this code reads version "
            f"{VERSION}: harvest again into a new directory."
        )
    needed = KEYS | COMPLETE_KEYS if manifest.get("complete") else KEYS
    wrong = [key for key, kind in needed.items() if not isinstance(manifest.get(key), kind)]
    if not wrong and set(manifest["shards"]) != set(SPLITS):
        wrong = ["shards"]
    if wrong:
        raise StoreError(
            f"{path} is damaged at {', '.join(wrong)}: harvest again into a new directory."
        )
    return manifest


def damage(directory: Path, shard: dict[str, Any], checksum: bool = False) -> str:
    """What is wrong with a shard's file, as the end of a sentence; "" when it is whole."""
    path = directory / shard["file"]
    if not path.exists():
        return "is missing: run the same harvest again to make it anew"
    size = path.stat().st_size
    if size != shard["bytes"]:
        return (
            f"has {size} bytes instead of {shard['bytes']}: "
            "run the same harvest again to make it anew"
        )
    if checksum and files.sha256(path) != shard["sha256"]:
        return "does not match its checksum: delete it and run the same harvest again"
    return ""


def label_specs(manifest: dict[str, Any]) -> dict[str, LabelSpec]:
    """The labels of the store in their order on disk."""
    return {
        label["name"]: LabelSpec(label["name"], label["scale"], tuple(label["classes"]))
        for label in manifest["labels"]
    }
