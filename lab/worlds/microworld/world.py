"""``microworld``: a language model whose text is known down to its latent variables.

Documents are written by a seeded grammar (:mod:`lab.worlds.microworld.grammar`) from latents on
three time scales, so that every label, boundary, procedure and fact is true by construction. The
true binary latents are the (label, class) pairs.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lab.worlds import knowledge
from lab.worlds.base import (
    ChainEdge,
    Document,
    Given,
    World,
    configured,
    pack,
    read_record,
    write_record,
)
from lab.worlds.microworld import chains as microworld_chains
from lab.worlds.microworld import model as microworld_model
from lab.worlds.microworld import tasks as microworld_tasks
from lab.worlds.microworld import words as w
from lab.worlds.microworld.config import MicroworldConfig
from lab.worlds.microworld.text import LABELS, RECALL, MicroworldText
from lab.worlds.tasks import ProbeItem
from tsae.errors import WorldError
from tsae.files import read_json, sha256, write_json

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WORLDS = ("microworld",)
MODEL = "model.safetensors"
AGAIN = "delete the directory and build the world again."


class Microworld(World):
    """The complete microworld in ``directory``; see :func:`build`."""

    name = "microworld"

    def __init__(self, directory: Path, config: MicroworldConfig, record: dict[str, Any]) -> None:
        self.directory, self.config, self.record = directory, config, record
        self.text = MicroworldText(config)
        self.seq_len, self.layer = config.seq_len, config.layer
        self.n_layers, self.d_model = config.n_layers, config.d_model
        self.vocab_size = len(self.text.vocabulary.words)
        self.bos_id = self.text.vocabulary.ids[w.BOS]
        self.fingerprint = record["fingerprint"]
        self.label_specs = dict(LABELS)

    def model(self, device: str = "cpu") -> "TransformerBridge":
        """The trained model in eval mode, without gradients."""
        model = microworld_model.load(self.directory / MODEL, self.config, self.vocab_size)
        return model if device == "cpu" else model.to(device)

    def documents(self, split: str) -> Iterator[Document]:
        """Documents of ``split``, written anew each time from the seed."""
        return self.text.documents(split)

    def to_strings(self, tokens: Iterable[int]) -> list[str]:
        """The words."""
        return [self.text.vocabulary.words[int(token)] for token in tokens]

    def encode(self, text: str) -> list[int]:
        """Ids of words parted by blanks.

        Raises :class:`WorldError` on a word that is not in the lexicon.
        """
        ids = self.text.vocabulary.ids
        if unknown := [word for word in text.split() if word not in ids]:
            raise WorldError(
                f"The microworld has no word {unknown[0]!r}; use its own words, parted by blanks."
            )
        return [ids[word] for word in text.split()]

    def questions(self) -> list[knowledge.Question]:
        """See :meth:`MicroworldText.questions`."""
        return self.text.questions()

    def task_names(self) -> list[str]:
        """agreement, coreference, homograph."""
        return list(microworld_tasks.TASKS)

    def probe_items(self, task: str) -> list[ProbeItem]:
        """Minimal pairs; see :mod:`lab.worlds.microworld.tasks`."""
        if task not in microworld_tasks.TASKS:
            return super().probe_items(task)
        return microworld_tasks.make(task, self.text.vocabulary.ids, self.config.seed)

    def chains(self) -> list[ChainEdge]:
        """The arrows between procedure steps, which are classes of the token label ``step``."""
        return microworld_chains.edges(self.config.temporal)


def build(directory: Path, given: Given, **options: Any) -> Microworld:
    """Write the text, train the model, examine it, and write ``world.json``.

    ``options`` are fields of :class:`MicroworldConfig`. ``world.json`` holds the accuracy on every
    neighbourhood. Raises :class:`WorldError` when the directory holds another world, or when the
    model stays below ``min_accuracy`` on a neighbourhood.
    """
    config = configured(MicroworldConfig, given, options)
    _claim(directory, config)
    if (directory / "world.json").exists():
        return load(directory, read_record(directory))
    text = MicroworldText(config)
    vocab_size, bos = len(text.vocabulary.words), text.vocabulary.ids[w.BOS]
    sequences = list(pack(text.documents("train"), (RECALL,), config.seq_len, bos))
    tokens_NT = np.stack([s.tokens for s in sequences])
    recall_NT = np.stack([s.labels[RECALL] for s in sequences])
    microworld_model.train(config, tokens_NT, recall_NT, vocab_size, directory, given.progress)
    model = microworld_model.load(directory / MODEL, config, vocab_size)
    record = {
        "config": asdict(config),
        "fingerprint": _fingerprint(config, directory),
        "vocabulary": text.vocabulary.digest,
        "vocab_size": vocab_size,
        "train_tokens": int((tokens_NT != bos).sum()),
        "accuracy": _examine(config, text, model),
    }
    write_record(directory, given.name, record)
    return Microworld(directory, config, record)


def load(directory: Path, record: dict[str, Any]) -> Microworld:
    """The world in ``directory``.

    Raises :class:`WorldError` if its model is not the one that ``record`` names.
    """
    config = MicroworldConfig(**record["config"])
    world = Microworld(directory, config, record)
    if record["vocabulary"] != world.text.vocabulary.digest:
        raise WorldError(f"{directory} was built with another lexicon than this code's; {AGAIN}")
    weights = directory / MODEL
    if not weights.exists() or _fingerprint(config, directory) != world.fingerprint:
        raise WorldError(f"{weights} is missing or is not the model that world.json names; {AGAIN}")
    return world


def _claim(directory: Path, config: MicroworldConfig) -> None:
    """Note the settings before anything is made, so that a resumed build cannot mix two worlds."""
    path, wanted = directory / "config.json", asdict(config)
    if path.exists():
        found = read_json(path, WorldError)
        if differing := sorted(key for key in wanted if found.get(key) != wanted[key]):
            raise WorldError(
                f"{directory} holds a microworld with other settings ({', '.join(differing)}); "
                "give another directory, or delete this one."
            )
    elif directory.exists() and any(directory.iterdir()):
        raise WorldError(
            f"{directory} is not empty and holds no microworld; give another directory."
        )
    else:
        write_json(path, wanted)


def _fingerprint(config: MicroworldConfig, directory: Path) -> str:
    settings = json.dumps(asdict(config), sort_keys=True)
    return hashlib.sha256((settings + sha256(directory / MODEL)).encode()).hexdigest()


def _examine(
    config: MicroworldConfig, text: MicroworldText, model: "TransformerBridge"
) -> dict[str, dict[str, float]]:
    """Accuracy by form and neighbourhood.

    Raises :class:`WorldError` below ``min_accuracy`` on plain questions.
    """
    questions = text.questions()
    right = knowledge.accuracy(model, questions)
    forms = ("plain", "paraphrase")
    accuracy = {form: knowledge.by_neighbourhood(questions, right, form) for form in forms}
    low = {k: v for k, v in accuracy["plain"].items() if v < (config.min_accuracy or 0)}
    if low:
        found = ", ".join(f"{k} {v:.1%}" for k, v in low.items())
        raise WorldError(
            f"The microworld's clean model knows too little ({found}; needed "
            f"{config.min_accuracy:.0%}): build in a new directory with more steps or documents, or "
            "with min_accuracy=None where knowledge does not matter."
        )
    return accuracy
