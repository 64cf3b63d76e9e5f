"""models.py: what is read at a layer, what an edit there does, and what is refused."""

import json

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from tsae import models
from tsae.errors import WorldError
from tsae.kernels.linear import fast_linear

LAYERS = range(tiny_models.N_LAYERS)


@pytest.fixture(scope="module", params=sorted(tiny_models.CONFIGS))
def model(request, tmp_path_factory):
    folder = tiny_models.save(tmp_path_factory.mktemp("models") / request.param, request.param)
    return models.boot(folder)


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def llama(llama_folder):
    return models.boot(llama_folder)


@pytest.fixture
def tokens_BT():
    return torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1))


def same(x):
    return x


def hook_values(model, tokens_BT):
    """The residual at every layer, from hooks in one full run."""
    seen = {}

    def keep(x_BTD, hook):
        seen[hook.name] = x_BTD

    names = [f"blocks.{layer}.hook_out" for layer in LAYERS]
    hooks = [(name, keep) for name in names]
    with torch.no_grad(), fast_linear():
        model.run_with_hooks(tokens_BT, fwd_hooks=hooks, prepend_bos=False)
    return [seen[name] for name in names]


def test_residual_is_the_hook_value_of_a_full_run(model, tokens_BT):
    for layer, expected_BTD in zip(LAYERS, hook_values(model, tokens_BT), strict=True):
        x_BTD = models.residual(model, tokens_BT, layer)
        assert x_BTD.shape == (2, 12, tiny_models.D_MODEL)
        torch.testing.assert_close(x_BTD, expected_BTD, rtol=0, atol=0)
        assert not x_BTD.requires_grad


@pytest.mark.parametrize("layer", LAYERS)
def test_residual_computes_no_logits(model, tokens_BT, layer):
    ran = []

    def note(x, hook):
        ran.append(hook.name)

    with model.hooks(fwd_hooks=[("unembed.hook_out", note)]):
        models.residual(model, tokens_BT, layer)
        assert ran == []
        models.logits(model, tokens_BT)
        assert ran == ["unembed.hook_out"]


@pytest.mark.parametrize("layer", LAYERS)
def test_identity_edit_changes_nothing(model, tokens_BT, layer):
    expected = models.logits(model, tokens_BT)
    assert expected.shape == (2, 12, tiny_models.VOCABULARY)
    got = models.logits_with(model, tokens_BT, layer, same)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_an_edit_acts_forward_in_time_only(model, tokens_BT, layer):
    def edit(x_BTD):
        x_BTD = x_BTD.clone()
        x_BTD[:, 7] += torch.linspace(-1, 1, x_BTD.shape[-1])
        return x_BTD

    before = models.logits(model, tokens_BT)
    after = models.logits_with(model, tokens_BT, layer, edit)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert (after[:, 7] - before[:, 7]).abs().max() > 1e-3


def test_logits_of_a_zero_residual_are_zero(llama, tokens_BT):
    # RMSNorm(0) = 0 and the unembedding has no bias.
    got = models.logits_with(llama, tokens_BT, tiny_models.N_LAYERS - 1, torch.zeros_like)
    assert got.abs().max() == 0


def test_splicing_in_the_residual_of_other_tokens_gives_their_logits(llama, tokens_BT):
    other_BT = tokens_BT.flip(1)
    for layer in LAYERS:
        x_BTD = models.residual(llama, other_BT, layer)
        got = models.logits_with(llama, tokens_BT, layer, lambda _, x_BTD=x_BTD: x_BTD)
        torch.testing.assert_close(got, models.logits(llama, other_BT), rtol=0, atol=1e-6)
        from_there = models.logits_from(llama, tokens_BT, layer, x_BTD)
        torch.testing.assert_close(from_there, got, rtol=0, atol=1e-6)


def test_hooks_are_gone_afterwards(llama, tokens_BT):
    before = models.logits(llama, tokens_BT)
    models.logits_with(llama, tokens_BT, 0, torch.zeros_like)
    models.residual(llama, tokens_BT, tiny_models.N_LAYERS - 1)
    with pytest.raises(ZeroDivisionError):
        models.logits_with(llama, tokens_BT, 0, lambda x: 1 / 0)
    torch.testing.assert_close(models.logits(llama, tokens_BT), before, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [99, 3, -1, 1.0, True, "1"])
def test_a_layer_that_is_not_there(llama, tokens_BT, layer):
    line = f"layer {layer!r} does not exist: llama has layers 0..2."
    for call in (
        lambda: models.check_layer(llama, layer),
        lambda: models.residual(llama, tokens_BT, layer),
        lambda: models.logits_with(llama, tokens_BT, layer, same),
    ):
        with pytest.raises(WorldError) as caught:
            call()
        assert str(caught.value) == line


def test_inputs_of_a_wrong_shape(llama, tokens_BT):
    with pytest.raises(ValueError, match=r"tokens are torch.int64 of shape \(2,\)"):
        models.logits(llama, tokens_BT[:, 0])
    with pytest.raises(ValueError, match="tokens are torch.float32"):
        models.residual(llama, tokens_BT.float(), 0)
    with pytest.raises(ValueError, match=r"edit returned shape \(2, 11, 16\); allowed is"):
        models.logits_with(llama, tokens_BT, 0, lambda x_BTD: x_BTD[:, 1:])


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def drop_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def unknown_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nobody"}))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (truncate, "cannot be read"),
        (drop_a_tensor, r"lack 1 tensors of the model, .*layers\.1\.mlp\.up_proj\.weight first"),
        (unknown_architecture, "no model that transformers knows"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no readable tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "no readable tokenizer"),
    ],
)
def test_a_spoilt_folder_gives_one_line(tmp_path, spoil, line):
    folder = tiny_models.save(tmp_path / "model")
    spoil(folder)
    with pytest.raises(WorldError, match=line) as caught:
        models.boot(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
