"""Docstrings as documents: sections, boundaries, token classes, splits."""

from itertools import islice

import numpy as np
import pytest

from lab.worlds import annotate, pydocs
from lab.worlds.annotate import TOKEN_CLASSES, Text
from tsae.errors import WorldError
from tsae.sequences import SPLITS

NUMPY_STYLE = """\
Add two numbers.  See e.g. the notes.

Parameters
----------
a : int
    The first.
b : int, optional
    The second.

Returns
-------
int
    The sum.

Warnings of mine
----------------
Beware.

Examples
--------
>>> add(1, 2)
3
"""

GOOGLE_STYLE = """\
Opens a door.

Args:
    door (Door): which one
    wide: how far

        in degrees

Back to prose.

Example::

    open(door)
"""

SPHINX_STYLE = """\
Close it.

:param door: which one
:type door: Door
:returns: whether it was open
"""


def spans_of(text):
    spans, _ = pydocs.sections(text)
    ends = [start for start, _ in spans[1:]] + [len(text)]
    return [
        (pydocs.SECTIONS[section], text[start:end].split("\n")[0])
        for (start, section), end in zip(spans, ends, strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "spans", "entries"),
    [
        (
            NUMPY_STYLE,
            [
                ("description", "Add two numbers.  See e.g. the notes."),
                ("parameters", "Parameters"),
                ("returns", "Returns"),
                ("other", "Warnings of mine"),
                ("examples", "Examples"),
            ],
            ["a : int", "b : int, optional"],
        ),
        (
            GOOGLE_STYLE,  # a section ends where the indent does
            [
                ("description", "Opens a door."),
                ("parameters", "Args:"),
                ("description", "Back to prose."),
                ("examples", "Example::"),
            ],
            ["door (Door): which one", "wide: how far"],
        ),
        (
            SPHINX_STYLE,
            [
                ("description", "Close it."),
                ("parameters", ":param door: which one"),
                ("returns", ":returns: whether it was open"),
            ],
            SPHINX_STYLE.strip().split("\n")[2:],
        ),
        ("Summary.\n\nNote:\nnot indented\n", [("description", "Summary.")], []),  # no block
    ],
)
def test_sections_and_entries(text, spans, entries):
    assert spans_of(text) == spans
    _, places = pydocs.sections(text)
    assert [text[at:].split("\n")[0] for at in places] == entries


def characters_as_tokens(text):
    """Tokens that are single characters, so that positions can be counted by hand."""
    n = len(text.text)
    offsets = np.stack([np.arange(n), np.arange(n) + 1], 1)
    return annotate.document(4, text, list(range(n)), offsets)


def test_boundaries_by_hand():
    text = "One, e.g. Two. Three!\n- item\n\nNew paragraph? (Yes.) 3.5 No."
    document = characters_as_tokens(Text(text))
    assert document.id == 4
    starts = {
        text[i:].split()[0]: int(document.boundary[i]) for i in np.flatnonzero(document.boundary)
    }
    assert starts == {"One,": 3, "Three!": 1, "-": 1, "New": 2, "(Yes.)": 1, "3.5": 1}


def test_a_boundary_lies_on_the_token_that_holds_its_character():
    text = (
        "Hi. There you"  # tokens "Hi", ".", " There", " you": the sentence starts inside " There"
    )
    offsets = np.array([[0, 2], [2, 3], [3, 9], [9, 13]])
    document = annotate.document(0, Text(text), [5, 6, 7, 8], offsets)
    assert document.boundary.tolist() == [3, 0, 1, 0]


def test_section_labels_on_tokens():
    spans, entries = pydocs.sections(NUMPY_STYLE)
    document = characters_as_tokens(Text(NUMPY_STYLE, {"library": 2}, {"section": spans}, entries))
    for line, section, level in [
        ("Add two", "description", 3),
        ("See", "description", 1),
        ("the notes", "description", 0),
        ("Parameters", "parameters", 2),
        ("b : int", "parameters", 1),
        ("The second", "parameters", 0),
        ("Returns", "returns", 2),
        ("Beware", "other", 0),
        (">>> add", "examples", 1),
    ]:
        at = NUMPY_STYLE.index(line)
        assert pydocs.SECTIONS[document.labels["section"][at]] == section, line
        assert document.boundary[at] == level, line
    assert (document.labels["library"] == 2).all()


@pytest.mark.parametrize("unit", ["a", "a1", "_", "`", "a.", "aB", "A", "\n", "\n ", " ", ".", "1"])
def test_annotation_is_linear_in_the_length_of_anything(unit):
    """What no linear search could finish: the quadratic one would take hours."""
    text = "x" + unit * (300_000 // len(unit))
    assert len(annotate.character_classes(text)) == len(text)
    assert annotate.paragraph_starts(text) == []
    assert len(annotate.sentence_starts(text)) <= len(text)


def test_token_classes_by_hand():
    text = "Use `x` in np.sum(a_b, 42) - naïveté!\n  "
    pieces = "Use| `|x|`| in| np|.|sum|(|a|_b|,| 4|2|)| -| na|ïveté|!|\n  ".split("|")
    assert "".join(pieces) == text
    ends = np.cumsum([len(piece) for piece in pieces])
    offsets = np.stack([ends - [len(piece) for piece in pieces], ends], 1)
    got = [TOKEN_CLASSES[i] for i in annotate.token_classes(text, offsets)]
    assert got == [
        *("word", "punctuation", "identifier", "punctuation", "word"),
        *("identifier", "identifier", "identifier", "bracket", "identifier", "identifier"),
        *("punctuation", "number", "number", "bracket", "operator"),
        *("word", "continuation", "punctuation", "space"),
    ]


def test_docstrings_are_read_without_running_the_module():
    long = "Words that go on, " * 10 + "and end."
    inside = f'"""{long}\n\n    left\n        indented\n    """'
    source = f"raise SystemExit\n\nclass A:\n    {inside}\n    def f(self):\n        'short'\n"
    assert list(pydocs.docstrings(source.encode())) == [f"{long}\n\nleft\n    indented"]
    assert list(pydocs.docstrings(b"def (")) == []
    capped = next(pydocs.docstrings(b'"""' + b"a line of text\n" * 1000 + b'"""'))
    assert len(capped) <= 8192 and set(capped.split("\n")) == {"a line of text"}


def test_families_ignore_digits_and_marks_but_not_words():
    assert pydocs.family("Applies a 1D sum: (N, 3)") == pydocs.family("applies a 2D sum (N, 4)")
    assert pydocs.family("Applies a 1D sum") != pydocs.family("Applies a 1D product")


@pytest.fixture
def two_libraries(monkeypatch):
    monkeypatch.setattr(pydocs, "LIBRARIES", {"papermill": "papermill", "networkx": "networkx"})


def test_pydocs_splits_share_no_family_and_repeat_none(two_libraries):
    source = pydocs.Pydocs()
    assert source.label_specs["library"].classes == ("papermill", "networkx")
    families = {
        split: [pydocs.family(text.text) for text in source.texts(split, 3)] for split in SPLITS
    }
    every = sum(families.values(), [])
    assert len(set(every)) == len(every)
    for held_out in ("validation", "test"):  # 10% each, of about 1200
        assert 0.07 < len(families[held_out]) / len(every) < 0.13


def test_pydocs_order_is_of_the_seed_alone_and_balanced(two_libraries):
    source = pydocs.Pydocs()
    first = [text.text for text in islice(source.texts("train", 0), 20)]
    assert first == [text.text for text in islice(pydocs.Pydocs().texts("train", 0), 20)]
    assert first != [text.text for text in islice(source.texts("train", 1), 20)]
    given, longest = [0, 0], 0
    for text in islice(source.texts("train", 0), 20):
        given[text.labels["library"]] += len(text.text)
        longest = max(longest, len(text.text))
        assert abs(given[0] - given[1]) <= longest


def test_no_library_at_all(monkeypatch):
    monkeypatch.setattr(pydocs, "LIBRARIES", {"no_such_library": "none"})
    with pytest.raises(WorldError, match="None of no_such_library is installed"):
        pydocs.Pydocs()
