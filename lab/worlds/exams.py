"""Published multiple-choice exams as questions: WMDP and MMLU, from the hub or from local files.

Files: MMLU's .csv as published (question, A, B, C, D, letter; no header); .json (a list) or .jsonl
of rows with ``question``, ``choices`` (four strings) and ``answer`` (0 to 3), WMDP's format. Sources:
Li et al. 2024, arXiv:2403.03218 (WMDP); Hendrycks et al. 2021, arXiv:2009.03300 (MMLU).
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

from lab.worlds import corpora
from lab.worlds.knowledge import NEIGHBOURHOODS, Question
from tsae.errors import WorldError

LETTERS = "ABCD"
FORM = "plain"
LONGEST = 1024
"""Most tokens of a prompt where the model does not say how many it can read."""
_HUB = {"wmdp-": ("cais/wmdp", ""), "mmlu/": ("cais/mmlu", "mmlu/")}
_SPLITS = ("_test", "_val", "_dev")


class Exam(NamedTuple):
    """One subject's rows: (question, four choices, index of the right one)."""

    subject: str
    rows: list[tuple[str, tuple[str, ...], int]]


def check(sources: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless ``sources`` maps neighbourhoods to lists of exams.

    Raises :class:`WorldError` for an exam that is neither a file nor one of the hub's.
    """
    allowed = "wmdp-NAME, mmlu/SUBJECT, or a .csv, .json or .jsonl file"
    for neighbourhood, names in sources.items():
        if neighbourhood not in NEIGHBOURHOODS:
            raise ValueError(
                f"questions are {neighbourhood!r}; allowed are {', '.join(NEIGHBOURHOODS)}"
            )
        if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(
                f"questions of {neighbourhood} are {names!r}; allowed is a list of {allowed}"
            )
        for name in names:
            if not Path(name).is_file() and not name.startswith(tuple(_HUB)):
                raise WorldError(f"There is no exam {name!r}; give {allowed}.")


def read(name: str) -> Exam:
    """The exam in the file ``name``, or on the hub (``wmdp-bio``, ``mmlu/college_biology``).

    The subject is the file's name without MMLU's ``_test``. Raises :class:`WorldError`, in one
    sentence, for a missing or foreign file and where the hub cannot be reached.
    """
    path = Path(name)
    rows: Iterable[Any]
    if path.is_file():
        subject = path.stem
        for split in _SPLITS:
            subject = subject.removesuffix(split)
        rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    else:
        subject, rows = name.rpartition("/")[2], _hub_rows(name)
    exam = Exam(subject, [_row(row, f"{name}, question {i},") for i, row in enumerate(rows, 1)])
    if not exam.rows:
        raise WorldError(f"{name} holds no question; copy it again.")
    return exam


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise WorldError(f"{path} is not UTF-8 CSV ({error}); copy it again.") from None
    found: list[dict[str, Any]] = []
    for row in rows:
        if len(row) != 6 or row[5].strip() not in tuple(LETTERS):
            raise WorldError(
                f"{path}, row {len(found) + 1}, is not question, A, B, C, D, letter; "
                "give an MMLU file as published."
            )
        found.append(
            {"question": row[0], "choices": row[1:5], "answer": LETTERS.index(row[5].strip())}
        )
    return found


def _json_rows(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        rows = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise WorldError(f"{path} is not whole JSON; copy it again.") from None
    if not isinstance(rows, list):
        raise WorldError(f"{path} is not a list of questions; give a WMDP file as published.")
    return rows


def _hub_rows(name: str) -> Iterable[Any]:
    repository, prefix = next(where for start, where in _HUB.items() if name.startswith(start))
    with corpora.hub_is_clear(f"The questions {name}", repository, "a local file in its place"):
        from datasets import load_dataset

        return list(load_dataset(repository, name.removeprefix(prefix), split="test"))


def _row(row: Any, where: str) -> tuple[str, tuple[str, ...], int]:
    if isinstance(row, Mapping):
        given: list[Any] = [row.get(key) for key in ("question", "choices", "answer")]
        question, choices, answer = given
        right = isinstance(choices, list | tuple) and len(choices) == len(LETTERS)
        right = right and all(isinstance(choice, str) for choice in choices)
        if isinstance(question, str) and right and answer in range(len(LETTERS)):
            return question, tuple(choices), int(answer)
    raise WorldError(
        f"{where} lacks a question, four choices or an answer from 0 to 3; give the file as published."
    )


def prompt(question: str, choices: Sequence[str], subject: str) -> str:
    """The question with its choices lettered in the given order, as one text."""
    about = subject.removeprefix("wmdp-").removeprefix("mmlu_").replace("_", " ").replace("-", " ")
    listed = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    head = f"The following is a multiple choice question (with its answer) about {about}."
    return "\n".join([head, "", question.strip(), *listed])


def questions(
    sources: Mapping[str, Sequence[str]],
    encode: Callable[[str], list[int]],
    bos_id: int,
    longest: int,
    chat: Callable[[str], str] | None = None,
) -> list[Question]:
    """Every question of ``sources`` (neighbourhood → exams) under all 24 orders of its choices.

    The four rotations come first, so that under ``n_orders=4`` the answer stands once at each
    letter. A choice is its letter. ``chat`` puts a prompt into a chat model's turns; without it the
    prompt ends in "Answer:". Prompts over ``longest`` tokens are left out, in every order alike.
    """
    check(sources)
    letters = tuple(tuple(encode(letter if chat else " " + letter)) for letter in LETTERS)
    rotations = [(*range(i, 4), *range(i)) for i in range(4)]
    orders = rotations + [order for order in permutations(range(4)) if order not in rotations]
    result: list[Question] = []
    number = 0
    for neighbourhood, names in sources.items():
        for exam in map(read, names):
            for question, choices, answer in exam.rows:
                asked = []
                for order in orders:
                    text = prompt(question, [choices[i] for i in order], exam.subject)
                    ids = tuple(encode(chat(text) if chat else text + "\nAnswer:"))
                    if ids[:1] != (bos_id,):
                        ids = (bos_id, *ids)
                    place = order.index(answer)
                    asked.append(
                        Question(neighbourhood, exam.subject, ids, letters, place, number, FORM)
                    )
                    if len(ids) > longest:
                        asked = []
                        break
                result += asked
                number += 1
    if not result:
        raise WorldError(
            f"No question fits into the {longest} tokens that the model can read; "
            "leave them out, or take a model that reads more."
        )
    return result
