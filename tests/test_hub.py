"""Worlds of published models, from folders in the hub's formats that the tests make; no network."""

import json
import shutil

import datasets
import httpx
import huggingface_hub
import numpy as np
import pytest
import tiny_models
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from lab import worlds
from lab.runs.evaluation import run_evaluation
from lab.runs.setting import make_setting
from lab.worlds import hub
from tsae.errors import WorldError
from tsae.training.runs import run_training

KINDS = {"gpt2": "gpt2", "pythia-70m": "gpt_neox", "gemma-2-2b": "gemma2"}
WIKITEXT = ["", " = First article = \n", "", " It begins here . \n", " = = A section = = \n"]
WIKITEXT += [" More of it . \n", " = Second article = \n", " Another one . \n"]
ARTICLES = [
    "First article\n\nIt begins here .\n\nA section\n\nMore of it .",
    "Second article\n\nAnother one .",
]
ROWS = [{"text": f"Row {i} of the corpus. It ends."} for i in range(12)]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The flags that HF_HUB_OFFLINE=1 sets at import, and no variable of the caller's."""
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    at = tmp_path_factory.mktemp("models")
    return {name: tiny_models.save(at / name, kind) for name, kind in KINDS.items()}


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_published_model_by_path_is_a_whole_world(tmp_path, folders, corpus, name):
    world = worlds.build(
        name, tmp_path / "w", cache_dir=tmp_path / "c", model=folders[name],
        text=f"openwebtext={corpus}", seq_len=32, progress=False,
    )  # fmt: skip
    assert (world.name, world.layer, world.d_model) == (name, 1, tiny_models.D_MODEL)
    again = worlds.load(tmp_path / "w")
    assert again.fingerprint == world.fingerprint
    texts = {split: "" for split in ("train", "validation", "test")}
    for split in texts:
        for document in again.documents(split):
            texts[split] += "".join(again.to_strings(document.tokens)) + "\n"
    assert sorted("".join(texts.values()).splitlines()) == sorted(row["text"] for row in ROWS)
    assert all(texts.values())
    logits = world.model()(torch.tensor([[world.bos_id, 5, 6]]), prepend_bos=False)
    assert logits.shape == (1, 3, tiny_models.VOCABULARY) and logits.isfinite().all()


def put_in_cache(cache, repository, folder):
    """What the hub's client leaves when it has fetched a model."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")


def test_a_model_in_the_hubs_cache_needs_no_hub(tmp_path, monkeypatch, folders, corpus):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    put_in_cache(tmp_path / "hub", "openai-community/gpt2", folders["gpt2"])
    monkeypatch.setitem(hub.MODELS, "gpt2", hub.Published("openai-community/gpt2", 2))
    world = worlds.build("gpt2", tmp_path / "w", text=corpus, seq_len=32, progress=False)
    assert world.layer == 2 and world.config.model.endswith("snapshots/abc")
    options = {"text": corpus, "seq_len": 32, "layer": 0}
    assert worlds.build("gpt2", tmp_path / "w", progress=False, **options).layer == 0


def test_without_a_hub_there_is_one_sentence(tmp_path, monkeypatch, folders, corpus):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    options = {"cache_dir": tmp_path / "c", "progress": False}
    with pytest.raises(WorldError) as no_model:
        worlds.build("pythia-70m", tmp_path / "w", text=corpus, **options)
    assert str(no_model.value).startswith(
        "World pythia-70m needs EleutherAI/pythia-70m from the Hugging Face hub, which could not be"
    )
    assert str(no_model.value).endswith("connect to the hub, or give model=PATH of a copy.")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WorldError) as no_text:
        worlds.build("gpt2", tmp_path / "w", model=folders["gpt2"], **options)
    assert str(no_text.value).startswith("Text openwebtext needs Skylion007/openwebtext from the")
    assert str(no_text.value).endswith(
        "connect to the hub and unset HF_HUB_OFFLINE, or give text=PATH of a text of your own."
    )
    assert not (tmp_path / "w").exists()
    assert not list((tmp_path / "c").glob("*.jsonl*tmp*"))


def test_a_gated_model_gives_one_sentence(tmp_path, monkeypatch, corpus):
    def gated(repository, local_files_only=False, **options):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        request = httpx.Request("GET", "https://hub")
        raise GatedRepoError("closed", response=httpx.Response(403, request=request))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)
    with pytest.raises(WorldError) as caught:
        worlds.build("gemma-2-2b-it", tmp_path / "w", text=corpus, progress=False)
    assert str(caught.value) == (
        "World gemma-2-2b-it needs google/gemma-2-2b-it, which is gated: accept its terms at "
        "https://huggingface.co/google/gemma-2-2b-it and run `hf auth login`, or give model=PATH "
        "of a copy."
    )


def test_wikitext_lines_become_articles():
    assert list(hub.documents("wikitext-103", WIKITEXT)) == ARTICLES


def write_parquet(path, rows):
    datasets.Dataset.from_list(rows).to_parquet(path / "rows.parquet")
    return path


def write_saved(path, rows):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(path / "saved")
    return path / "saved"


def write_jsonl(path, rows):
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path / "rows.jsonl"


@pytest.mark.parametrize("write", [write_parquet, write_saved, write_jsonl])
def test_a_copy_of_a_corpus_is_read_in_every_format(tmp_path, write):
    (tmp_path / "copy").mkdir()
    source = write(tmp_path / "copy", [{"text": line} for line in WIKITEXT])
    file = hub.fetch("wikitext-103", tmp_path / "c", 1.0, str(source), False)
    found = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert found == ARTICLES
    assert hub.fetch("wikitext-103", tmp_path / "c", 1.0, str(source), False) == file


def test_a_corpus_streams_only_as_much_as_is_asked_for(tmp_path, monkeypatch):
    asked = []

    def streamed(repository, config, **options):
        asked.append((repository, config, options))

        def endless():
            yield from ROWS
            raise AssertionError("read on after enough was there")

        return endless()

    monkeypatch.setattr(datasets, "load_dataset", streamed)
    characters = sum(len(row["text"]) for row in ROWS)
    file = hub.fetch("pile", tmp_path, characters / 1e6, None, False)
    assert len(file.read_text().splitlines()) == len(ROWS)
    options = {"split": "train", "streaming": True}
    assert asked == [("NeelNanda/pile-10k", None, options)]
    assert hub.fetch("pile", tmp_path, characters / 1e6, None, False) == file and len(asked) == 1


def test_copies_that_are_no_corpus(tmp_path):
    write_jsonl(tmp_path, [{"body": "x"}])
    for source, line in [
        ("nowhere", "nowhere does not exist; give text=PATH"),
        ("rows.jsonl", 'rows.jsonl, line 1, has no "text" field but body; rename the field'),
        ("empty", "empty holds no .txt, .md, .jsonl or .parquet file"),
        ("bad.parquet", r"bad.parquet is not whole \(.*\); copy it again"),
    ]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "bad.parquet").write_bytes(b"no parquet")
        with pytest.raises(WorldError, match=line):
            hub.fetch("pile", tmp_path / "c", 1.0, str(tmp_path / source), False)
    with pytest.raises(ValueError, match="megabytes is 0; allowed is a number above 0"):
        worlds.build("gpt2", tmp_path / "w", megabytes=0)


def test_texts_by_name_are_balanced_and_labelled(tmp_path, folders, corpus):
    (tmp_path / "bio.txt").write_text("\n<|endoftext|>\n".join(f"Cell {i}." for i in range(30)))
    text = {"biology": str(tmp_path / "bio.txt"), "rest": f"pile={corpus}"}
    world = worlds.build(
        "gpt2", tmp_path / "w", cache_dir=tmp_path / "c", model=folders["gpt2"], text=text,
        seq_len=32, progress=False,
    )  # fmt: skip
    assert world.label_specs["source"].classes == ("biology", "rest")
    seen = {0: "", 1: ""}
    for document in world.documents("train"):
        (source,) = set(document.labels["source"].tolist())
        seen[source] += "".join(world.to_strings(document.tokens))
    assert set(seen[0].replace("Cell ", "").replace(".", "")) <= set("0123456789")
    assert "Row" in seen[1] and "Cell" not in seen[1]


# ---- other people's local models ----------------------------------------------------------


@pytest.mark.parametrize("special", [{"eos_token": "<eos>"}, {"bos_token": "!", "unk_token": "?"}])
def test_half_precision_odd_width_and_no_pad_token(tmp_path, corpus, special):
    folder = tiny_models.save(tmp_path / "m", "llama", **special)
    weights = load_file(folder / "model.safetensors")
    halves = {name: value.bfloat16() for name, value in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    world = worlds.build("local", tmp_path / "w", model=folder, text=corpus, seq_len=16)
    assert world.d_model % 64 and world._tokenizer.pad_token is None
    model = world.model()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    sequence = next(world.sequences("train"))
    tokens_BT = torch.from_numpy(np.stack([sequence.tokens])).long()
    whole = model(tokens_BT, prepend_bos=False)
    # Causal, and right padding of any id changes nothing in front of it.
    padded = model(torch.nn.functional.pad(tokens_BT, (0, 3)), prepend_bos=False)
    torch.testing.assert_close(padded[:, :16], whole)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_a_local_model_and_text_go_the_whole_way(tmp_path, corpus, kind):
    folder = tiny_models.save(tmp_path / "m", kind)
    setting = make_setting(
        tmp_path / "s", world="local", options={"model": folder, "text": corpus, "seq_len": 16},
        layer=2, tokens={"train": 256, "test": 32}, progress=False,
    )  # fmt: skip
    options = {"variant": "conv", "k": 3, "d_sae": 24, "steps": 2, "lr": 1e-3, "batch_tokens": 64}
    options |= {"warmup_steps": 0, "progress": False}
    with pytest.raises(
        ValueError, match="colour is not an option of TrainConfig; allowed are step"
    ):
        run_training(setting.store, tmp_path / "run", colour="red", **options)
    sae = run_training(setting.store, tmp_path / "run", **options).sae
    tables = run_evaluation(
        setting, {"conv": sae}, limit_tokens=32, selection_tokens=32, splice_tokens=16,
        families=("core", "splice"), progress=False,
    )  # fmt: skip
    rows = tables["results"].query("variant == 'conv' and group == 'all'")
    found = rows.set_index("metric")["value"]
    assert 0 < found["l0"] <= 3 and found["fve"] < 1 and "ce_score" in found
    assert set(tables["results"]["world"]) == {"local"} and set(tables["results"]["layer"]) == {2}


def test_a_chat_model_is_asked_in_its_turns(tmp_path, corpus):
    folder = tiny_models.save(tmp_path / "m")
    tokenizer = tiny_models.tokenizer(eos_token="<eos>")
    tokenizer.chat_template = (
        "{{ eos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[model] {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    exam = tmp_path / "anatomy_test.csv"
    exam.write_text("Q?,a,b,c,d,C\n")
    world = worlds.build(
        "local", tmp_path / "w", model=folder, text=corpus, questions={"far": [str(exam)]}
    )
    question = world.questions()[0]
    text = "".join(world.to_strings(question.prompt[1:]))
    assert question.prompt[0] == world.bos_id == tiny_models.EOS
    assert text == (
        "[user] The following is a multiple choice question (with its answer) about anatomy.\n\n"
        "Q?\nA. a\nB. b\nC. c\nD. d\nAnswer with the letter alone.\n[model] "
    )
    assert [world.to_strings(choice) for choice in question.choices] == [["A"], ["B"], ["C"], ["D"]]
    assert (question.answer, question.subject) == (2, "anatomy")
