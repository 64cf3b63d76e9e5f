"""Published multiple-choice exams as questions: WMDP and MMLU, from the hub or from local files.

Files: MMLU's .csv as published (question, A, B, C, D, letter; no header); .json (a list) or .jsonl
of rows with ``question``, ``choices`` (four strings) and ``answer`` (0 to 3), WMDP's format. Sources:
Li et al. 2024, arXiv:2403.03218 (WMDP); Hendrycks et al. 2021, arXiv:2009.03300 (MMLU).
"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.worlds import fetching
from lab.worlds.knowledge import NEIGHBOURHOODS, Question, orders
from lab.worlds.tasks import Encode
from tsae.errors import WorldError

LETTERS = "ABCD"
LONGEST = 1024
"""Most tokens of a prompt where the model does not say how many it can read."""
ALLOWED = "wmdp-NAME, mmlu/SUBJECT, or a .csv, .json or .jsonl file"
_HUB = {"wmdp-": ("cais/wmdp", ""), "mmlu/": ("cais/mmlu", "mmlu/")}


def check(sources: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless ``sources`` maps neighbourhoods to lists of exams.

    Raises :class:`WorldError` for an exam that is neither a file nor one of the hub's.
    """
    for neighbourhood, names in sources.items():
        if neighbourhood not in NEIGHBOURHOODS:
            raise ValueError(
                f"questions are {neighbourhood!r}; allowed are {', '.join(NEIGHBOURHOODS)}"
            )
        if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(
                f"questions of {neighbourhood} are {names!r}; allowed is a list of {ALLOWED}"
            )
        for name in names:
            if not Path(name).is_file() and not name.startswith(tuple(_HUB)):
                raise WorldError(f"There is no exam {name!r}; give {ALLOWED}.")


def read(name: str) -> tuple[str, list[tuple[str, list[str], int]]]:
    """Subject and rows, (question, four choices, place of the right one), of the exam in the file
    ``name``, or on the hub (``wmdp-bio``, ``mmlu/college_biology``).

    The subject is the file's name without MMLU's ``_test``. Raises :class:`WorldError`, in one
    sentence, for a missing or foreign file and where the hub cannot be reached.
    """
    path = Path(name)
    subject = re.sub("_(test|val|dev)$", "", path.stem if path.is_file() else path.name)
    rows = _file_rows(path) if path.is_file() else _hub_rows(name)
    for number, row in enumerate(rows, 1):
        whole = isinstance(row, Mapping) and isinstance(row.get("question"), str)
        if not whole or not _answered(row.get("choices"), row.get("answer")):
            raise WorldError(
                f"{name}, question {number}, lacks a question, four choices or an answer from 0 to 3 "
                "(A to D in a .csv); give the file as published."
            )
    if not rows:
        raise WorldError(f"{name} holds no question; copy it again.")
    return subject, [(row["question"], list(row["choices"]), int(row["answer"])) for row in rows]


def _answered(choices: Any, answer: Any) -> bool:
    four = isinstance(choices, list | tuple) and len(choices) == len(LETTERS)
    return four and all(isinstance(c, str) for c in choices) and answer in range(len(LETTERS))


def _file_rows(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        if path.suffix != ".csv":
            return list(json.loads(text))
        cells = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except (UnicodeDecodeError, ValueError, TypeError, csv.Error) as error:
        raise WorldError(f"{path} is not whole ({error}); copy it again.") from None
    places = {letter: i for i, letter in enumerate(LETTERS)}
    return [
        {"question": row[0], "choices": row[1:-1], "answer": places.get(row[-1].strip())}
        for row in cells
    ]


def _hub_rows(name: str) -> list[Any]:
    repository, prefix = next(where for start, where in _HUB.items() if name.startswith(start))
    with fetching.hub_is_clear(f"The questions {name}", repository, "a local file in its place"):
        from datasets import load_dataset

        return list(load_dataset(repository, name.removeprefix(prefix), split="test"))


def prompt(question: str, choices: Sequence[str], subject: str) -> str:
    """The question with its choices lettered in the given order, as one text."""
    about = subject.removeprefix("wmdp-").removeprefix("mmlu_").replace("_", " ").replace("-", " ")
    listed = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    head = f"The following is a multiple choice question (with its answer) about {about}."
    return "\n".join([head, "", question.strip(), *listed])


def questions(
    sources: Mapping[str, Sequence[str]],
    encode: Encode,
    bos_id: int,
    longest: int,
    chat: Callable[[str], str] | None = None,
) -> list[Question]:
    """Every question of ``sources`` (neighbourhood → exams) under all 24 orders of its choices.

    The four rotations come first, so that under ``n_orders=4`` the answer stands once at each
    letter. A choice is its letter. ``chat`` puts a prompt into a chat model's turns; without it the
    prompt ends in "Answer:". Prompts over ``longest`` tokens are left out, in every order alike.
    """
    letters = tuple(tuple(encode(letter if chat else " " + letter)) for letter in LETTERS)
    exams = [(hood, read(name)) for hood, names in sources.items() for name in names]
    rows = [(hood, subject, *row) for hood, (subject, rows) in exams for row in rows]
    result: list[Question] = []
    for number, (neighbourhood, subject, question, choices, answer) in enumerate(rows):
        asked = []
        for order in orders(range(len(LETTERS))):
            text = prompt(question, [choices[i] for i in order], subject)
            ids = tuple(encode(chat(text) if chat else text + "\nAnswer:"))
            ids = ids if ids[:1] == (bos_id,) else (bos_id, *ids)
            if len(ids) > longest:
                break
            place = order.index(answer)
            asked.append(Question(neighbourhood, subject, ids, letters, place, number, "plain"))
        else:
            result += asked
    if not result:
        raise WorldError(
            f"No question fits into the {longest} tokens that the model can read; "
            "leave them out, or take a model that reads more."
        )
    return result
