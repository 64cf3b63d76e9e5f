"""What a caller may hand an SAE, and the sentence that he gets for the rest."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_saes import CASES, build, text

from tsae import interop, saes
from tsae.errors import CheckpointError, UserError
from tsae.saes import SequenceContext


@pytest.mark.parametrize(("name", "act", "options"), CASES)
def test_a_masked_token_may_hold_anything(name, act, options):
    """NaN and 1e30 there change neither a term of the loss nor a gradient, in any phase."""
    x, context = text(B=4)
    for phase in build(name, act, options).phases():
        found = []
        for filler in (0.0, torch.nan, 1e30):
            sae = build(name, act, options).train()
            sae.start_step(5, 10, phase)
            torch.manual_seed(3)
            terms = sae.loss(x.masked_fill(~context.mask_BT[..., None], filler), context)
            terms["total"].backward()
            gradients = {n: p.grad for n, p in sae.named_parameters() if p.grad is not None}
            found.append((terms, gradients))
        for terms, gradients in found[1:]:
            for now, then in ((terms, found[0][0]), (gradients, found[0][1])):
                assert now.keys() == then.keys()
                for key in now:
                    assert torch.equal(now[key], then[key]), (phase.name, key)


def test_a_mask_of_zeros_and_ones_is_a_mask():
    sae = build("conv", "topk", {"consistency": "cosine"}).train()
    x, context = text()
    terms = sae.loss(x, context)
    for dtype in (torch.int64, torch.float32):
        again = sae.loss(x, SequenceContext(context.mask_BT.to(dtype), context.boundary_BT))
        assert torch.equal(again["total"], terms["total"])
    whole = context.boundary_BT.long()
    assert torch.equal(sae.loss(x, SequenceContext(context.mask_BT, whole))["l0"], terms["l0"])


BAD_CONTEXTS = {
    "mask_BT must be True or 1": lambda mask, boundary: (mask.long() * 2, boundary),
    "mask_BT must be .*": lambda mask, boundary: (torch.where(mask, 0.0, -torch.inf), boundary),
    "boundary_BT .torch.bool. must hold the level": lambda mask, boundary: (mask, boundary > 2),
    "boundary_BT .torch.float32. must": lambda mask, boundary: (mask, boundary.float()),
    "boundary_BT .torch.int64. must": lambda mask, boundary: (mask, boundary.long() - 1),
}


@pytest.mark.parametrize("needle", BAD_CONTEXTS)
def test_contexts_that_mean_something_else_are_refused(needle):
    x, context = text()
    with pytest.raises(ValueError, match=needle):
        build("topk", "topk", {}).encode(x, SequenceContext(*BAD_CONTEXTS[needle](*context)))


@pytest.mark.parametrize(
    ("x", "needle"),
    [
        (np.zeros((2, 3, 8)), "x is a ndarray; give a tensor"),
        (torch.zeros(2, 3, 8, dtype=torch.float64), "x is torch.float64, this SAE torch.float32"),
        (torch.zeros(2, 0, 8), r"x has shape \(2, 0, 8\).* at least one token"),
        (torch.zeros(2, 3, 8, device="meta"), "x is on meta, this SAE on cpu"),
    ],
)
def test_inputs_of_another_kind_are_named(x, needle):
    with pytest.raises(ValueError, match=needle):
        build("topk", "topk", {}).encode(x)


@pytest.mark.parametrize("name", saes.names())
def test_half_precision_encodes_and_says_that_losses_need_float32(name):
    sae = saes.build(name, d_in=8, d_sae=24, k=6).to(torch.bfloat16).eval()
    x = text()[0].bfloat16()
    z = sae.encode(x)
    assert z.dtype == torch.bfloat16 and z.isfinite().all()
    with pytest.raises(ValueError, match=r"losses need float32, this SAE is torch.bfloat16"):
        sae.loss(x)


@pytest.mark.parametrize("name", saes.names())
def test_a_stream_refuses_another_number_of_texts(name):
    stream = saes.build(name, d_in=8, d_sae=24, k=6).eval().stream(3)
    for rows in (torch.zeros(1, 8), torch.zeros(8), torch.zeros(3, 7)):
        with pytest.raises(ValueError, match=r"this stream reads \[3, 8\]"):
            stream.step(rows)


@pytest.mark.parametrize("name", [n for n in saes.names() if n not in ("l1", "topk", "jumprelu")])
def test_untrained_batchtopk_keeps_k_latents_of_a_token(name):
    torch.manual_seed(0)
    sae = saes.build(name, d_in=8, d_sae=24, k=6, act="batchtopk").eval()
    assert (sae.encode(text()[0]) > 0).sum(-1).max() == 6


@pytest.mark.parametrize("name", ["l1", "jumprelu"])
def test_the_plain_loop_pays_for_its_codes(name):
    """Nobody calls ``start_step``; the sparsity term is there all the same."""
    torch.manual_seed(0)
    sae = saes.build(name, d_in=8, d_sae=24, k=6, l1=1.0)
    plain = float(sae.loss(text()[0])["sparsity"].detach())
    sae.start_step(0, 100)
    assert plain > 0 and float(sae.loss(text()[0])["sparsity"].detach()) == 0


def test_the_readmes_loop_trains_and_keeps_the_norms(tmp_path, monkeypatch):
    """The Python of the README as it stands there, on batches of 5 sequences."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = next(c for c in re.findall("```python\\n(.*?)```", text, re.S) if "saes.build" in c)
    torch.manual_seed(0)
    batches = torch.randn(20, 5, 6, 768) + torch.randn(768)
    names = {"batches": batches}
    exec(code.replace("d_sae=6144, k=32", "d_sae=96, k=8"), names)
    sae, x = names["sae"], batches[0]
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(96))
    fresh = saes.build("conv", d_in=768, d_sae=96, k=8).eval()
    assert float(sae.loss(x)["mse"].detach()) < float(fresh.loss(x)["mse"].detach())
    assert torch.equal(saes.load("my_sae").encode(x), sae.encode(x))


# ---- folders --------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["sae", "saelens"])
def test_a_folder_that_holds_other_files_is_never_replaced(tmp_path, write):
    sae, folder = saes.build("topk", d_in=8, d_sae=24, k=4).eval(), tmp_path / "my_project"
    save = {"sae": sae.save, "saelens": lambda place: interop.save_saelens(sae, place)}[write]
    save(folder)
    save(folder)  # its own files it may replace
    (folder / "thesis.tex").write_text("three years")
    with pytest.raises(UserError, match="my_project holds thesis.tex, which writing there would"):
        save(folder)
    assert (folder / "thesis.tex").read_text() == "three years" and len([*tmp_path.iterdir()]) == 1
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="is a file; give the path of a directory"):
        save(tmp_path / "file")


def test_a_missing_tensor_is_named(tmp_path):
    build("conv", "topk", {"window": 4}).save(tmp_path / "sae")
    weights = tmp_path / "sae" / "sae.safetensors"
    tensors = load_file(weights)
    save_file({n: t for n, t in tensors.items() if n != "B_lag"}, weights)
    with pytest.raises(CheckpointError, match="tensor B_lag is missing"):
        saes.load(tmp_path / "sae")
    save_file(tensors | {"A_lag": tensors["A_lag"][:, 1:].contiguous()}, weights)
    with pytest.raises(CheckpointError, match=r"A_lag has shape \(8, 23\), not \(8, 24\)"):
        saes.load(tmp_path / "sae")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_loading_onto_a_gpu_that_is_not_there_says_so(tmp_path):
    build("topk", "topk", {}).save(tmp_path / "sae")
    with pytest.raises(UserError, match="torch sees no GPU here: use device='cpu'"):
        saes.load(tmp_path / "sae", device="cuda")
