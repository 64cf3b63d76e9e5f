"""Dictionaries to take home: what is exported is what is loaded, in raw units."""

import hashlib

import pandas as pd
import pytest
import torch

import tsae
from lab.runs import pretrained
from tsae import dictionaries, saes
from tsae.errors import CheckpointError

ROWS = pd.DataFrame(
    [
        ("made", "topk", 0, "", "own", "fve", "all", 0.5),
        ("made", "topk", 0, "", "own", "ap", "document:domain", 0.25),
        ("made", "topk", 1, "", "own", "fve", "all", 0.9),
        ("made", "topk", 0, "", "ema", "ap", "document:domain", 0.8),
    ],
    columns=["world", "variant", "seed", "ablation", "reading", "metric", "group", "value"],
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(dictionaries, "FOLDER", tmp_path / "pretrained")
    monkeypatch.setitem(pretrained.LICENCES, "made", "MIT")
    return tmp_path / "pretrained"


@pytest.mark.parametrize("variant", ["topk", "slowfast"])
def test_a_dictionary_comes_home(variant, tmp_path, folder):
    torch.manual_seed(0)
    sae = saes.build(variant, d_in=8, d_sae=32, k=8)
    run = {"train.steps": 10, "train.batch_tokens": 200}
    sae.meta = {"scale": 0.5, "layer": 3, "world": "made", "fingerprint": "f" * 64, "run": run}
    sae.save(tmp_path / "stage")
    pretrained.export(tmp_path / "stage", "made", ROWS, folder / "made" / variant, hub=True)
    assert dictionaries.available() == [f"made/{variant}"]
    loaded = tsae.load(f"made/{variant}")
    x = torch.randn(2, 5, 8)
    halved = sae.half().float().eval()
    torch.testing.assert_close(loaded.encode(2 * x), halved.encode(x))
    z = halved.encode(x)
    torch.testing.assert_close(loaded.decode(z), 2 * halved.decode(z))
    weights = (folder / "made" / variant / "sae.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in loaded.card and "2,000 tokens" in loaded.card
    if variant == "topk":
        lines = [line for line in loaded.card.splitlines() if line.startswith("| ")]
        assert lines[2:] == ["| FVE | 0.500 |", "| AP of domain | 0.250 |"]
    assert (folder / "made" / variant / "saelens" / "cfg.json").exists()


def test_a_name_that_is_not_there_lists_those_that_are(folder):
    with pytest.raises(CheckpointError, match="this installation has none"):
        tsae.load("smollm2/topk")
    sae = saes.build("topk", d_in=4, d_sae=8, k=2)
    sae.save(folder / "made" / "topk")
    with pytest.raises(CheckpointError, match="no dictionary 'topk' .* there are made/topk"):
        tsae.load("topk")


def test_without_a_finished_run_one_line_says_what_to_do(tmp_path, capsys):
    assert pretrained.main(["--results", str(tmp_path)]) == 2
    assert "make it with ./run_all.sh" in capsys.readouterr().err
