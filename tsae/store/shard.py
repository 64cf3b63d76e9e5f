"""One shard file, written once. See ``layout`` for what it holds."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from tsae import files
from tsae.errors import StoreError
from tsae.store import layout
from tsae.store.forward import Piece

MASSIVE_FACTOR = 10


def write_shard(
    path: Path, count: int, pieces: Iterable[Piece], manifest: dict[str, Any], bar: tqdm
) -> dict[str, Any]:
    """Write ``count`` sequences, or as many as come, and return the shard's manifest entry.

    Residuals go out as they come; the small arrays follow, once the shard's norms are known. The
    first shard of all enters the median norm in ``manifest``. The file has a temporary name until
    it is whole. Raises :class:`StoreError` when the first shard holds no text.
    """
    names = [label["name"] for label in manifest["labels"]]
    full = layout.sections(count, manifest)
    arrays = {name: np.empty(full[name][2], full[name][1]) for name in layout.SMALL}
    norm_NT = np.empty((count, manifest["seq_len"]), np.float32)
    digest, n = hashlib.sha256(), 0
    with files.atomic(path) as temporary, open(temporary, "w+b") as file:

        def put(array: Any) -> None:
            file.write(array)
            digest.update(array)

        for piece in pieces:
            put(piece.x_BTD.view(torch.uint16).numpy())
            for sequence, norm_T in zip(piece.sequences, piece.norm_BT, strict=True):
                arrays["tokens"][n] = sequence.tokens
                arrays["doc"][n] = sequence.doc
                arrays["boundary"][n] = sequence.boundary
                for i, name in enumerate(names):
                    arrays["labels"][n, i] = sequence.labels[name]
                norm_NT[n] = norm_T
                n += 1
            bar.update(piece.norm_BT.size)
        file.flush()
        arrays = {name: array[:n] for name, array in arrays.items()}
        inside_NT, norm_NT = arrays["doc"] >= 0, norm_NT[:n]
        if "median_norm" not in manifest:
            if not inside_NT.any():
                raise StoreError(
                    f"{path.name} would hold no text at all: give the world more text."
                )
            manifest["median_norm"] = float(np.median(norm_NT[inside_NT]))
        massive_NT = inside_NT & (norm_NT > MASSIVE_FACTOR * manifest["median_norm"])
        valid_NT = inside_NT & ~massive_NT
        arrays["validity"][:] = layout.OUTSIDE
        arrays["validity"][valid_NT] = layout.VALID
        arrays["validity"][massive_NT] = layout.MASSIVE
        arrays["statistics"] = _statistics(file.fileno(), valid_NT, manifest)
        for name, (offset, _, _) in layout.sections(n, manifest).items():
            if name != "x":
                put(bytes(offset - file.tell()))
            if name in arrays:
                put(arrays[name])
        size = file.tell()
    return {
        "file": path.name,
        "sequences": n,
        "bytes": size,
        "sha256": digest.hexdigest(),
        "valid": int(valid_NT.sum()),
        "massive": int(massive_NT.sum()),
    }


def _statistics(descriptor: int, valid_NT: np.ndarray, manifest: dict[str, Any]) -> np.ndarray:
    """Σ x, Σ ‖x‖² and number over valid tokens, float64 [d + 2], from the residuals as written."""
    length, d = manifest["seq_len"], manifest["d_model"]
    size = 2 * length * d
    found = np.zeros(d + 2)
    for i, valid_T in enumerate(valid_NT):
        raw = bytearray(os.pread(descriptor, size, i * size))
        x_TD = torch.frombuffer(raw, dtype=getattr(torch, manifest["dtype"])).view(length, d)
        x_TD = x_TD[torch.from_numpy(valid_T)].double()
        found[:d] += x_TD.sum(0).numpy()
        found[d] += x_TD.square().sum().item()
        found[d + 1] += len(x_TD)
    return found
