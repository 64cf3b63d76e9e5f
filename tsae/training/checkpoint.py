"""Checkpoints of an unfinished training: one file that is whole or absent, read without pickles.

``directory/checkpoint/state.pt`` holds the identity of the run, the steps done and the length of the
log, the SAE (parameters and buffers, dead counts among them), the state of Adam, the data cursor and
the generators of Python, numpy and torch. One file, because replacing a file is one step of the file
system and replacing a directory is not.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tsae.errors import CheckpointError
from tsae.files import atomic
from tsae.training import distributed

VERSION = 2
FILE = Path("checkpoint") / "state.pt"


class Progress(NamedTuple):
    """Where a run stands: steps done, and bytes of ``train.jsonl`` that belong to them."""

    step: int
    log_bytes: int


def identity(sae, store, config) -> dict[str, Any]:
    """Everything the result of a run depends on, as flat JSON; two runs are one if these agree.

    ``checkpoint_every`` is left out: it changes neither the log nor the weights.
    """
    run = {
        "version": VERSION,
        "variant": sae.name,
        "world": store.world,
        "fingerprint": store.fingerprint,
        "layer": store.layer,
        "train_sequences": store.n_sequences("train"),
    }
    run |= {f"sae.{key}": value for key, value in dataclasses.asdict(sae.cfg).items()}
    run |= {f"train.{key}": value for key, value in dataclasses.asdict(config).items()}
    del run["train.checkpoint_every"]
    return json.loads(json.dumps(run))


def check_identity(found: dict[str, Any], wanted: dict[str, Any], where: Path) -> None:
    """Raise :class:`CheckpointError` naming the first entry in which two runs differ."""
    for key in [*wanted, *found]:
        if found.get(key) != wanted.get(key):
            raise CheckpointError(
                f"{where} was made with {key} = {found.get(key)!r}, but this run has "
                f"{wanted.get(key)!r}: train into another directory, or delete that one."
            )


def rng_state() -> dict[str, Any]:
    """State of the generators of Python, numpy and torch (every CUDA device included)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], *rest),
        "torch": [torch.get_rng_state(), *cuda],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"][0])
    if len(state["torch"]) > 1:
        torch.cuda.set_rng_state_all(state["torch"][1:])


def write(directory: Path, run: dict, progress: Progress, sae, optimizer, sampler) -> None:
    """Replace the checkpoint under ``directory``; a kill at any moment leaves the old or the new.

    Raises :class:`UserError` when the disk is full; the old checkpoint is then kept.
    """
    state = {
        "identity": run,
        "progress": tuple(progress),
        "sae": sae.state_dict(),
        "optimizer": optimizer.state_dict(),
        "sampler": sampler.state_dict(),
        "generators": rng_state(),
    }
    with atomic(directory / FILE) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)


def read(directory: Path, run: dict, sae, optimizer, sampler) -> Progress | None:
    """Restore everything from ``directory``'s checkpoint; None (nothing touched) if there is none.

    Raises :class:`CheckpointError` when it is truncated, of another version, or of another run.
    """
    path = directory / FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty"
        raise CheckpointError(
            f"{path} is truncated or damaged ({reason}): delete it to train from the start."
        ) from None
    if not isinstance(state, dict) or "identity" not in state:
        raise CheckpointError(
            f"{path} was not written by tsae's trainer: train into another directory."
        )
    check_identity(state["identity"], run, path)
    sae.load_state_dict(state["sae"])
    optimizer.load_state_dict(state["optimizer"])
    sampler.load_state_dict(state["sampler"])
    set_rng_state(state["generators"])
    return Progress(*state["progress"])


def clear(directory: Path) -> None:
    """Remove the checkpoint, and what a kill in the middle of a write may have left."""
    folder = directory / "checkpoint"
    for file in folder.glob(f"{FILE.name}*"):
        file.unlink()
    with contextlib.suppress(OSError):  # it is not there, or holds files that are not ours
        folder.rmdir()
    for leftover in directory.glob("sae.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def last_row(directory: Path) -> dict[str, Any]:
    """The last line of the log; raises :class:`CheckpointError` if there is none."""
    try:
        return json.loads((directory / "train.jsonl").read_bytes().splitlines()[-1])
    except (OSError, IndexError, json.JSONDecodeError):
        raise CheckpointError(
            f"{directory}/train.jsonl is missing or damaged: delete {directory} and train again."
        ) from None


def open_log(path: Path, n_bytes: int):
    """The log cut back to its first ``n_bytes``, open at its end; nowhere for ranks after 0."""
    if distributed.rank() > 0:
        return open(os.devnull, "ab")
    size = path.stat().st_size if path.exists() else 0
    if size < n_bytes:
        raise CheckpointError(
            f"{path} has {size} bytes but its checkpoint remembers {n_bytes}: restore the log, or "
            f"delete {path.parent / 'checkpoint'} to train from the start."
        )
    log = open(path, "ab")
    log.truncate(n_bytes)
    log.seek(n_bytes)
    return log
