"""Local text: every format gives the same documents, and bad files give one line."""

import gzip
import json

import datasets
import pytest

from lab.worlds.text import LocalText
from tsae.errors import WorldError
from tsae.sequences import SPLITS

TEXTS = [f"Document {i} says so. It ends." for i in range(25)]


def write_text(path):
    path.with_suffix(".txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    return path.with_suffix(".txt")


def write_jsonl(path):
    rows = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS)
    path.with_suffix(".jsonl").write_text(rows)
    return path.with_suffix(".jsonl")


def write_gzip(path):
    plain = write_jsonl(path)
    packed = plain.with_name(plain.name + ".gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    return packed


def write_folder(path):
    (path / "deeper").mkdir(parents=True)
    for i, text in enumerate(TEXTS):
        (path / "deeper" / f"{i:02d}.md").write_text(text)
    (path / "picture.png").write_bytes(b"\x89PNG")
    return path


def write_dataset(path):
    datasets.Dataset.from_dict({"text": TEXTS, "n": [0] * len(TEXTS)}).save_to_disk(path)
    return path


def write_dataset_dict(path):
    parts = {
        "train": datasets.Dataset.from_dict({"text": TEXTS[:20]}),
        "validation": datasets.Dataset.from_dict({"text": TEXTS[20:]}),
    }
    datasets.DatasetDict(parts).save_to_disk(path)
    return path


def write_clone(path):
    """A data set as the hub hands it out: Parquet beside a card, a license and hidden files."""
    (path / "data").mkdir(parents=True)
    (path / ".git").mkdir()
    datasets.Dataset.from_dict({"n": [0] * 20, "text": TEXTS[:20]}).to_parquet(
        path / "data" / "train-00000.parquet"
    )
    datasets.Dataset.from_dict({"text": TEXTS[20:]}).to_parquet(path / "data" / "train-1.PARQUET")
    for name in ("README.md", "LICENSE.txt", ".git/notes.txt", "data/.draft.md"):
        (path / name).write_text("About the data.")
    return path


def write_notebook_folder(path):
    (path / ".ipynb_checkpoints").mkdir(parents=True)
    for i, text in enumerate(TEXTS):
        (path / f"{i:02d}.TXT").write_text(text)
    (path / "empty.md").touch()
    (path / ".ipynb_checkpoints" / "00.TXT").write_text("an old copy")
    return path


WRITERS = [write_clone, write_notebook_folder, write_text, write_jsonl, write_gzip, write_folder]
WRITERS += [write_dataset, write_dataset_dict]


@pytest.fixture(autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_documents(tmp_path, write):
    source = LocalText(write(tmp_path / "corpus"))
    split = {name: [text.text for text in source.texts(name, 5)] for name in SPLITS}
    assert sorted(sum(split.values(), [])) == sorted(TEXTS)
    # One of the first three, one of the next ten-block, at most one of the five that are left.
    for name in ("validation", "test"):
        places = [TEXTS.index(text) for text in split[name]]
        assert places[0] in range(3) and places[1] in range(10, 20) and len(places) in (2, 3)


def test_three_documents_are_enough_and_repeats_count_once(tmp_path):
    path = tmp_path / "three.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n{"text": "a"}\n{"text": "c"}\n{"text": " "}\n')
    for seed in range(4):
        got = [[t.text for t in LocalText(path).texts(split, seed)] for split in SPLITS]
        assert sorted(got) == [["a"], ["b"], ["c"]]


def test_a_lone_surrogate_does_not_stop_the_reader(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n')
    texts = [t.text for split in SPLITS for t in LocalText(path).texts(split, 0)]
    assert texts == ["a?b"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", b"", "a.txt holds no text; put some in it or give another file"),
        ("a.md", b" \n\n", "a.md holds no text; put some in it"),
        ("a.jsonl", b"\n", "a.jsonl holds no text; put some in it"),
        ("a.txt", b"caf\xe9", r"a.txt is not UTF-8 \(.*\); convert it to UTF-8."),
        ("a.jsonl", b'{"text": "caf\xe9"}', "a.jsonl is not UTF-8"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": ',
            "a.jsonl, line 2, is not JSON; put one JSON object",
        ),
        ("a.jsonl", b'{"body": "a"}', 'a.jsonl, line 1, has no "text" field'),
        ("a.jsonl", b'{"text": 3}', 'a.jsonl, line 1, has a "text" that is of type int; remove'),
        ("a.jsonl", b'{"text": "a"}\n{"text": null}', "a.jsonl, line 2, .* that is null; remove"),
        ("a.parquet", b"PAR1", r"a.parquet is not whole \(.*\); copy it again"),
        ("a.jsonl", b"[1]", 'a.jsonl, line 1, has no "text" field'),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-20],
            r"gz is not whole \(.*\); copy",
        ),
        ("a.jsonl.gz", b"plain", r"is not whole \(.*\); copy it again"),
        ("a.csv", b"a,b", "a.csv is not .txt, .md, .jsonl, .jsonl.gz or .parquet; convert it"),
    ],
)
def test_bad_files_give_one_line(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WorldError, match=line) as caught:
        list(LocalText(tmp_path / name).texts("train", 0))
    assert "\n" not in str(caught.value)


def test_bad_places_give_one_line(tmp_path):
    with pytest.raises(WorldError, match="nowhere does not exist; give text=PATH"):
        LocalText(tmp_path / "nowhere")
    with pytest.raises(
        WorldError, match="holds no .txt, .md, .jsonl or .parquet file; add some text"
    ):
        list(LocalText(tmp_path).texts("train", 0))
    datasets.Dataset.from_dict({"body": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(WorldError, match='has no "text" column but body; rename'):
        list(LocalText(tmp_path / "saved").texts("train", 0))
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(WorldError, match="saved cannot be read .*; save it again"):
        list(LocalText(tmp_path / "saved").texts("train", 0))
    datasets.Dataset.from_dict({"text": ["a", None]}).save_to_disk(tmp_path / "null")
    with pytest.raises(WorldError, match='null, row 2, has a "text" that is null; remove the row'):
        list(LocalText(tmp_path / "null").texts("train", 0))


def read_all(path):
    splits = [[t.text for t in LocalText(path).texts(split, 0)] for split in SPLITS]
    return sorted(sum(splits, []))


def write_marked_plain(path, texts):
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n<|endoftext|>\r\n".join(texts).encode())


def write_marked_jsonl(path, texts):
    rows = "\r\n".join(json.dumps({"text": text}) for text in texts)
    path.write_bytes(b"\xef\xbb\xbf" + rows.encode())


def write_saved(path, texts):
    datasets.Dataset.from_dict({"text": ["\ufeff" + text for text in texts]}).save_to_disk(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.txt", write_marked_plain), ("a.jsonl", write_marked_jsonl), ("a", write_saved)],
)
def test_line_ends_of_windows_and_byte_order_marks_leave_no_trace(tmp_path, name, write):
    write(tmp_path / name, ["One.\r\n\r\nTwo.", "Three.\rFour."])
    assert read_all(tmp_path / name) == ["One.\n\nTwo.", "Three.\nFour."]


@pytest.mark.parametrize("between", ["\n\n", "\n", " "])
def test_one_long_file_is_cut_into_documents(tmp_path, between):
    # 1,000 sentences of 24 characters and what stands between: pieces of at least 2,000 of them.
    parts = [f"Sentence {i:04d} says this." for i in range(1000)]
    (tmp_path / "book.txt").write_text(between.join(parts))
    pieces = read_all(tmp_path / "book.txt")
    per_piece = -(-2000 // (24 + len(between)))
    assert len(pieces) == 1000 // per_piece
    assert between.join(piece.strip() for piece in pieces) == between.join(parts)
    (tmp_path / "folder").mkdir()
    for name in ("a", "b"):
        (tmp_path / "folder" / f"{name}.txt").write_text(name + between.join(parts))
    assert len(read_all(tmp_path / "folder")) == 2  # there, a file is a document
