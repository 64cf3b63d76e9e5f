"""Model folders and files as they are published: read, converted, or refused in one sentence."""

import json
import os
import subprocess
import sys

import pytest
import tiny_gguf
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    MambaConfig,
    MambaForCausalLM,
    SiglipVisionConfig,
)

from lab import worlds
from tsae import model_folders, models
from tsae.errors import WorldError
from tsae.sequences import SPLITS
from tsae.store import harvest

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": tiny_models.VOCABULARY}
SHAPE = {**SMALL, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"text": f"The document number {i} says this."}) for i in range(40))
    path.write_text("\n".join(lines))
    return path


def save(model, folder):
    model.save_pretrained(folder)
    tiny_models.tokenizer(eos_token="<eos>").save_pretrained(folder)
    return folder


def multimodal(folder):
    text = Gemma3TextConfig(num_key_value_heads=1, head_dim=8, **SHAPE)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"intermediate_size": 16, "image_size": 28, "patch_size": 14}
    ids = {"image_token_index": 200, "boi_token_index": 201, "eoi_token_index": 202}
    config = Gemma3Config(text_config=text, vision_config=SiglipVisionConfig(**vision), **ids)
    return save(Gemma3ForConditionalGeneration(config), folder)


def bert(folder):
    return save(BertForMaskedLM(BertConfig(**SHAPE)), folder)


def quantised(method):
    def make(folder):
        config = json.loads((tiny_models.save(folder) / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method, "bits": 4}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def adapter(folder):
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


def cut(folder):
    (tiny_models.save(folder) / "config.json").write_text('{"model_type": ')
    return folder


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (multimodal, r"\(gemma3\) reads more than text; give a model of text alone"),
        (bert, r"\(bert\) is not causal: .*; give a model that writes from left to right"),
        (quantised("gptq"), r"are quantised \(gptq\); give the model it was made from, or a .gguf"),
        (quantised("awq"), r"are quantised \(awq\); give the model it was made from"),
        (adapter, r"holds an adapter alone; merge it into its model"),
        (cut, r"config.json is not whole JSON; copy the model again"),
    ],
)
def test_a_folder_that_cannot_work_is_refused_before_anything_boots(
    tmp_path, corpus, monkeypatch, make, line
):
    def installs(*command, **_):
        raise AssertionError(f"{command} was run")

    folder = make(tmp_path / "model")
    monkeypatch.setattr(subprocess, "Popen", installs)
    for use in (
        lambda: worlds.build("local", tmp_path / "w", model=folder, text=corpus),
        lambda: models.boot(folder),
    ):
        with pytest.raises(WorldError, match=line) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_nothing_is_installed_inside_a_boot(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.delenv("UV_OFFLINE", raising=False)
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "torchvision"]
    with model_folders.no_installs():
        assert os.environ["UV_OFFLINE"] == os.environ["UV_NO_CACHE"] == "1"
        ran = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert ran.returncode and "Would install" not in ran.stdout
    assert os.environ["PIP_NO_INDEX"] == "0" and "UV_OFFLINE" not in os.environ


def test_a_residual_of_another_shape_gives_one_line(tmp_path, corpus, monkeypatch):
    world = worlds.build(
        "local", tmp_path / "w", model=tiny_models.save(tmp_path / "m"), text=corpus
    )
    monkeypatch.setattr(models, "residual", lambda model, tokens_BT, layer: tokens_BT.float())
    with pytest.raises(Exception, match="does not read this architecture as usual: give another"):
        harvest(world, tmp_path / "s", layer=1, tokens={"train": 128}, progress=False)


def test_a_length_saved_in_the_tokenizer_neither_cuts_nor_pads(tmp_path, corpus):
    folder = tiny_models.save(tmp_path / "model")
    plain = worlds.build("local", tmp_path / "plain", model=folder, text=corpus, seq_len=64)
    expected = [document.tokens.tolist() for document in plain.documents("train")]
    tokenizer = tiny_models.tokenizer(eos_token="<eos>")
    tokenizer.backend_tokenizer.enable_truncation(10)
    tokenizer.backend_tokenizer.enable_padding(length=48, pad_id=3)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    world = worlds.build("local", tmp_path / "w", model=folder, text=corpus, seq_len=64)
    assert [document.tokens.tolist() for document in world.documents("train")] == expected
    assert len(world.encode("The document number 1 says this.")) == 32


def test_a_special_token_that_the_model_lacks_is_no_obstacle(tmp_path):
    """Gemma 3's tokenizer has one more than its model, for images; a pad is often added like it."""
    folder = tiny_models.save(tmp_path / "model")
    tiny_models.tokenizer(eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    texts = [f"Line {i}." + " Here is a <pad> of it." * (i in (3, 4)) for i in range(20)]
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(texts))
    world = worlds.build("local", tmp_path / "w", model=folder, text=tmp_path / "a.txt")
    documents = [d for split in SPLITS for d in world.documents(split)]
    assert len(documents) == 18 and max(int(d.tokens.max()) for d in documents) < 257


def massive(folder):
    """A Gemma 3 in bfloat16 whose residual exceeds float16 at BOS, as that of the 270M model does."""
    tiny_models.save(folder, "gemma3")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][tiny_models.EOS] = 30000.0  # × √16, Gemma's scale
    weights = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (massive, "bfloat16"),
        (lambda folder: tiny_gguf.write(folder.with_suffix(".gguf")), "float16"),
        (lambda folder: tiny_models.save(folder, "qwen3"), "float16"),
        (lambda folder: tiny_models.save(folder, "gpt2"), "float16"),
    ],
    ids=["gemma3", "gguf", "qwen3", "gpt2"],
)
def test_published_formats_are_harvested(tmp_path, corpus, capsys, make, dtype):
    options = {"model": make(tmp_path / "model"), "text": corpus, "seq_len": 64}
    options |= {"cache_dir": tmp_path / "cache", "layer": 1}
    world = worlds.build("local", tmp_path / "w", **options)
    store = harvest(world, tmp_path / "s", layer=1, tokens={"train": 640}, progress=False)
    assert store.manifest["dtype"] == dtype and store.n_sequences("train") == 10
    assert ("stored as bfloat16" in capsys.readouterr().err) == (dtype == "bfloat16")
    tokens_BT = store.batch("train", [0]).tokens_BT
    x_TD = models.residual(world.model(), tokens_BT, 1)[0]
    kept_TD = store.batch("train", [0]).x_BTD[0] / store.scale
    torch.testing.assert_close(kept_TD, x_TD, rtol=2**-8, atol=1e-4)


def test_a_gguf_file_is_converted_once(tmp_path, corpus, monkeypatch):
    file = tiny_gguf.write(tmp_path / "tiny.gguf")
    options = {"model": file, "text": corpus, "cache_dir": tmp_path / "cache"}
    first = worlds.build("local", tmp_path / "w", **options)
    assert (first.n_layers, first.d_model) == (tiny_gguf.N_LAYERS, tiny_gguf.D_MODEL)
    assert "".join(first.to_strings(first.encode("the path"))) == "the path"
    monkeypatch.setattr(model_folders, "convert_gguf", None)
    assert worlds.build("local", tmp_path / "w2", **options).fingerprint == first.fingerprint
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(20))
    monkeypatch.undo()
    for name, line in [
        ("bad", r"cannot be read as GGUF \(.*\); copy it"),
        ("no", "does not exist"),
    ]:
        with pytest.raises(WorldError, match=line):
            worlds.build("local", tmp_path / "w3", **options | {"model": tmp_path / f"{name}.gguf"})
    assert not (tmp_path / "w3").exists()


def test_an_architecture_that_is_not_bridged_gives_one_line(tmp_path, monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    def unknown(*_, **__):
        raise ValueError("Unsupported architecture: MambaForCausalLM")

    folder = save(MambaForCausalLM(MambaConfig(**SMALL)), tmp_path / "model")
    monkeypatch.setattr(TransformerBridge, "boot_transformers", unknown)
    with pytest.raises(
        WorldError, match="knows no model of type mamba .*; give a model of another"
    ):
        models.boot(folder)
