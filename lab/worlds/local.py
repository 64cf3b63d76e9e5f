"""``local``: a Hugging Face model folder on disk, read over docstrings, articles or your own text."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lab.worlds import annotate, cloze, exams, fetching, linguistics, prose, pydocs, text
from lab.worlds.base import Document, Given, World, check_wholes, configured, require, write_record
from tsae import model_folders, models
from tsae.errors import WorldError
from tsae.files import sha256
from tsae.sequences import SPLITS, LabelSpec

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from lab.worlds.knowledge import Question, Statement
    from lab.worlds.tasks import ProbeItem

WORLDS = ("local",)
PYDOCS, PROSE, CLOZE = "pydocs", "prose", "cloze"
# What transformers writes into config.json about itself rather than about the model.
_NOT_THE_MODEL = ("transformers_version", "_name_or_path")


@dataclass(frozen=True)
class LocalConfig:
    """Options of a world made from a saved model."""

    model: str = ""
    """Folder with config.json, .safetensors weights and a fast tokenizer, or a .gguf file."""
    text: str | dict[str, str] = PYDOCS
    """"pydocs", "prose", or a path: .txt, .md, .jsonl, a folder of them, or a datasets folder; or several
    paths by name, which becomes the document label ``source``."""
    seq_len: int = 128
    """Tokens a sequence, BOS included; at least 2."""
    layer: int | None = None
    """Layer to read by default; None is the middle one."""
    questions: str | dict[str, list[str]] | None = None
    """What to ask: "cloze" (:mod:`lab.worlds.cloze`), or exams for forget, near and far, each a
    file, wmdp-NAME or mmlu/SUBJECT (:mod:`lab.worlds.exams`)."""
    tasks: dict[str, str] = field(default_factory=dict)
    """Probing tasks: blimp, winobias, wic, each with the path of its published files."""
    seed: int = 0
    """Decides the order of documents and which are held out."""

    def __post_init__(self) -> None:
        check_wholes(self, {"seq_len": 2} if self.layer is None else {"seq_len": 2, "layer": 0})
        paths = list(self.text.values()) if isinstance(self.text, dict) else [self.text]
        texts = paths and all(isinstance(path, str) and path for path in paths)
        require(self, "text", bool(texts), "a path as a string, or several by name")
        if isinstance(self.questions, dict):
            exams.check(self.questions)
        else:
            known = (CLOZE, None)
            allowed = f"{CLOZE!r}, exams by forget, near and far, or None"
            require(self, "questions", self.questions in known, allowed)
        linguistics.check(self.tasks)


class Source(Protocol):
    """Where documents come from: docstrings, articles, files of one's own."""

    min_tokens: int
    label_specs: dict[str, LabelSpec]

    def stamp(self) -> dict[str, Any]:
        """What identifies the text, so that a later change is noticed."""

    def texts(self, split: str, seed: int) -> Iterator[annotate.Text]:
        """The documents of ``split`` in a fixed order."""


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
        if _weight_bytes(self.config.model) != self._weight_bytes:
            raise WorldError(
                f"The weights in {self.config.model} have changed since this world was built; "
                "put them back or build the world again in a new directory."
            )
        return models.boot(self.config.model, device)

    def questions(self) -> "list[Question]":
        """The questions that the option ``questions`` names; see :meth:`World.questions`.

        Exams are put into the turns of a chat where the tokenizer has a chat template.
        """
        if isinstance(self.config.questions, dict):
            chat = self._chat if self._tokenizer.chat_template else None
            longest = self._context_length or exams.LONGEST
            return exams.questions(self.config.questions, self.encode, self.bos_id, longest, chat)
        asked = self.config.questions == CLOZE
        return cloze.questions(self.encode, self.bos_id, self.config.seed) if asked else []

    def statements(self) -> "list[Statement]":
        """See :meth:`World.statements`; of cloze facts alone."""
        asked = self.config.questions == CLOZE
        return cloze.statements(self.encode, self.bos_id) if asked else []

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

    @cached_property
    def _tokenizer(self) -> Any:
        return model_folders.load_tokenizer(Path(self.config.model))

    def documents(self, split: str) -> Iterator[Document]:
        """See :meth:`World.documents`. Raises :class:`WorldError` when the text is another now."""
        source = open_text(self.config.text, self._cache_dir)
        old, new = self._text_stamp, source.stamp()
        if changed := sorted(key for key in old | new if old.get(key) != new.get(key)):
            raise WorldError(
                f"Text {self.config.text} has changed since this world was built ({changed[0]}: "
                f"{old.get(changed[0])}, now {new.get(changed[0])}); "
                "put it back or build the world again in a new directory."
            )
        texts = source.texts(split, self.config.seed)
        first_id = SPLITS.index(split)
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


load = LocalWorld


def open_text(where: str | dict[str, str], cache_dir: str | None) -> Source:
    """The source of documents that the option ``text`` names."""
    if where == PYDOCS:
        return pydocs.Pydocs()
    if where == PROSE:
        return prose.Prose(Path(cache_dir) if cache_dir else fetching.default_cache())
    return text.MixedText(where) if isinstance(where, dict) else text.LocalText(where)


def _absolute(value: Any) -> Any:
    """Paths, also those by name, made absolute; anything else as it is."""
    if isinstance(value, Mapping):
        return {str(key): _absolute(inner) for key, inner in value.items()}
    if isinstance(value, str | Path) and value not in ("", PYDOCS, PROSE):
        return str(Path(value).expanduser().resolve())
    return value


def _weight_bytes(folder: str | Path) -> int:
    return sum(file.stat().st_size for file in model_folders.weights(folder))


def record(directory: Path, given: Given, options: dict[str, Any]) -> dict[str, Any]:
    """Write the world's record, of the model folder and the text; see :func:`build` for errors."""
    name, cache_dir = given.name, given.cache_dir
    for key in {"model", "text", "tasks"} & set(options):
        options[key] = _absolute(options[key])
    if str(options.get("model")).lower().endswith(".gguf"):
        cache = cache_dir or fetching.default_cache()
        options["model"] = str(model_folders.from_gguf(options["model"], cache))
    if isinstance(options.get("questions"), dict):
        options["questions"] = {
            key: [str(Path(name).resolve()) if Path(name).is_file() else name for name in names]
            for key, names in options["questions"].items()
        }
    cfg = configured(LocalConfig, given, options)
    if not cfg.model:
        raise ValueError(f"model is missing; {name} needs model=PATH of a saved Hugging Face model")
    folder, cached = Path(cfg.model), None if cache_dir is None else str(cache_dir.resolve())
    shape = model_folders.check(folder)
    longest = getattr(shape, "max_position_embeddings", None)
    if longest is not None and cfg.seq_len > longest:
        raise ValueError(
            f"seq_len is {cfg.seq_len}; allowed is at most {longest}, the model's context"
        )
    n_layers = shape.num_hidden_layers
    layer = n_layers // 2 if cfg.layer is None else cfg.layer
    if layer >= n_layers:
        raise WorldError(f"layer {layer} does not exist: {name} has layers 0..{n_layers - 1}.")
    tokenizer = model_folders.load_tokenizer(folder)
    ends = [id for id in (tokenizer.bos_token_id, tokenizer.eos_token_id) if id is not None]
    if not ends:
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
    source = open_text(cfg.text, cached)
    for split in SPLITS:
        if next(source.texts(split, cfg.seed), None) is None:
            raise WorldError(
                f"Text {cfg.text} has no document for the {split} split; give at least three "
                "documents (a line <|endoftext|> separates those in one file)."
            )
    raw = model_folders.read_config(folder)
    model_config = {key: value for key, value in raw.items() if key not in _NOT_THE_MODEL}
    harvested = asdict(cfg) | {"model": None, "layer": None}  # neither changes what is harvested
    del harvested["questions"], harvested["tasks"]  # nor does what is asked
    weights = [sha256(file) for file in model_folders.weights(folder)]
    tokens = sha256(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else ""
    parts = [name, harvested, source.stamp(), model_config, weights, tokens]
    made = {
        "config": asdict(cfg),
        "fingerprint": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        "layer": layer,
        "n_layers": n_layers,
        "d_model": shape.hidden_size,
        "bos_id": ends[0],
        "vocab_size": shape.vocab_size,
        "labels": {name: [spec.scale, spec.classes] for name, spec in source.label_specs.items()},
        "text_stamp": source.stamp(),
        "cache_dir": cached,
        "weight_bytes": _weight_bytes(folder),
        "context_length": longest,
    }
    return write_record(directory, name, made)


def build(directory: Path, given: Given, **options: Any) -> LocalWorld:
    """The world of a saved model: options are the fields of :class:`LocalConfig`.

    A model in one .gguf file is converted into ``cache_dir`` first. Nothing else is copied:
    ``world.json`` points to the model and the text and holds their fingerprint.
    Raises ValueError for an unknown option or a bad value, :class:`WorldError` for a folder or text
    that cannot be used and for a directory that holds another world.
    """
    return load(directory, record(directory, given, options))
