"""Saved language models: what a folder must hold before anything boots it, and GGUF files.

A folder that cannot work is refused here, in one sentence, before transformer_lens sees it: on a
model of text and images it would run ``pip install`` by itself, which replaces torch.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from filelock import FileLock

from tsae.errors import WorldError
from tsae.files import atomic, disk_full_is_clear, sha256

# Environment of pip and uv under which neither finds anything to install.
_NO_INSTALLS = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "UV_OFFLINE": "1", "UV_NO_CACHE": "1"}


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers inside the block; as before afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def no_installs() -> AbstractContextManager:
    """Whatever calls pip or uv inside the block can install nothing."""
    return patch.dict(os.environ, _NO_INSTALLS)


def weights(folder: str | Path) -> list[Path]:
    """The .safetensors files of ``folder``, in order."""
    return sorted(Path(folder).glob("*.safetensors"))


def read_config(folder: str | Path) -> dict[str, Any]:
    """``config.json``. Raises :class:`WorldError` when it is missing or not whole."""
    path = Path(folder) / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        adapter = (path.parent / "adapter_config.json").exists()
        raise WorldError(
            f"{path.parent} holds an adapter alone; merge it into its model with "
            "merge_and_unload() and save that."
            if adapter
            else f"{path} does not exist; give the folder of a Hugging Face model, or a .gguf file."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise WorldError(f"{path} is not whole JSON; copy the model again.")
    return found


def check(folder: str | Path) -> Any:
    """The configuration of the causal language model in ``folder``, as transformers reads it.

    Raises :class:`WorldError` for weights that are no safetensors or quantised, and for a model that
    is no causal language model of text alone.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    folder = Path(folder)
    raw = read_config(folder)
    if not weights(folder):
        raise WorldError(
            f"{folder} has no .safetensors weights; save the model with save_pretrained."
        )
    if quantised := raw.get("quantization_config"):
        how = quantised.get("quant_method", "somehow") if isinstance(quantised, dict) else quantised
        raise WorldError(
            f"The weights in {folder} are quantised ({how}); give the model it was made from, or a "
            ".gguf file of it."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise WorldError(
            f"{folder / 'config.json'} describes no model that transformers knows; "
            "give another folder."
        ) from error
    if config.get_text_config() is not config:
        raise WorldError(
            f"The model in {folder} ({config.model_type}) reads more than text; give a model of text "
            "alone (of Gemma 3, those are 270m and 1b)."
        )
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if config.is_encoder_decoder or encoder and not getattr(config, "is_decoder", False):
        raise WorldError(
            f"The model in {folder} ({config.model_type}) is not causal: a token of it sees what "
            "follows; give a model that writes from left to right, such as GPT-2 or Llama."
        )
    return config


def load_tokenizer(directory: str | Path) -> Any:
    """The fast tokenizer in ``directory``; whatever length it was saved with, it neither cuts nor
    pads. Raises :class:`WorldError` when there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception on a file it cannot parse
        raise WorldError(
            f"There is no readable tokenizer in {directory}; save tokenizer.json beside the model."
        ) from error
    if not tokenizer.is_fast:
        raise WorldError(
            f"The tokenizer in {directory} gives no character offsets; "
            "save a fast tokenizer.json there."
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def from_gguf(file: str | Path, cache_dir: str | Path) -> Path:
    """The model of one .gguf file as a folder under ``cache_dir``, converted where it is missing.

    The folder's name holds the file's checksum. Raises :class:`WorldError` for a file that
    transformers cannot read.
    """
    file, cache_dir = Path(file), Path(cache_dir)
    if not file.is_file():
        raise WorldError(f"{file} does not exist; give the path of a .gguf file.")
    folder = cache_dir / f"{file.stem}-{sha256(file)[:8]}"
    with disk_full_is_clear(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{folder.name}.lock"):
            if not folder.exists():
                print(f"Converting {file.name} to safetensors, once.", file=sys.stderr)
                with atomic(folder) as unfinished:
                    convert_gguf(file, unfinished, file.stem)
    return folder


def convert_gguf(file: Path, folder: Path, name: str) -> None:
    """Dequantise ``file`` to fp32 and save model and tokenizer in ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": file.name, "local_files_only": True}
    try:
        # The GGUF reader draws a bar of its own that has no switch.
        with quiet(), redirect_stderr(StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
            quantised = AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, **source
            )
    except Exception as error:  # gguf, transformers and tokenizers each raise their own
        reason = " ".join(str(error).split())[:200]
        raise WorldError(
            f"{file} cannot be read as GGUF ({reason}); copy it again, or give the model's folder."
        ) from error
    # transformers refuses to save a model that came from GGUF; a fresh one holds the same numbers.
    del quantised.config.quantization_config
    quantised.config._name_or_path = name
    model = AutoModelForCausalLM.from_config(quantised.config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
