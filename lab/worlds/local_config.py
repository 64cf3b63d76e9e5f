"""Options of the worlds that are made from a saved model."""

from dataclasses import dataclass, field
from typing import Any

from lab.worlds import exams, linguistics

PYDOCS, PROSE, CLOZE = "pydocs", "prose", "cloze"
TEXTS = (PYDOCS, PROSE)


@dataclass(frozen=True)
class LocalConfig:
    """Options of a world made from a saved model."""

    model: str
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
        if isinstance(self.seq_len, bool) or not isinstance(self.seq_len, int) or self.seq_len < 2:
            raise ValueError(f"seq_len is {self.seq_len!r}; allowed is an integer of at least 2")
        if self.layer is not None and (
            isinstance(self.layer, bool) or not isinstance(self.layer, int)
        ):
            raise ValueError(f"layer is {self.layer!r}; allowed is an integer or None")
        paths = self.text.values() if isinstance(self.text, dict) else [self.text]
        given: dict[str, list[Any]] = {"model": [self.model], "text": list(paths) or [None]}
        for name, values in given.items():
            for value in values:
                if not isinstance(value, str) or not value:
                    raise ValueError(f"{name} is {value!r}; allowed is a path as a string")
        if isinstance(self.questions, str) and self.questions != CLOZE:
            raise ValueError(
                f"questions is {self.questions!r}; allowed are {CLOZE!r}, exams by forget, near and "
                "far, or None"
            )
        if isinstance(self.questions, dict):
            exams.check(self.questions)
        linguistics.check(self.tasks)
