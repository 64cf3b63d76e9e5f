"""BLiMP, WinoBias and WiC, read from their published files, as probing items.

- BLiMP (Warstadt et al. 2020, arXiv:1912.00582): a .jsonl file, or a folder of them, with
  sentence_good, sentence_bad, UID and linguistics_term. A task for each term. The item is what the
  two sentences share. The label says which form comes next: the one that ends in s if one of the
  two does (n't aside), else the alphabetically later one, so that for a verb's agreement 1 is the
  singular. Pairs that differ in their first token are left out, and so is what one label has more
  of than the other.
- WinoBias (Zhao et al. 2018, arXiv:1804.06876): its .txt files, lines such as "1 [The developer]
  argued with the designer because [she] …". The sentence is followed by 'Here "she" means the'; the
  label is 1 if the second of the two occupations is meant.
- WiC (Pilehvar and Camacho-Collados 2019, arXiv:1808.09121): NAME.data.txt with NAME.gold.txt. Both
  sentences are followed by 'The meaning of "word" in the two is'; the label is 1 for "the same". It
  has no frames, so lines alternate between two.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any

from lab.worlds.tasks import Encode, Halves, ProbeItem
from tsae.errors import WorldError

_BLIMP = {"sentence_good", "sentence_bad", "UID", "linguistics_term"}
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
    rows = _blimp_rows(Path(tasks["blimp"])) if "blimp" in tasks else ()
    terms = sorted({f"blimp/{row['linguistics_term']}" for row in rows})
    return [kind for kind in tasks if kind != "blimp"] + terms


def items(task: str, tasks: Mapping[str, str], encode: Encode, bos_id: int) -> list[ProbeItem]:
    """The items of one of :func:`names`. Raises :class:`WorldError` for files of another format."""
    kind, _, term = task.partition("/")
    path = Path(tasks[kind])
    made = KINDS[kind](path, term, encode)
    found = [ProbeItem(task, (bos_id, *tokens), *rest) for tokens, *rest in made]
    if not found:
        raise WorldError(f"Task {task}: {path} holds no item; leave it out.")
    return found


def _lines(path: Path, ends: str) -> Iterator[tuple[Path, str, str]]:
    """(file, where, line) of every line with text in the files that end in ``ends``."""
    files = [path] if path.is_file() else sorted(path.rglob(f"*{ends}"))
    if not files:
        raise WorldError(f"{path} holds no {ends} file; give the published files.")
    for file in files:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(filter(str.strip, lines), 1):
            yield file, f"{file}, line {number},", line


def _blimp_rows(path: Path) -> Iterator[dict[str, Any]]:
    for _, where, line in _lines(path, ".jsonl"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not set(row) >= _BLIMP:
            raise WorldError(f"{where} is no row of BLiMP; copy the file again.")
        yield row


def _right_form(good: str, bad: str) -> int:
    """1 if ``good`` is the form that ends in s, else (both or neither do) the later one."""
    forms = [form.strip().lower().removesuffix("n't") for form in (good, bad)]
    ends = [form.endswith("s") for form in forms]
    return int(ends[0]) if ends[0] != ends[1] else int(forms[0] > forms[1])


def _blimp(path: Path, term: str, encode: Encode) -> Halves:
    by_label: dict[int, list] = {0: [], 1: []}
    frames: dict[tuple[str, int], int] = {}
    words: dict[frozenset[str], int] = {}
    for row in _blimp_rows(path):
        if row["linguistics_term"] != term:
            continue
        both = row["sentence_good"], row["sentence_bad"]
        good, bad = map(encode, both)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(good, bad, strict=False))
        shared = len(list(same))
        if not 0 < shared < min(len(good), len(bad)):
            continue
        differing = (
            pair for pair in zip(*map(str.split, both), strict=False) if len(set(pair)) > 1
        )
        forms = next(differing, both)
        template = frames.setdefault((row["UID"], shared), len(frames))
        word = words.setdefault(frozenset(forms), len(words))
        label = _right_form(*forms)
        by_label[label].append((good[:shared], label, template, word, row["UID"]))
    for pair in zip(by_label[1], by_label[0], strict=False):
        yield from pair


def _winobias(path: Path, term: str, encode: Encode) -> Halves:
    frames: dict[str, int] = defaultdict(lambda: len(frames))
    words: dict[frozenset[str], int] = defaultdict(lambda: len(words))
    for file, where, line in _lines(path, ".txt*"):
        text = line.strip().partition(" ")[2]
        bracketed = _BRACKETED.findall(text)
        if len(bracketed) < 2:
            raise WorldError(
                f"{where} has no [occupation] and [pronoun]; give WinoBias's own files."
            )
        plain = _BRACKETED.sub(r"\1", text)
        occupations = list(dict.fromkeys(_OCCUPATION.findall(plain)))
        meant = next((o for o in occupations if o in bracketed[0].split()), None)
        other = next((o for o in occupations if o != meant), None)
        if meant is None or other is None:
            continue
        # The frame is the sentence without what a pair of occupations and a gender fill in.
        template = frames[_OCCUPATION.sub("the _", _BRACKETED.sub("_", text))]
        tokens = encode(f'{plain} Here "{bracketed[1]}" means the')
        label, word = plain.index(meant) > plain.index(other), words[frozenset((meant, other))]
        yield tokens, int(label), template, word, file.name.partition(".")[0]


def _wic(path: Path, term: str, encode: Encode) -> Halves:
    words: dict[str, int] = defaultdict(lambda: len(words))
    for file in dict.fromkeys(file for file, *_ in _lines(path, ".data.txt")):
        gold = file.with_name(file.name.replace(".data.", ".gold."))
        if not gold.is_file():
            raise WorldError(f"{gold} does not exist; put WiC's gold file beside {file.name}.")
        pairs = zip_longest(_lines(file, ""), _lines(gold, ""), fillvalue=(file, str(file), ""))
        for number, ((_, where, line), (*_, answer)) in enumerate(pairs):
            cells, answer = line.split("\t"), answer.strip()
            if len(cells) != 5 or answer not in ("T", "F"):
                raise WorldError(f"{where} is no row of WiC with an answer; copy both files again.")
            word, kind, _, first, second = cells
            tokens = encode(f'{first} {second} The meaning of "{word}" in the two is')
            yield tokens, int(answer == "T"), number % 2, words[word], kind


KINDS = {"blimp": _blimp, "winobias": _winobias, "wic": _wic}
