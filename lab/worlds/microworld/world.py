"""``microworld``: a language model whose text is known down to its latent variables.

Documents are written by a seeded grammar (:mod:`lab.worlds.microworld.grammar`) from latents on
three time scales, so that every label, boundary, procedure and fact is true by construction. The
true binary latents are the (label, class) pairs.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lab.worlds import knowledge
from lab.worlds.base import ChainEdge, Document, World, pack, write_record
from lab.worlds.knowledge import Question
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
# Options of a world that builds within seconds and is no result: for smoke runs and tests.
SMOKE: dict[str, Any] = {
    "n_train_docs": 800,
    "n_test_docs": 160,
    "n_entities": 4,
    "d_model": 64,
    "steps": 80,
    "batch_size": 16,
    "checkpoint_every": 40,
    "min_accuracy": None,
}
BELOW_BAR = "clean model below bar: smoke"


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
        path = self.directory / "model.safetensors"
        model = microworld_model.load(path, self.config, self.vocab_size)
        if device != "cpu":
            model = model.to(device)
        return model.eval().requires_grad_(False)

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
        unknown = [word for word in text.split() if word not in ids]
        if unknown:
            raise WorldError(
                f"The microworld has no word {unknown[0]!r}; use its own words, parted by blanks."
            )
        return [ids[word] for word in text.split()]

    def questions(self) -> list[Question]:
        """See :meth:`MicroworldText.questions`."""
        return self.text.questions()

    def task_names(self) -> list[str]:
        """agreement, coreference, homograph."""
        return list(microworld_tasks.TASKS)

    def probe_items(self, task: str) -> list[ProbeItem]:
        """Minimal pairs; see :mod:`lab.worlds.microworld.tasks`."""
        if task not in microworld_tasks.TASKS:
            return super().probe_items(task)
        return microworld_tasks.make(task, self.text.vocabulary, self.config.seed)

    def chains(self) -> list[ChainEdge]:
        """The arrows between procedure steps, which are classes of the token label ``step``."""
        return microworld_chains.edges(self.config.temporal)

    @cached_property
    def accuracy(self) -> dict[str, dict[str, float]]:
        """The clean model's accuracy by question form and neighbourhood, from the build."""
        return self.record["accuracy"]


def build(
    directory: Path,
    *,
    name: str = "microworld",
    seed: int = 0,
    progress: bool = True,
    cache_dir: Path | None = None,
    **options: Any,
) -> Microworld:
    """Write the text, train the model, examine it, and write ``world.json``.

    ``options`` are fields of :class:`MicroworldConfig`. Nothing is fetched, so ``cache_dir`` is not
    used. ``world.json`` holds the accuracy on every neighbourhood, and the held-out cross-entropy
    beside the generator's own entropy. Raises :class:`WorldError` when the directory holds another
    world, or when the model stays below ``min_accuracy`` on a neighbourhood.
    """
    unknown = sorted(set(options) - set(MicroworldConfig.__dataclass_fields__))
    if unknown:
        known = ", ".join(MicroworldConfig.__dataclass_fields__)
        raise ValueError(f"{unknown[0]} is not an option of the microworld; allowed are {known}")
    config = MicroworldConfig(seed=seed, **options)
    _claim(directory, config)
    if (directory / "world.json").exists():
        return load(directory, read_json(directory / "world.json", WorldError))
    text = MicroworldText(config)
    vocab_size, bos = len(text.vocabulary.words), text.vocabulary.ids[w.BOS]
    sequences = list(pack(text.documents("train"), (RECALL,), config.seq_len, bos))
    tokens_NT = np.stack([s.tokens for s in sequences])
    recall_NT = np.stack([s.labels[RECALL] for s in sequences])
    microworld_model.train(config, tokens_NT, recall_NT, vocab_size, directory, progress)
    weights = directory / "model.safetensors"
    model = microworld_model.load(weights, config, vocab_size).eval().requires_grad_(False)
    record: dict[str, Any] = {
        "config": asdict(config),
        "fingerprint": _fingerprint(config, weights),
    }
    record["vocabulary"] = text.vocabulary.digest
    record |= _held_out(config, text, model) | _examine(config, text, model)
    record["vocab_size"], record["train_tokens"] = vocab_size, int((tokens_NT != bos).sum())
    write_record(directory, "microworld", record)
    return Microworld(directory, config, record)


def load(directory: Path, record: dict[str, Any]) -> Microworld:
    """The world in ``directory``.

    Raises :class:`WorldError` if its model is not the one that ``record`` names.
    """
    try:
        config = MicroworldConfig(**record["config"])
        fingerprint = record["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise WorldError(
            f"{directory / 'world.json'} lacks or garbles the microworld's settings ({error}); "
            "delete the directory and build the world again."
        ) from error
    world = Microworld(directory, config, record)
    if record.get("vocabulary") != world.text.vocabulary.digest:
        raise WorldError(
            f"{directory} was built with another lexicon than this code's; "
            "delete the directory and build the world again."
        )
    weights = directory / "model.safetensors"
    if not weights.exists() or _fingerprint(config, weights) != fingerprint:
        raise WorldError(
            f"{weights} is missing or is not the model that world.json names; "
            "delete the directory and build the world again."
        )
    return world


def _claim(directory: Path, config: MicroworldConfig) -> None:
    """Note the settings before anything is made, so that a resumed build cannot mix two worlds."""
    path = directory / "config.json"
    if path.exists():
        found = read_json(path, WorldError)
        if found != asdict(config):
            differing = sorted(k for k, v in asdict(config).items() if found.get(k) != v)
            raise WorldError(
                f"{directory} holds a microworld with other settings ({', '.join(differing)}); "
                "give another directory, or delete this one."
            )
    elif directory.exists() and any(directory.iterdir()):
        raise WorldError(
            f"{directory} is not empty and holds no microworld; give another directory."
        )
    else:
        write_json(path, asdict(config))


def _fingerprint(config: MicroworldConfig, weights: Path) -> str:
    settings = json.dumps(asdict(config), sort_keys=True)
    return hashlib.sha256((settings + sha256(weights)).encode()).hexdigest()


def _held_out(
    config: MicroworldConfig, text: MicroworldText, model: "TransformerBridge"
) -> dict[str, float | None]:
    """Cross-entropy on held-out text, and the generator's entropy on the same documents, in nats a
    token.

    At ``temporal`` 1 both are taken over documents that lie whole in one sequence: a cut one has
    lost the context that its entropy assumes. At 0 the entropy is that of one draw; between, it is
    not known.
    """
    bos = text.vocabulary.ids[w.BOS]
    sequences = list(pack(text.documents("test"), (), config.seq_len, bos))
    losses_NT = microworld_model.token_losses(model, np.stack([s.tokens for s in sequences]))
    doc_NT = np.stack([s.doc for s in sequences])
    ce = float(losses_NT[doc_NT >= 0].mean())
    if config.temporal < 1:
        entropy = text.unigram_nats() if config.temporal == 0 else None
        return {"held_out_ce": ce, "whole_documents_ce": None, "generator_entropy": entropy}
    first = config.n_train_docs
    lengths = np.bincount(doc_NT[doc_NT >= 0] - first)
    loss = nats = 0.0
    n = 0
    for losses_T, doc_T in zip(losses_NT, doc_NT, strict=True):
        for number, count in zip(*np.unique(doc_T[doc_T >= 0], return_counts=True), strict=True):
            if count == lengths[number - first]:
                loss += losses_T[doc_T == number].sum()
                nats += text.nats("test", int(number - first))
                n += int(count)
    whole = {"whole_documents_ce": float(loss / n), "generator_entropy": nats / n} if n else {}
    return {"held_out_ce": ce, "whole_documents_ce": None, "generator_entropy": None} | whole


def _examine(
    config: MicroworldConfig, text: MicroworldText, model: "TransformerBridge"
) -> dict[str, Any]:
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
            f"{config.min_accuracy:.0%}): "
            "build in a new directory with more steps or documents, or with min_accuracy=None "
            "where knowledge does not matter."
        )
    note = BELOW_BAR if config.min_accuracy is None else "clean model at or above bar"
    return {"accuracy": accuracy, "note": note}
