"""BLiMP, WinoBias and WiC, read from their published files, as probing items.

- BLiMP (Warstadt et al. 2020, arXiv:1912.00582): a .jsonl file, or a folder of them, with
  sentence_good, sentence_bad, UID and linguistics_term. A task for each term. The item is what the
  two sentences share; after it the model chooses between the tokens in which they first differ.
  The label says which form is right: the one that ends in s if one of them does (n't aside), else
  the alphabetically later one, so that for a verb's agreement 1 is the singular. Pairs that
  differ in their first token are left out, and so is what one label has more of than the other.
- WinoBias (Zhao et al. 2018, arXiv:1804.06876): its .txt files, lines such as "1 [The developer]
  argued with the designer because [she] …". The sentence is followed by 'Here "she" means the', then
  the model chooses between the two occupations; the label is 1 if the second one is meant.
- WiC (Pilehvar and Camacho-Collados 2019, arXiv:1808.09121): NAME.data.txt with NAME.gold.txt. Both
  sentences are followed by 'The meaning of "word" in the two is'; then comes "the same" or
  "different", and the label is 1 for the former. It has no frames, so lines alternate between two.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from lab.worlds.tasks import ProbeItem, ends_at
from tsae.errors import WorldError

Encode = Callable[[str], list[int]]
KINDS = ("blimp", "winobias", "wic")
_BRACKETED = re.compile(r"\[(.+?)\]")
_OCCUPATION = re.compile(r"\b[Tt]he ([a-z]+)")


def check(tasks: Mapping[str, str]) -> None:
    """Raise ValueError for a kind that does not exist, :class:`WorldError` for a missing path."""
    for kind, path in tasks.items():
        if kind not in KINDS:
            raise ValueError(f"tasks names {kind!r}; allowed are {', '.join(KINDS)}")
        if not Path(path).exists():
            raise WorldError(f"Task {kind}: {path} does not exist; give its published files.")


def names(tasks: Mapping[str, str]) -> list[str]:
    """``winobias``, ``wic``, and ``blimp/TERM`` for each term that BLiMP's files hold."""
    found: list[str] = []
    for kind, path in tasks.items():
        if kind == "blimp":
            terms = {row["linguistics_term"] for row in _blimp_rows(Path(path))}
            found += [f"{kind}/{term}" for term in sorted(terms)]
        else:
            found.append(kind)
    return found


def items(task: str, tasks: Mapping[str, str], encode: Encode, bos_id: int) -> list[ProbeItem]:
    """The items of one of :func:`names`. Raises :class:`WorldError` for files of another format."""
    kind, _, term = task.partition("/")
    path = Path(tasks[kind])
    if kind == "blimp":
        found = _blimp(path, term, encode, bos_id)
    elif kind == "winobias":
        found = list(_winobias(path, encode, bos_id))
    else:
        found = list(_wic(path, encode, bos_id))
    if not found:
        raise WorldError(
            f"Task {task}: {path} holds no item that this tokenizer can tell apart; leave it out."
        )
    return found


def _files(path: Path, ends: str) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.rglob(f"*{ends}"))
    if not files:
        raise WorldError(f"{path} holds no {ends} file; give the published files.")
    return files


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise WorldError(f"{path} is not UTF-8 ({error.reason}); copy it again.") from None


def _blimp_rows(path: Path) -> Iterator[dict[str, Any]]:
    wanted = {"sentence_good", "sentence_bad", "UID", "linguistics_term"}
    for file in _files(path, ".jsonl"):
        for number, line in enumerate(_lines(file), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict) or not wanted <= set(row):
                raise WorldError(f"{file}, line {number}, is no row of BLiMP; copy it again.")
            yield row


def _right_form(good: str, bad: str) -> int:
    """1 if ``good`` is the form that ends in s, else (both or neither do) the later one."""
    forms = [form.strip().lower().removesuffix("n't") for form in (good, bad)]
    ends = [form.endswith("s") for form in forms]
    return int(ends[0]) if ends[0] != ends[1] else int(forms[0] > forms[1])


def _first_difference(good: str, bad: str) -> tuple[str, str]:
    """The first words in which two sentences differ."""
    pairs = zip(good.split(), bad.split(), strict=False)
    return next(((a, b) for a, b in pairs if a != b), (good, bad))


def _blimp(path: Path, term: str, encode: Encode, bos_id: int) -> list[ProbeItem]:
    by_label: dict[int, list[ProbeItem]] = {0: [], 1: []}
    frames: dict[tuple[str, int], int] = {}
    words: dict[frozenset[str], int] = {}
    for row in _blimp_rows(path):
        if row["linguistics_term"] != term:
            continue
        good, bad = encode(row["sentence_good"]), encode(row["sentence_bad"])
        same = takewhile(lambda pair: pair[0] == pair[1], zip(good, bad, strict=False))
        shared = len(list(same))
        if shared == 0 or shared >= min(len(good), len(bad)):
            continue
        forms = _first_difference(row["sentence_good"], row["sentence_bad"])
        label = _right_form(*forms)
        item = ends_at(
            f"blimp/{term}",
            (bos_id, *good[:shared]),
            label=label,
            template=frames.setdefault((row["UID"], shared), len(frames)),
            word=words.setdefault(frozenset(forms), len(words)),
            condition=row["UID"],
            good=good[shared],
            bad=bad[shared],
        )
        by_label[label].append(item)
    pairs = zip(by_label[1], by_label[0], strict=False)
    return [item for pair in pairs for item in pair]


def _winobias(path: Path, encode: Encode, bos_id: int) -> Iterator[ProbeItem]:
    frames: dict[str, int] = defaultdict(lambda: len(frames))
    words: dict[frozenset[str], int] = defaultdict(lambda: len(words))
    for file in _files(path, ".txt*"):
        condition = file.name.partition(".")[0]
        for number, line in enumerate(_lines(file), 1):
            text = line.strip().partition(" ")[2]
            bracketed = _BRACKETED.findall(text)
            plain = _BRACKETED.sub(r"\1", text)
            occupations = list(dict.fromkeys(_OCCUPATION.findall(plain)))
            meant = [o for o in occupations if bracketed and o in bracketed[0].split()]
            if len(bracketed) < 2 or not meant:
                if len(bracketed) < 2:
                    raise WorldError(
                        f"{file}, line {number}, has no [occupation] and [pronoun]; "
                        "give WinoBias's own files."
                    )
                continue
            others = [o for o in occupations if o != meant[0]]
            if not others:
                continue
            right, wrong = (encode(f" {o}")[0] for o in (meant[0], others[0]))
            if right == wrong:
                continue
            # The frame is the sentence without what a pair of occupations and a gender fill in.
            frame = _OCCUPATION.sub("the _", _BRACKETED.sub("_", text))
            yield ends_at(
                "winobias",
                (bos_id, *encode(f'{plain} Here "{bracketed[1]}" means the')),
                label=int(plain.index(meant[0]) > plain.index(others[0])),
                template=frames[frame],
                word=words[frozenset((meant[0], others[0]))],
                condition=condition,
                good=right,
                bad=wrong,
            )


def _wic(path: Path, encode: Encode, bos_id: int) -> Iterator[ProbeItem]:
    words: dict[str, int] = defaultdict(lambda: len(words))
    same, different = encode(" the same")[0], encode(" different")[0]
    for file in _files(path, ".data.txt"):
        gold = file.with_name(file.name.replace(".data.", ".gold."))
        if not gold.is_file():
            raise WorldError(f"{gold} does not exist; put WiC's gold file beside {file.name}.")
        data, answers = _lines(file), _lines(gold)
        if len(data) != len(answers):
            raise WorldError(
                f"{gold} has {len(answers)} lines, {file.name} {len(data)}; copy both again."
            )
        for number, (line, answer) in enumerate(zip(data, answers, strict=True)):
            cells = line.split("\t")
            if len(cells) != 5 or answer.strip() not in ("T", "F"):
                raise WorldError(f"{file}, line {number + 1}, is no row of WiC; copy it again.")
            word, kind, _, first, second = cells
            label = int(answer.strip() == "T")
            yield ends_at(
                "wic",
                (bos_id, *encode(f'{first} {second} The meaning of "{word}" in the two is')),
                label=label,
                template=number % 2,
                word=words[word],
                condition=kind,
                good=same if label else different,
                bad=different if label else same,
            )
