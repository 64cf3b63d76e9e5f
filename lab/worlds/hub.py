"""``gpt2``, ``pythia-70m``, ``gemma-2-2b``, ``gemma-2-2b-it``: published models and corpora by name.

What a world needs is taken from the Hugging Face hub once: the model into the hub's own cache, the
text as a .jsonl file into ``cache_dir``. From then on the world is ``local`` with those two, and no
hub is asked. ``model=PATH`` and ``text=PATH`` stand in where no hub can be reached.
"""

from pathlib import Path
from typing import Any, NamedTuple

from lab.worlds import corpora, local
from lab.worlds.fetching import default_cache
from lab.worlds.local_config import TEXTS

WORLDS = ("gpt2", "pythia-70m", "gemma-2-2b", "gemma-2-2b-it")
FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
MEGABYTES = 32.0


class Published(NamedTuple):
    """A model on the hub: its repository, and the layer to read by default."""

    repository: str
    layer: int


MODELS = {
    "gpt2": Published("openai-community/gpt2", 8),
    "pythia-70m": Published("EleutherAI/pythia-70m", 3),
    "gemma-2-2b": Published("google/gemma-2-2b", 12),
    "gemma-2-2b-it": Published("google/gemma-2-2b-it", 12),
}

load = local.load


def build(
    directory: Path,
    *,
    name: str,
    seed: int = 0,
    progress: bool = True,
    cache_dir: Path | None = None,
    model: str | Path | None = None,
    text: str | Path | dict[str, str] = "openwebtext",
    megabytes: float = MEGABYTES,
    **options: Any,
) -> local.LocalWorld:
    """The published model ``name`` over a published corpus; further options: those of ``local``.

    ``text``: openwebtext, wikitext-103, pile (a 10,000-document sample), prose or pydocs; a path, as for
    ``local``; ``CORPUS=PATH`` for rows of that corpus in .parquet, .jsonl or .arrow files; or
    several of these by name, which becomes the document label ``source``. ``megabytes`` of each
    corpus are fetched. ``model``: a folder with the model, in place of the hub. ``layer``: by
    default that of :data:`MODELS`, or the middle one of another folder with fewer layers.

    Raises :class:`WorldError`, in one sentence, where the hub cannot be reached or wants its terms
    accepted first.
    """
    if isinstance(megabytes, bool) or not isinstance(megabytes, int | float) or megabytes <= 0:
        raise ValueError(f"megabytes is {megabytes!r}; allowed is a number above 0")
    cache = cache_dir or default_cache()
    parts = text if isinstance(text, dict) else {"": text}
    found = {key: _text(str(value), cache, megabytes, progress) for key, value in parts.items()}
    folder = model_folder(name, progress) if model is None else str(model)
    options = {"text": found if isinstance(text, dict) else found[""], **options}
    if model is None:
        options = {"layer": MODELS[name].layer, **options}
    return local.build(
        directory, name=name, seed=seed, cache_dir=cache_dir, model=folder, **options
    )


def model_folder(name: str, progress: bool = True) -> str:
    """The folder of the published model ``name`` in the hub's cache, fetched where it is missing."""
    from huggingface_hub import snapshot_download, utils
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = MODELS[name].repository
    try:
        folder = snapshot_download(repository, allow_patterns=FILES, local_files_only=True)
        if any(Path(folder).glob("*.safetensors")):
            return folder
    except LocalEntryNotFoundError:
        pass
    silent = not progress and not utils.are_progress_bars_disabled()
    with corpora.hub_is_clear(f"World {name}", repository, "model=PATH of a copy"):
        if silent:
            utils.disable_progress_bars()
        try:
            return snapshot_download(repository, allow_patterns=FILES)
        finally:
            if silent:
                utils.enable_progress_bars()


def _text(text: str, cache: Path, megabytes: float, progress: bool) -> str:
    """``text`` as what ``local`` reads: a path, pydocs or prose."""
    if text in TEXTS or not text:
        return text
    name, _, source = text.partition("=")
    if name in corpora.CORPORA:
        return str(corpora.fetch(name, cache, megabytes, source or None, progress))
    return text
