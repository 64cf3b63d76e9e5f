"""Harvest: run a world's model over its text and keep the residual stream of one layer."""

import fcntl
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from tsae import files, models
from tsae.errors import StoreError
from tsae.sequences import SPLITS, TextSource
from tsae.store import layout
from tsae.store.config import DTYPES, HarvestConfig
from tsae.store.forward import Job, Overflow, Text, forward
from tsae.store.reading import ActivationStore
from tsae.store.shard import write_shard


def harvest(
    world: TextSource,
    directory: str | Path,
    *,
    layer: int,
    tokens: dict[str, int],
    dtype: str | None = None,
    device: str = "cpu",
    progress: bool = True,
    **portions: int,
) -> ActivationStore:
    r"""Write the residuals at ``blocks.{layer}.hook_out`` and return the store.

    For the settings and ``portions`` see :class:`HarvestConfig`. What is there already is kept: the
    same call after an interruption continues at the first missing shard and ends with the same
    bytes; a call for more tokens appends shards; a missing or shortened shard is made again. A text
    that ends before the tokens asked for is used as far as it goes, and a value beyond float16
    starts a harvest of no given dtype again in bfloat16; a line on stderr says so. The normalisation

        scale = sqrt(d / E‖x − E x‖²),   mean = scale · E x

    is summed in float64 over the valid train tokens of all shards, hence again after an append.
    Massive activations are tokens with norm above 10 times the median norm over the tokens (BOS and
    padding aside) of the first train shard; that median is measured once and kept.

    Raises ValueError on a bad setting, :class:`WorldError` when there is no such layer, and
    :class:`StoreError` when the directory holds something else, when the text has changed, and when
    an activation is not finite or does not fit a float16 that was asked for.
    """
    models.check_layer(world, layer)
    config = HarvestConfig(tokens, dtype, **portions)

    @cache
    def model() -> Any:
        return world.model(device)

    def residual(tokens_BT: Tensor) -> Tensor:
        return models.residual(model(), tokens_BT.to(device), layer)

    read = getattr(world, "activations", residual)
    return harvest_with(read, world, directory, layer, config, progress)


def harvest_with(
    residual: Callable[[Tensor], Tensor],
    world: TextSource,
    directory: str | Path,
    layer: int,
    config: HarvestConfig,
    progress: bool = True,
) -> ActivationStore:
    """:func:`harvest` with any ``residual``: tokens_BT int64 → x_BTD, in place of the model."""
    directory = Path(directory)
    per_shard = config.sequences_a_shard(world)

    def make(manifest: dict[str, Any], tokens: dict[str, int]) -> None:
        jobs = _plan(directory, manifest, tokens, per_shard)
        if not manifest["shards"]["train"] and not any(job.split == "train" for job in jobs):
            raise ValueError(
                f"tokens are {tokens}; the first harvest needs train tokens, because the "
                "normalisation is theirs"
            )
        if jobs or not manifest["complete"]:
            _make(residual, directory, world, manifest, jobs, config.batch_sequences, progress)
            _complete(directory, manifest)

    with files.disk_full_is_clear(directory), _only_one(directory):
        manifest = _begin(directory, world, layer, config.dtype)
        try:
            make(manifest, config.tokens)
        except Overflow as error:
            if config.dtype is not None:
                raise
            print(f"{str(error).split(':')[0]}: stored as bfloat16.", file=sys.stderr)
            tokens = config.tokens | {
                split: max(sum(s["sequences"] for s in shards) * world.seq_len, wanted)
                for split, shards in manifest["shards"].items()
                if (wanted := config.tokens.get(split, 0)) or shards
            }
            make(_begin(directory, world, layer, "bfloat16", manifest), tokens)
    return ActivationStore.open(directory)


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Keep a second harvest out of ``directory``; the lock ends with the process in any case."""
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is a file: give a directory for the activation store.")
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"Another harvest is writing to {directory}: wait for its end, then run this again."
            ) from None
        yield
    finally:
        os.close(descriptor)


def _begin(
    directory: Path,
    world: TextSource,
    layer: int,
    dtype: str | None,
    instead_of: dict | None = None,
) -> dict[str, Any]:
    """The manifest of the store in ``directory``, checked against what is asked for, or new.

    With ``instead_of``, the store of that manifest is removed first.
    """
    asked = {
        "world": world.name,
        "fingerprint": world.fingerprint,
        "layer": layer,
        "hook": f"blocks.{layer}.hook_out",
        "dtype": dtype,
        "seq_len": world.seq_len,
        "d_model": world.d_model,
        "labels": [
            {"name": spec.name, "scale": spec.scale, "classes": list(spec.classes)}
            for spec in world.label_specs.values()
        ],
    }
    leftovers = set(directory.glob(f"{layout.MANIFEST}.tmp-*"))
    manifest = layout.read_manifest(directory) if set(directory.iterdir()) - leftovers else None
    for leftover in leftovers.union(directory.glob("*.bin.tmp-*")):
        leftover.unlink()
    if manifest is None or instead_of or not any(manifest["shards"].values()):
        empty: dict[str, list] = {split: [] for split in SPLITS}
        manifest = {**asked, "dtype": dtype or DTYPES[0], "shards": empty, "complete": False}
        layout.write_manifest(directory, manifest)
        for shards in instead_of["shards"].values() if instead_of else []:
            for shard in shards:
                (directory / shard["file"]).unlink(missing_ok=True)
    for key, value in asked.items():
        if manifest[key] != value and not (key == "dtype" and value is None):
            was = "other labels" if key == "labels" else f"{key} {manifest[key]!r}, not {value!r}"
            raise StoreError(
                f"The store in {directory} was harvested with {was}: "
                "harvest into another directory."
            )
    return manifest


def _plan(
    directory: Path, manifest: dict[str, Any], tokens: dict[str, int], per_shard: int
) -> list[Job]:
    """Shards to make: recorded ones whose file is not whole, then what ``tokens`` asks beyond."""
    jobs = []
    for split in SPLITS:
        start = 0
        for index, shard in enumerate(manifest["shards"][split]):
            if layout.damage(directory, shard):
                jobs.append(Job(split, index, start, shard["sequences"]))
            start += shard["sequences"]
        wanted = -(-tokens.get(split, 0) // manifest["seq_len"])
        index = len(manifest["shards"][split])
        while start < wanted and split not in manifest.get("ended", []):
            jobs.append(Job(split, index, start, min(per_shard, wanted - start)))
            start += per_shard
            index += 1
    return jobs


def _make(
    residual: Callable[[Tensor], Tensor],
    directory: Path,
    world: TextSource,
    manifest: dict[str, Any],
    jobs: list[Job],
    batch_sequences: int,
    progress: bool,
) -> None:
    """Write the shards of ``jobs``, each entered in the manifest as soon as it is on disk."""
    wanted = {job.split: job.start + job.count for job in jobs}
    total = sum(job.count for job in jobs) * world.seq_len
    text = Text(directory, world, manifest)
    with tqdm(total=total, unit="tok", unit_scale=True, disable=not progress) as bar:
        for job in jobs:
            batches = text.batches(job, batch_sequences)
            if (first := next(batches, None)) is None:  # the text has ended
                continue
            bar.set_description(f"harvest {job.split}")
            path = directory / f"{job.split}-{job.index:05d}.bin"
            pieces = (forward(residual, job, manifest, part) for part in chain([first], batches))
            entry = write_shard(path, job.count, pieces, manifest, bar)
            manifest["shards"][job.split][job.index : job.index + 1] = [entry]
            manifest["complete"] = False
            layout.write_manifest(directory, manifest)
    for split, n in wanted.items():
        have = sum(shard["sequences"] for shard in manifest["shards"][split])
        if have < n:
            manifest["ended"] = sorted({*manifest.get("ended", []), split})
            print(
                f"The {split} text of {world.name} ends after {have * world.seq_len} of the "
                f"{n * world.seq_len} tokens asked for: it is used as far as it goes.",
                file=sys.stderr,
            )


def _complete(directory: Path, manifest: dict[str, Any]) -> None:
    """Sum the shards' statistics, enter the normalisation and mark the store complete."""
    d, shards = manifest["d_model"], manifest["shards"]["train"]
    parts = (layout.read_array(directory, shard, "statistics", manifest) for shard in shards)
    total = sum(parts, np.zeros(d + 2))
    n = total[d + 1]
    mean_D = total[:d] / max(n, 1)
    variance = total[d] / max(n, 1) - mean_D @ mean_D
    if n == 0 or variance <= 1e-12 * total[d] / n:
        raise StoreError(
            f"The residuals in {directory} do not vary over the train text: take another layer or "
            "more text."
        )
    scale = math.sqrt(d / variance)
    massive = sum(shard["massive"] for shard in shards)
    manifest |= {
        "scale": scale,
        "mean": (mean_D * scale).tolist(),
        "massive_share": massive / (n + massive),
        "complete": True,
    }
    layout.write_manifest(directory, manifest)
