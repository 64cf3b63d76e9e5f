"""``local``: a Hugging Face model folder on disk, read over docstrings, articles or your own text."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.worlds import annotate, cloze, exams, fetching, linguistics, prose, pydocs, text
from lab.worlds.base import Document, World, read_record, write_record
from lab.worlds.local_config import CLOZE, PROSE, PYDOCS, TEXTS, LocalConfig
from tsae import model_folders, models
from tsae.errors import WorldError
from tsae.files import sha256
from tsae.sequences import SPLITS, LabelSpec

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from lab.worlds.knowledge import Question, Statement
    from lab.worlds.tasks import ProbeItem

WORLDS = ("local",)
# What transformers writes into config.json about itself rather than about the model.
_NOT_THE_MODEL = ("transformers_version", "_name_or_path")


class LocalWorld(World):
    """A saved model and a text; everything about it stands in ``world.json``.

    Sequences begin with the tokenizer's BOS, or with its EOS where it has no BOS (the token that
    separates documents in GPT-2's training).
    """

    def __init__(self, directory: Path, record: dict[str, Any]) -> None:
        self.directory = directory
        self.config = LocalConfig(**record["config"])
        self.name = record["name"]
        self.seq_len = self.config.seq_len
        self.layer = record["layer"]
        self.fingerprint = record["fingerprint"]
        self.n_layers, self.d_model = record["n_layers"], record["d_model"]
        self.bos_id, self.vocab_size = record["bos_id"], record["vocab_size"]
        self.label_specs = {
            name: LabelSpec(name, scale, tuple(classes))
            for name, (scale, classes) in record["labels"].items()
        }
        self._text_stamp, self._cache_dir = record["text_stamp"], record["cache_dir"]
        self._weight_bytes = record["weight_bytes"]
        self._context_length = record.get("context_length")

    def model(self, device: str = "cpu") -> "TransformerBridge":
        """See :meth:`World.model`. Raises :class:`WorldError` when its weights are others now."""
        self._check_model()
        return models.boot(self.config.model, device)

    def questions(self) -> "list[Question]":
        """The questions that the option ``questions`` names; see :meth:`World.questions`.

        Exams are put into the turns of a chat where the tokenizer has a chat template.
        """
        if self.config.questions is None:
            return []
        if self.config.questions == CLOZE:
            return cloze.questions(self.encode, self.bos_id, self.config.seed)
        assert isinstance(self.config.questions, dict)
        chat = self._chat if self._tokenizer.chat_template else None
        longest = self._context_length or exams.LONGEST
        return exams.questions(self.config.questions, self.encode, self.bos_id, longest, chat)

    def statements(self) -> "list[Statement]":
        """See :meth:`World.statements`; of cloze facts alone."""
        if self.config.questions != CLOZE:
            return []
        return cloze.statements(self.encode, self.bos_id)

    def _chat(self, prompt: str) -> str:
        turns = [{"role": "user", "content": f"{prompt}\nAnswer with the letter alone."}]
        return self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )

    def task_names(self) -> list[str]:
        """See :meth:`World.task_names`."""
        return linguistics.names(self.config.tasks)

    def probe_items(self, task: str) -> "list[ProbeItem]":
        """See :meth:`World.probe_items` and :mod:`lab.worlds.linguistics`."""
        if task not in self.task_names():
            return super().probe_items(task)
        return linguistics.items(task, self.config.tasks, self.encode, self.bos_id)

    def _check_model(self) -> None:
        if _weight_bytes(self.config.model) != self._weight_bytes:
            raise WorldError(
                f"The weights in {self.config.model} have changed since this world was built; "
                "put them back or build the world again in a new directory."
            )

    @cached_property
    def _tokenizer(self) -> Any:
        return model_folders.load_tokenizer(Path(self.config.model))

    def documents(self, split: str) -> Iterator[Document]:
        """See :meth:`World.documents`. Raises :class:`WorldError` when the text is another now."""
        source = _open_text(self.config.text, self._cache_dir, self._text_stamp)
        first_id = SPLITS.index(split)
        texts = source.texts(split, self.config.seed)
        yield from annotate.documents(
            texts, self._tokenizer, self.vocab_size, first_id, len(SPLITS), source.min_tokens
        )

    def to_strings(self, tokens: Iterable[int]) -> list[str]:
        """See :meth:`World.to_strings`; a byte that is half a character prints as U+FFFD."""
        ids = [int(token) for token in tokens]
        strings = []
        for id, piece in zip(ids, self._tokenizer.convert_ids_to_tokens(ids), strict=True):
            string = self._tokenizer.decode([id], clean_up_tokenization_spaces=False)
            # SentencePiece decoders drop the space in front of a first word.
            lost = str(piece).startswith("▁") and not string.startswith(" ")
            strings.append(" " + string if lost else string)
        return strings

    def encode(self, text: str) -> list[int]:
        """See :meth:`World.encode`."""
        return self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


Source = pydocs.Pydocs | prose.Prose | text.LocalText | text.MixedText


def _open_text(
    where: str | dict[str, str], cache_dir: str | None, stamp: dict[str, Any] | None = None
) -> Source:
    if where == PYDOCS:
        return pydocs.Pydocs(stamp)
    if where == PROSE:
        return prose.Prose(stamp, None if cache_dir is None else Path(cache_dir))
    source = text.MixedText(where) if isinstance(where, dict) else text.LocalText(where)
    if stamp is not None and stamp != source.stamp():
        raise WorldError(
            f"Text {where} has changed since this world was built; "
            "put it back or build the world again in a new directory."
        )
    return source


def _absolute(value: Any) -> Any:
    """Paths, also those by name, made absolute; anything else as it is."""
    if isinstance(value, dict):
        return {str(key): _absolute(inner) for key, inner in value.items()}
    if isinstance(value, str | Path) and value not in ("", *TEXTS):
        return str(Path(value).expanduser().resolve())
    return value


def _weight_bytes(folder: str | Path) -> int:
    return sum(file.stat().st_size for file in model_folders.weights(folder))


def _describe(name: str, cfg: LocalConfig, cache_dir: str | None) -> dict[str, Any]:
    """The world's record, from the model folder and the text; see :func:`build` for errors."""
    folder = Path(cfg.model)
    shape = model_folders.check(folder)
    longest = getattr(shape, "max_position_embeddings", None)
    if longest is not None and cfg.seq_len > longest:
        raise ValueError(
            f"seq_len is {cfg.seq_len}; allowed is at most {longest}, the model's context"
        )
    n_layers = shape.num_hidden_layers
    layer = n_layers // 2 if cfg.layer is None else cfg.layer
    if not 0 <= layer < n_layers:
        raise WorldError(f"layer {layer} does not exist: {name} has layers 0..{n_layers - 1}.")
    tokenizer = model_folders.load_tokenizer(folder)
    bos_id = tokenizer.bos_token_id
    if bos_id is None:
        bos_id = tokenizer.eos_token_id
    if bos_id is None:
        raise WorldError(
            f"The tokenizer in {folder} has neither BOS nor EOS; set one of them and save it."
        )
    # Further tokens are special ones (a pad, Gemma 3's image) that no text turns into.
    size = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if size > shape.vocab_size:
        raise WorldError(
            f"The tokenizer in {folder} has {size} tokens, the model {shape.vocab_size}; "
            "save the tokenizer that belongs to the model."
        )
    source = _open_text(cfg.text, cache_dir)
    stamp = source.stamp()
    for split in SPLITS:
        if next(source.texts(split, cfg.seed), None) is None:
            raise WorldError(
                f"Text {cfg.text} has no document for the {split} split; give at least three "
                "documents (a line <|endoftext|> separates those in one file)."
            )
    raw = model_folders.read_config(folder)
    model_config = {key: value for key, value in raw.items() if key not in _NOT_THE_MODEL}
    options = asdict(cfg) | {"model": None, "layer": None}  # neither changes what is harvested
    del options["questions"], options["tasks"]  # nor does what is asked
    weights = [sha256(file) for file in model_folders.weights(folder)]
    tokens = sha256(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else ""
    whole = json.dumps([name, options, stamp, model_config, weights, tokens], sort_keys=True)
    return {
        "config": asdict(cfg),
        "fingerprint": hashlib.sha256(whole.encode("utf-8")).hexdigest(),
        "layer": layer,
        "n_layers": n_layers,
        "d_model": shape.hidden_size,
        "bos_id": bos_id,
        "vocab_size": shape.vocab_size,
        "labels": {name: [spec.scale, spec.classes] for name, spec in source.label_specs.items()},
        "text_stamp": stamp,
        "cache_dir": cache_dir,
        "weight_bytes": _weight_bytes(folder),
        "context_length": longest,
    }


def build(
    directory: Path,
    *,
    name: str = "local",
    seed: int = 0,
    progress: bool = True,
    cache_dir: Path | None = None,
    **options: Any,
) -> LocalWorld:
    """The world of a saved model: options are the fields of :class:`LocalConfig`.

    A model in one .gguf file is converted into ``cache_dir`` first. Nothing else is copied:
    ``world.json`` points to the model and the text and holds their fingerprint.
    Raises ValueError for an unknown option or a bad value, :class:`WorldError` for a folder or text
    that cannot be used and for a directory that holds another world.
    """
    allowed = [field.name for field in fields(LocalConfig) if field.name != "seed"]
    if unknown := sorted(set(options) - set(allowed)):
        raise ValueError(
            f"{unknown[0]} is not an option of {name}; allowed are {', '.join(allowed)}"
        )
    if "model" not in options:
        raise ValueError(f"model is missing; {name} needs model=PATH of a saved Hugging Face model")
    for key in ("model", "text", "tasks"):
        if key in options:
            options[key] = _absolute(options[key])
    if str(options["model"]).lower().endswith(".gguf"):
        folder = model_folders.from_gguf(options["model"], cache_dir or fetching.default_cache())
        options["model"] = str(folder)
    if isinstance(options.get("questions"), dict):
        options["questions"] = {
            key: [str(Path(name).resolve()) if Path(name).is_file() else name for name in names]
            for key, names in options["questions"].items()
        }
    cached = None if cache_dir is None else str(cache_dir.resolve())
    record = _describe(name, LocalConfig(seed=seed, **options), cached)
    if (directory / "world.json").exists():
        old = read_record(directory)
        if (old.get("name"), old.get("fingerprint")) != (name, record["fingerprint"]):
            raise WorldError(
                f"{directory} holds another world ({old.get('name')} of other options, text or "
                "weights); give another directory or delete this one."
            )
    directory.mkdir(parents=True, exist_ok=True)
    write_record(directory, name, record)
    return load(directory, read_record(directory))


def load(directory: Path, record: dict[str, Any]) -> LocalWorld:
    """The world of ``record``. Raises :class:`WorldError` when the record is not complete."""
    try:
        return LocalWorld(directory, record)
    except (KeyError, TypeError, ValueError) as error:
        raise WorldError(
            f"{directory / 'world.json'} is not a complete record; "
            "delete it and build the world again."
        ) from error
