"""What every world offers, and how its documents become sequences.

A world is a language model, a text, labels on every token, and tasks. The rest of the package sees
worlds only through :class:`World`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import yaml

from tsae.errors import WorldError
from tsae.files import read_json, write_json
from tsae.sequences import DOCUMENT, SPLITS, LabelSpec, Sequence

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from lab.worlds.knowledge import Question, Statement
    from lab.worlds.tasks import ProbeItem

FORMAT, VERSION = "tsae-world", 1
Config = TypeVar("Config")


def data(module: str) -> Any:
    """What the .yaml file beside the file ``module`` holds: words and facts, which are no code."""
    return yaml.safe_load(Path(module).with_suffix(".yaml").read_text(encoding="utf-8"))


def require(config: Any, field: str, ok: bool, allowed: str) -> None:
    """Raise ValueError with the field, its value and what is allowed unless it is ``ok``."""
    if not ok:
        raise ValueError(f"{field} is {getattr(config, field)!r}; allowed is {allowed}")


def check_wholes(config: Any, least: Mapping[str, int]) -> None:
    """Raise ValueError unless each field of ``least`` is a whole number of at least its value."""
    for field, low in least.items():
        value = getattr(config, field)
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(config, field, whole and value >= low, f"a whole number from {low}")


class Given(NamedTuple):
    """What every world is built with."""

    name: str
    seed: int
    progress: bool
    cache_dir: Path | None


def configured(config: Callable[..., Config], given: Given, options: Mapping[str, Any]) -> Config:
    """The dataclass ``config`` with the seed and ``options``, whose names must be its fields."""
    known = [field.name for field in fields(config) if field.name != "seed"]  # type: ignore[arg-type]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"{unknown[0]} is not an option of {given.name}; allowed are {', '.join(known)}"
        )
    return config(seed=given.seed, **options)


class Document(NamedTuple):
    """One document before packing: ``n`` tokens with what is known about each.

    ``id`` is global over all splits; ``boundary`` [n] holds the level that starts at each token
    (the first token is 3); ``labels`` maps a label's name to class indices [n], −1 where it does
    not apply.
    """

    id: int
    tokens: np.ndarray
    boundary: np.ndarray
    labels: dict[str, np.ndarray]


class ChainEdge(NamedTuple):
    """One true arrow of a procedure: when ``source`` starts at t, ``target`` starts at t + lag.

    ``source`` and ``target`` are class names of the token label ``label`` (each of them is a true
    binary latent); lag_min ≤ lag ≤ lag_max in tokens holds whenever the arrow is taken; ``weight``
    is the probability that it is taken given that the source occurred.
    """

    label: str
    source: str
    target: str
    lag_min: int
    lag_max: int
    weight: float


class World(ABC):
    """A model with text, labels and tasks, kept in ``directory`` (see ``world.json`` there).

    ``layer`` is the one to read by default, at hook ``blocks.{layer}.hook_out``; ``fingerprint`` is
    the SHA-256 of configuration and weights, so that whatever was made from another world is
    noticed.
    """

    name: str
    directory: Path
    seq_len: int
    bos_id: int
    vocab_size: int
    layer: int
    n_layers: int
    d_model: int
    fingerprint: str
    label_specs: dict[str, LabelSpec]

    @abstractmethod
    def model(self, device: str = "cpu") -> "TransformerBridge":
        """The language model in eval mode, fp32, without gradients."""

    @abstractmethod
    def documents(self, split: str) -> Iterator[Document]:
        """The documents of ``split`` in a fixed order; none of them is in another split."""

    @abstractmethod
    def to_strings(self, tokens: Iterable[int]) -> list[str]:
        """One printable string per token."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without BOS."""

    def sequences(self, split: str, limit_tokens: int | None = None) -> Iterator[Sequence]:
        """Packed sequences of ``split``; the same ones every time. See :func:`pack`."""
        if split not in SPLITS:
            raise WorldError(f"There is no split {split!r}; {self.name} has {', '.join(SPLITS)}.")
        labels = tuple(self.label_specs)
        return pack(self.documents(split), labels, self.seq_len, self.bos_id, limit_tokens)

    def questions(self) -> "list[Question]":
        """Multiple-choice questions about what the model knows; empty when there are none."""
        return []

    def statements(self) -> "list[Statement]":
        """Texts that state the facts of the questions, for a world whose own text does not hold
        them; empty where it does, or where there are no questions."""
        return []

    def task_names(self) -> list[str]:
        """Names that :meth:`probe_items` accepts."""
        return []

    def probe_items(self, task: str) -> "list[ProbeItem]":
        """Minimal pairs of one linguistic task. Raises :class:`WorldError` on an unknown task."""
        known = ", ".join(self.task_names()) or "none"
        raise WorldError(f"{self.name} has no task {task!r}; its tasks are: {known}.")

    def chains(self) -> list[ChainEdge] | None:
        """The true directed graph of procedure steps, or None where it is not known."""
        return None


def pack(
    documents: Iterable[Document],
    labels: tuple[str, ...],
    seq_len: int,
    bos_id: int,
    limit_tokens: int | None = None,
) -> Iterator[Sequence]:
    """Lay documents end to end in sequences of ``seq_len`` tokens that each begin with BOS.

    A long document continues in the next sequence. Stops after the first sequence with which the
    tokens handed out (BOS included) reach ``limit_tokens``; the last sequence is filled with BOS as
    padding (``doc`` −1). Raises :class:`WorldError` when there is not one document.
    """
    sequence, place, done = None, 1, 0
    for document in documents:
        start, n = 0, len(document.tokens)
        while start < n:
            sequence = sequence or _empty(labels, seq_len, bos_id)
            taken = min(n - start, seq_len - place)
            here, part = slice(place, place + taken), slice(start, start + taken)
            sequence.tokens[here] = document.tokens[part]
            sequence.doc[here] = document.id
            sequence.boundary[here] = document.boundary[part]
            for name in document.labels.keys() & set(labels):
                sequence.labels[name][here] = document.labels[name][part]
            start, place = start + taken, place + taken
            if place == seq_len:
                sequence.boundary[:2] = DOCUMENT
                yield sequence
                sequence, place, done = None, 1, done + seq_len
                if limit_tokens is not None and done >= limit_tokens:
                    return
    if sequence:
        sequence.boundary[:2] = DOCUMENT
        yield sequence
    elif not done:
        raise WorldError("The world has no documents in this split; give it more text.")


def _empty(labels: tuple[str, ...], seq_len: int, bos_id: int) -> Sequence:
    """A sequence of BOS and padding alone."""
    return Sequence(
        np.full(seq_len, bos_id, np.int32),
        np.full(seq_len, -1, np.int32),
        np.zeros(seq_len, np.uint8),
        {name: np.full(seq_len, -1, np.int16) for name in labels},
    )


def write_record(
    directory: Path, name: str, record: dict[str, Any], same: str = "fingerprint"
) -> dict[str, Any]:
    """Write ``world.json``, which marks the world as complete, and return all of it.

    Raises :class:`WorldError` where another world is described there: one of another name, or with
    another entry ``same``.
    """
    if (directory / "world.json").exists():
        old = read_record(directory)
        if (old.get("name"), old.get(same)) != (name, record[same]):
            raise WorldError(
                f"{directory} holds another world ({old.get('name')} of other options, text or "
                "weights); give another directory or delete this one."
            )
    whole = {"format": FORMAT, "version": VERSION, "name": name, **record}
    write_json(directory / "world.json", whole)
    return read_record(directory)


def read_record(directory: str | Path) -> dict[str, Any]:
    """Read ``world.json``.

    Raises :class:`WorldError` if missing, cut short, foreign or of another version.
    """
    path = Path(directory) / "world.json"
    record = read_json(path, WorldError)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise WorldError(
            f"{path} does not describe a tsae world; give the directory of a built world."
        )
    if record.get("version") != VERSION:
        raise WorldError(
            f"{path} is of world version {record.get('version')}, this code reads version {VERSION}; "
            "build the world again in a new directory."
        )
    return record
