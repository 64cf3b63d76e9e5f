"""From text to labelled tokens: sentences, paragraphs, token classes, character spans."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from lab.worlds.base import Document
from tsae.sequences import DOCUMENT, SECTION, SENTENCE, LabelSpec

TOKEN_CLASSES = tuple(
    "word continuation identifier number operator punctuation bracket space".split()
)
TOKEN_LABEL = LabelSpec("token", "token", TOKEN_CLASSES)
_WORD, _CONTINUATION, _IDENTIFIER, _NUMBER, _OPERATOR, _PUNCTUATION, _BRACKET, _SPACE = range(8)
_BATCH = 64  # texts tokenised together

# Linear in the text's length, whatever it holds: `_PARAGRAPH` never meets trailing space, a name
# begins only where no letter stands before it, and its parts have at most 128 characters.
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_ABBREVIATIONS = ("e.g.", "i.e.", "cf.", "vs.", "Fig.", "Eq.", "al.", "Dr.", "Mr.", "Mrs.", "No.")
_SENTENCE = re.compile(
    "(?<=[.!?])"
    + "".join(rf"(?<!\b{re.escape(short)})" for short in _ABBREVIATIONS)
    + r"[\"')\]`*”’]*\s+(?=[\"'(\[`*“‘]*[^\W_a-z])"
)
_ITEM = re.compile(r"^[ \t]*(?=(?:[-*+•]|\d+[.)]|>>>)[ \t]+\S)", re.MULTILINE)
_NAME = r"(?<![^\W\d])[^\W\d]\w{0,127}"
_CODE = re.compile(
    r"(?<!`)`+(?P<quoted>[^`\n]+)`+"
    rf"|{_NAME}(?:\.[^\W\d]\w{{0,127}})+"  # dotted.name
    r"|(?<![^\W\d])[^\W\d]{0,128}_\w+"  # snake_case
    r"|(?<![^\W\d_])[^\W\d_]{1,128}[a-z][A-Z]\w*"  # camelCase
    rf"|{_NAME}(?=\()"  # call(
)


class Text(NamedTuple):
    """One document before it is tokenised.

    ``labels``: class of each document-scale label; ``spans``: for each section-scale label, (first
    character, class) in order, each reaching to the next; ``items``: characters at which an entry
    starts that counts as a sentence (a parameter in a list, say).
    """

    text: str
    labels: dict[str, int] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    items: tuple[int, ...] = ()


def sentence_starts(text: str) -> list[int]:
    """Characters at which a sentence, a list item or a doctest prompt starts."""
    ends = (match.end() for pattern in (_SENTENCE, _ITEM) for match in pattern.finditer(text))
    return sorted(set(ends))


def paragraph_starts(text: str) -> list[int]:
    """Characters at which a paragraph starts, that is the first ones after blank lines."""
    return [match.end() for match in _PARAGRAPH.finditer(text.rstrip())]


@cache
def _class_of(character: str) -> int:
    if character.isalpha():
        return _WORD
    if character.isspace():
        return _SPACE
    if character in "()[]{}":
        return _BRACKET
    if "0" <= character <= "9":
        return _NUMBER
    return _OPERATOR if character in "=+-*/<>|&^%~@\\" else _PUNCTUATION


def character_classes(text: str) -> np.ndarray:
    """Class index [n_characters] of a token that begins with that character (see TOKEN_CLASSES).

    A letter is ``continuation`` after another letter or underscore; everything but spaces in a
    dotted, snake_case, camelCase, called or back-quoted name is ``identifier``.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    distinct, place = np.unique(codes, return_inverse=True)
    classes = np.array([_class_of(chr(code)) for code in distinct], np.int16)[place]
    letter = (classes == _WORD) | (codes == ord("_"))
    classes[1:][(classes[1:] == _WORD) & letter[:-1]] = _CONTINUATION
    for match in _CODE.finditer(text):
        group = "quoted" if match["quoted"] is not None else 0
        span = classes[match.start(group) : match.end(group)]
        span[span != _SPACE] = _IDENTIFIER
    return classes


def token_classes(text: str, offsets: np.ndarray) -> np.ndarray:
    """Class index [n] of each token, by its first visible character; ``offsets`` is [n, 2]."""
    if not len(offsets):
        return np.zeros(0, np.int16)
    classes = np.append(character_classes(text), np.int16(_SPACE))
    n = len(text)
    visible = np.where(classes != _SPACE, np.arange(n + 1), n)
    first = np.minimum.accumulate(visible[::-1])[::-1][offsets[:, 0]]
    return np.where(first < offsets[:, 1], classes[first], _SPACE).astype(np.int16)


def document(id: int, text: Text, tokens: list[int], offsets: np.ndarray) -> Document:
    """Put boundaries and labels, which lie on characters, on the tokens that hold these."""
    n = len(tokens)
    starts = offsets[:, 0]
    boundary = np.zeros(n, np.uint8)

    def mark(characters: Iterable[int], level: int) -> None:
        at = np.searchsorted(starts, np.asarray(list(characters), np.int64), side="right") - 1
        boundary[at[at >= 0]] = np.maximum(boundary[at[at >= 0]], level)

    mark(sentence_starts(text.text), SENTENCE)
    mark(text.items, SENTENCE)
    mark(paragraph_starts(text.text), SECTION)
    labels = {"token": token_classes(text.text, offsets)}
    labels |= {name: np.full(n, value, np.int16) for name, value in text.labels.items()}
    for name, spans in text.spans.items():
        begins = np.array([start for start, _ in spans])
        values = np.array([-1, *(value for _, value in spans)], np.int16)
        mark(begins, SECTION)
        # A token belongs to the span of its last character: " The" may begin with the span before.
        labels[name] = values[np.searchsorted(begins, offsets[:, 1] - 1, side="right")]
    boundary[0] = DOCUMENT
    return Document(id, np.asarray(tokens, np.int32), boundary, labels)


def documents(
    texts: Iterable[Text],
    tokenizer: Any,
    vocab_size: int,
    first_id: int,
    step: int,
    min_tokens: int,
) -> Iterator[Document]:
    """Tokenise ``texts`` in batches; those under ``min_tokens`` are left out, and so is one that
    spells a special token that the model, of ``vocab_size`` tokens, does not know.

    Ids are first_id, first_id + step, … so that splits with different ``first_id`` share none.
    """
    texts = iter(texts)
    backend = tokenizer.backend_tokenizer
    id = first_id
    while batch := list(islice(texts, _BATCH)):
        encodings = backend.encode_batch([text.text for text in batch], add_special_tokens=False)
        for text, encoding in zip(batch, encodings, strict=True):
            ids = encoding.ids
            if len(ids) >= max(min_tokens, 1) and max(ids) < vocab_size:
                yield document(id, text, ids, np.array(encoding.offsets).reshape(-1, 2))
                id += step
