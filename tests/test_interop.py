"""SAELens and SAEBench: what is written, by hand, and what is read back."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsae import interop, saes
from tsae.errors import CheckpointError

D, F, K, SCALE = 6, 20, 4, 0.25


def made(variant, seed=0, **options):
    """A fresh SAE with biases and thresholds that matter, as if trained on a store."""
    torch.manual_seed(seed)
    sae = saes.build(variant, d_in=D, d_sae=F, k=K, **options)
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.3)
        sae.b_dec.normal_(0, 0.5)
        for part in getattr(sae.act, "parts", [sae.act]):
            if hasattr(part, "threshold"):
                part.threshold.fill_(0.4)
            if hasattr(part, "log_threshold"):
                part.log_threshold.uniform_(-2, 0)
    sae.meta = {"scale": SCALE, "layer": 3, "world": "gpt2", "fingerprint": "f"}
    return sae.eval()


def raw(*shape):
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(7)) * 4


def by_saelens(directory, x):
    """Codes and reconstruction as SAELens defines them, from the files alone."""
    config = json.loads((directory / "cfg.json").read_text())
    w = load_file(directory / "sae_weights.safetensors")
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    z = pre.relu()
    if config["architecture"] == "topk":
        values, cols = z.topk(config["k"], dim=-1)
        z = torch.zeros_like(z).scatter(-1, cols, values)
    if config["architecture"] == "jumprelu":
        z = z * (pre > w["threshold"])
    return z, z @ w["W_dec"] + w["b_dec"], config


STATIC = {"l1": "standard", "topk": "topk", "batchtopk": "jumprelu", "jumprelu": "jumprelu"}


@pytest.mark.parametrize("variant", sorted(STATIC))
def test_a_static_sae_is_exported_exactly(tmp_path, variant):
    sae, x = made(variant), raw(2, 5)
    interop.save_saelens(sae, tmp_path / "out")
    z, x_hat, config = by_saelens(tmp_path / "out", x)
    out = sae(SCALE * x)
    torch.testing.assert_close(z, out.z / SCALE)
    torch.testing.assert_close(x_hat, out.x_hat / SCALE)
    assert config["architecture"] == STATIC[variant]
    assert config["normalize_activations"] == "none" and config["apply_b_dec_to_input"] is True
    assert config["metadata"]["tsae_approximation"] is None
    assert config["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert config["metadata"]["model_name"] == "gpt2"
    assert config["metadata"]["sae_lens_version"] == "6.0.0"


STORE = SimpleNamespace(scale=SCALE, d_model=D, world="gpt2", layer=3, fingerprint="f")


@pytest.mark.parametrize("variant", sorted(STATIC))
def test_what_was_exported_comes_back(tmp_path, variant):
    sae, x = made(variant), raw(2, 5)
    interop.save_saelens(sae, tmp_path / "out")
    bare, fitted = (
        interop.load_saelens(tmp_path / "out"),
        interop.load_saelens(tmp_path / "out", STORE),
    )
    torch.testing.assert_close(bare.encode(x), sae.encode(SCALE * x) / SCALE)
    torch.testing.assert_close(fitted.encode(SCALE * x), sae.encode(SCALE * x))
    torch.testing.assert_close(fitted(SCALE * x).x_hat, sae(SCALE * x).x_hat)
    assert fitted.cfg.k == K and fitted.meta["fingerprint"] == "f" and not fitted.training
    fitted.save(tmp_path / "kept")
    again = saes.load(tmp_path / "kept")
    assert torch.equal(again.encode(x), fitted.encode(x)) and again.meta["layer"] == 3


def test_groups_that_share_one_threshold_each_are_exact(tmp_path):
    sae, x = made("conv", act="batchtopk", window=1, nested=False), raw(3, 4)
    for value, part in zip((0.1, 0.4, 0.8), sae.act.parts, strict=True):
        part.threshold.fill_(value)
    interop.save_saelens(sae, tmp_path / "out")
    z, _, config = by_saelens(tmp_path / "out", x)
    torch.testing.assert_close(z, sae.encode(SCALE * x) / SCALE)
    thresholds = load_file(tmp_path / "out" / "sae_weights.safetensors")["threshold"] * SCALE
    assert sorted({round(value, 4) for value in thresholds.tolist()}) == [0.1, 0.4, 0.8]
    assert config["metadata"]["tsae_approximation"] is None


@pytest.mark.parametrize(("rank", "gate"), [(None, "none"), (2, "hard"), (2, "learned")])
def test_a_window_is_folded_as_if_the_residual_stood_still(tmp_path, rank, gate):
    sae = made("conv", act="relu", window=4, lag_rank=rank, gate=gate, group_shares=(1.0,))
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            if name.endswith("_lag"):
                weight.normal_(0, 0.3)
    x = raw(2, 1).expand(2, 9, D)
    interop.save_saelens(sae, tmp_path / "out")
    z, _, config = by_saelens(tmp_path / "out", x)
    true = sae.encode(SCALE * x) / SCALE
    torch.testing.assert_close(z[:, 3:], true[:, 3:])  # the window is full
    assert not torch.allclose(z[:, 0], true[:, 0])
    assert config["metadata"]["tsae_approximation"] == (
        "the window of 4 tokens is read at the current token alone"
    )


STATIC_PART = ("W_enc", "W_dec", "b_enc", "b_dec")
TEMPORAL = ["lstm", "predictive", "causal", "glta"]
ADDED = "only the static part is kept: what other tokens add is left out"


@pytest.mark.parametrize("variant", TEMPORAL)
def test_of_other_temporal_encoders_the_static_part_goes_out(tmp_path, variant):
    sae, x = made(variant, **({"feedback": True} if variant == "causal" else {})), raw(2, 5)
    with torch.no_grad():  # as after training, when the temporal part is no longer silent
        for name, weight in sae.named_parameters():
            if name not in STATIC_PART:
                weight.add_(torch.randn_like(weight))
    static = made("topk")
    static.load_state_dict({name: getattr(sae, name) for name in STATIC_PART}, strict=False)
    interop.save_saelens(sae, tmp_path / "out")
    z, _, config = by_saelens(tmp_path / "out", x)
    torch.testing.assert_close(z, static.encode(SCALE * x) / SCALE)
    assert config["metadata"]["tsae_approximation"] == ADDED


def test_shares_of_groups_are_lost_and_a_window_of_one_loses_nothing_else(tmp_path):
    interop.save_saelens(made("conv", window=1, nested=False), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "cfg.json").read_text())
    lost = config["metadata"]["tsae_approximation"]
    assert lost == "groups do not reserve their shares of k"


@pytest.mark.parametrize("act", ["topk", "jumprelu"])
def test_of_rounds_one_goes_out(tmp_path, act):
    sae, x = made("rounds", act=act), raw(2, 5)
    first = made(act)
    first.load_state_dict({name: getattr(sae, name) for name in STATIC_PART}, strict=False)
    interop.save_saelens(sae, tmp_path / "out")
    z, _, config = by_saelens(tmp_path / "out", x)
    torch.testing.assert_close(z, first.encode(SCALE * x) / SCALE)
    assert config["metadata"]["tsae_approximation"].startswith("one round of selection is kept")


def write_saelens(directory, tensors=(), **config):
    directory.mkdir(exist_ok=True)
    config = {"architecture": "topk", "k": 2, "d_in": D, "d_sae": F} | config
    (directory / "cfg.json").write_text(json.dumps(config))
    if tensors:
        save_file(tensors, directory / "sae_weights.safetensors")
    return directory


def foreign():
    """Weights as another trainer leaves them: rows of any norm."""
    g = torch.Generator().manual_seed(3)
    sizes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}
    return {name: torch.randn(*size, generator=g) for name, size in sizes.items()}


def test_what_other_trainers_leave_is_folded_in(tmp_path):
    w, x = foreign(), raw(3)
    norm = w["W_dec"].norm(dim=1)
    pre = (x @ w["W_enc"] + w["b_enc"]) * norm
    values, cols = pre.relu().topk(2)
    z = torch.zeros_like(pre).scatter(1, cols, values)
    write_saelens(tmp_path / "a", w, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)
    sae = interop.load_saelens(tmp_path / "a")
    torch.testing.assert_close(sae.encode(x[:, None])[:, 0], z)
    torch.testing.assert_close(sae.decode(z), (z / norm) @ w["W_dec"] + w["b_dec"])
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(F))

    thresholds = torch.linspace(-0.5, 1.0, F)
    write_saelens(tmp_path / "b", w | {"threshold": thresholds}, architecture="jumprelu")
    sae = interop.load_saelens(tmp_path / "b")
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    torch.testing.assert_close(sae.encode(x[:, None])[:, 0], pre.relu() * (pre > thresholds))

    bar = {"topk_threshold": torch.tensor(0.7, dtype=torch.float64)}
    write_saelens(tmp_path / "c", w | bar, architecture="batchtopk", k=2.0)
    sae = interop.load_saelens(tmp_path / "c")
    torch.testing.assert_close(sae.encode(x[:, None])[:, 0], pre * (pre > 0.7))


def test_topk_of_saelens_5_is_topk(tmp_path):
    w, x = foreign(), raw(3)
    five = {"architecture": "standard", "activation_fn_kwargs": {"k": 5}, "d_in": D, "d_sae": F}
    five |= {"activation_fn_str": "topk", "normalize_activations": None}
    write_saelens(tmp_path / "a", w)
    (tmp_path / "a" / "cfg.json").write_text(json.dumps(five))
    sae = interop.load_saelens(tmp_path / "a")
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    values, cols = pre.topk(5)
    z = torch.zeros_like(pre).scatter(1, cols, values.relu())
    assert sae.name == "topk" and sae.cfg.k == 5
    torch.testing.assert_close(sae.encode(x[:, None])[:, 0], z)


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_fine_tuned_scaling_factors_of_saelens_5_are_folded_in(tmp_path, name):
    w, x = foreign(), raw(3)
    factor = torch.linspace(0.5, 2.0, F)
    options = {"architecture": "standard", "finetuning_scaling_factor": True}
    sae = interop.load_saelens(write_saelens(tmp_path / "a", w | {name: factor}, **options))
    z = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(sae(x[:, None]).x_hat[:, 0], (z * factor) @ w["W_dec"] + w["b_dec"])
    torch.testing.assert_close(sae.encode(x[:, None])[:, 0], z)


@pytest.mark.parametrize(
    ("config", "tensors", "line"),
    [
        ({"architecture": "gated"}, foreign(), "is a 'gated' SAE; those that can be read are"),
        ({"normalize_activations": "layer_norm"}, foreign(), "normalize_activations='layer_norm'"),
        ({"k": None}, foreign(), "k=None is not a number"),
        ({"architecture": "batchtopk", "k": None}, foreign(), "k=None is not a number"),
        (
            {"architecture": "standard", "activation_fn_str": "tanh-relu"},
            foreign(),
            "its activation function 'tanh-relu' has no like here",
        ),
        ({"normalize_activations": "layer_norm"}, foreign(), "no weights can hold: choose an SAE"),
        ({"normalize_activations": "constant_norm_rescale"}, foreign(), "fold that into its"),
        ({"d_sae": F + 1}, foreign(), "W_enc has shape .6, 20., not .6, 21.+; copy it again"),
        ({}, {"W_enc": torch.zeros(D, F)}, "cannot be read .'W_dec'.; copy it again"),
        ({}, {}, "has no sae_weights.safetensors; copy it again"),
        ({"architecture": ["topk"]}, foreign(), "is a .'topk'. SAE; those that can be read are"),
        ({"k": "many"}, foreign(), "cannot be read .k='many' is not a number"),
        ({"d_in": None}, foreign(), "cannot be read .*; copy it again"),
        ({}, foreign() | {"b_dec": torch.full((D,), torch.nan)}, "b_dec holds NaN"),
    ],
)
def test_directories_that_cannot_be_read(tmp_path, config, tensors, line):
    write_saelens(tmp_path / "a", tensors, **config)
    with pytest.raises(CheckpointError, match=line):
        interop.load_saelens(tmp_path / "a")


def test_foreign_and_damaged_directories(tmp_path):
    with pytest.raises(CheckpointError, match="cfg.json does not exist"):
        interop.load_saelens(tmp_path)
    (tmp_path / "cfg.json").write_text('{"model": 1}')
    with pytest.raises(CheckpointError, match="cfg.json/cfg.json does not exist"):
        interop.load_saelens(tmp_path / "cfg.json")
    with pytest.raises(CheckpointError, match="is not a SAELens directory"):
        interop.load_saelens(tmp_path)
    write_saelens(tmp_path, foreign())
    weights = tmp_path / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="cannot be read .*; copy it again"):
        interop.load_saelens(tmp_path)
    write_saelens(tmp_path, foreign())
    other = SimpleNamespace(**(vars(STORE) | {"d_model": 8}))
    with pytest.raises(CheckpointError, match="reads 6 dimensions, the store has 8"):
        interop.load_saelens(tmp_path, other)
    with pytest.raises(ValueError, match="sae.training is True; allowed is an SAE in eval mode"):
        interop.save_saelens(made("topk").train(), tmp_path / "out")


# ---- SAEBench -----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["topk", "conv", "lstm"])
def test_the_bench_sees_sequences_in_raw_units(variant):
    sae, x = made(variant), raw(2, 7)
    bench = interop.BenchSAE(sae, context_size=7)
    z = bench.encode(x)
    torch.testing.assert_close(z, sae.encode(SCALE * x) / SCALE)
    torch.testing.assert_close(bench(x), sae.decode(SCALE * z) / SCALE)
    torch.testing.assert_close(bench.encode(x[:, 0]), z[:, 0])  # each row begins a document
    assert bench.check_decoder_norms()
    assert (bench.cfg.hook_name, bench.cfg.model_name) == ("blocks.3.hook_resid_post", "gpt2")
    assert bench.cfg.to_dict()["d_sae"] == F == bench.W_enc.shape[1]


def test_a_massive_token_stays_out_of_its_neighbours_context():
    sae, x = made("conv", window=4, gate="none"), raw(1, 6)
    far = x.clone()
    x[0, 2], far[0, 2] = 1e4, 2e4
    bench = interop.BenchSAE(sae, massive_norm=1e3)
    z, z_far = bench.encode(x), bench.encode(far)
    torch.testing.assert_close(z[0, [0, 1, 3, 4, 5]], z_far[0, [0, 1, 3, 4, 5]])
    torch.testing.assert_close(z[0, 2], bench.encode(x[0, 2:3])[0])
    assert (z[0, 2] > 0).any()


def test_the_bench_follows_dtype_and_keeps_its_weights():
    bench = interop.BenchSAE(made("topk")).to(device="cpu", dtype=torch.bfloat16)
    assert bench.dtype == torch.bfloat16 and bench.cfg.dtype == "bfloat16"
    assert bench.W_dec.dtype == torch.float32
    z = bench.encode(raw(2, 3).bfloat16())
    assert z.dtype == bench.decode(z).dtype == torch.bfloat16
