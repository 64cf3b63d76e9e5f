"""The three laws and the contract, over every registered variant and activation."""

import pytest
import torch

from tsae import saes
from tsae.errors import CheckpointError
from tsae.saes import SequenceContext
from tsae.saes.encoding import Tokens

ACTS = ("relu", "topk", "batchtopk", "jumprelu")
FIXED = {"l1": "relu", "topk": "topk", "batchtopk": "batchtopk", "jumprelu": "jumprelu"}
OPTIONS = {
    "hierarchical": [
        {"scope": "token"},
        {"ratio": 4, "k2": 2, "act2": "topk", "levels": 3, "prior": 2.0},
        {"ratio": 6, "act2": "jumprelu", "scope": "sentence"},
    ],
    "lstm": [
        {"hidden": 6, "memory": 3, "rank": 4, "price": 0.1},
        {"hidden": 5, "memory": 0, "predict": 0.0, "decoder": "lstm"},
        {"hidden": 0, "memory": 4, "rank": 3, "negatives": 20},
    ],
    "causal": [
        {"rank": 3, "pairs": 2000},
        {"rank": 3, "pairs": 2000, "feedback": True, "window": 3, "successors": 5},
        {"rank": 3, "feedback": True, "bits": 32},
    ],
    "conv": [
        {"window": 3, "lag_rank": 2},
        {"window": 4, "lag_rank": None, "gate": "none"},
        {"window": 4, "lag_rank": 3, "gate": "learned", "consistency": "cosine", "nested": False},
        {"window": 2, "lag_rank": None, "consistency": "cosine"},
    ],
    "rounds": [{}, {"rounds": (0.25, 0.5, 0.25), "correct": False}],
    "slowfast": [
        {"slow_shares": (0.25, 0.25), "slow_k": (0.25, 0.25), "blocks": (0.4, 0.6)},
        {"slow_shares": (0.3,), "slow_k": (0.5,), "learn_decays": True, "target": "next"},
        {"slow_shares": (0.4,), "slow_k": (0.25,), "hold": 0.5, "priors": (3.0,)},
    ],
    "txc": [{"window": 3}, {"window": 1}],
    "stacked": [{"window": 3}],
    "matryoshka": [{}, {"blocks": (0.25, 0.75), "prefix_weights": (0.3, 0.7)}],
    "contrastive": [{}, {"similarity": "cosine", "pairs": 20}, {"partner": "earlier"}],
    "predictive": [{}, {"n_heads": 2, "query_width": 4, "value_width": 6, "window": 3}],
    "glta": [
        {"theta": 0.3, "tau": "learned", "objective": "predict"},
        {"theta": -0.3, "scope": "feature", "tau": "learned", "objective": "price", "feed": "relu"},
        {"theta": 0.3, "tau": "decay"},
        {"theta": 0.3, "variance_scaling": False, "objective": "reconstruct"},
        {"theta": 0.3, "train_adaptation": False, "objective": "price"},
    ],
}
STATIC_PARENT = {
    "causal": {"feedback": False},
    "conv": {"window": 1, "group_shares": (1.0,), "consistency": "none"},
    "hierarchical": {"levels": 1},
    "lstm": {"hidden": 0, "memory": 0, "price": 0.0},
    "rounds": {"rounds": (1.0,), "correct": False},
    "slowfast": {"slow_shares": (), "rounds": (1.0,), "correct": False},
    "txc": {"window": 1},
    "stacked": {"window": 1},
    "matryoshka": {"blocks": (1.0,)},
    "contrastive": {"blocks": (1.0,), "prefix_weights": (1.0,), "alpha": 0.0},
    "predictive": {"n_heads": 0},
    "glta": {"theta": 0.0, "train_adaptation": False, "objective": "predict"},
}
CASES = [
    pytest.param(name, act, options, id=f"{name}-{act}-{i}")
    for name in saes.names()
    for act in ([FIXED[name]] if name in FIXED else ACTS)
    for i, options in enumerate(OPTIONS.get(name, [{}]))
]


def build(name, act, options, seed=0, **more):
    torch.manual_seed(seed)
    sae = saes.build(name, d_in=8, d_sae=24, k=4, act=act, **{**options, **more})
    with torch.no_grad():  # no law should hold only because a weight is still at its start
        for parameter in sae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sae.finish_step()
    if act == "batchtopk":
        sae.train()
        sae.encode(torch.randn(4, 16, 8))
    return sae.eval()


def text(seed=1, B=3, T=14):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, 8, generator=g)
    boundary = torch.zeros(B, T, dtype=torch.uint8)
    boundary[:, 0], boundary[:, 4], boundary[:, 7], boundary[:, 9] = 3, 1, 3, 2
    mask = torch.rand(B, T, generator=g) > 0.15
    return x, SequenceContext(mask, boundary)


def check_laws(sae):
    """Codes read the past of their document alone, no invalid token, and stream as they encode."""
    x, context = text()
    z = sae.encode(x, context)
    future, other_document, neighbours, massive = (x.clone() for _ in range(4))
    future[:, 10:] += 5.0
    other_document[:, :7] = 9.0
    neighbours[1] = -3.0
    massive[~context.mask_BT] = 1e4
    assert torch.equal(sae.encode(future, context)[:, :10], z[:, :10])
    assert torch.equal(sae.encode(other_document, context)[:, 7:], z[:, 7:])
    torch.testing.assert_close(sae.encode(neighbours, context)[0], z[0])
    assert z[~context.mask_BT].abs().max() == 0
    torch.testing.assert_close(sae.encode(massive, context), z)
    stream, boundary_BT, mask_BT = sae.stream(3), context.boundary_BT, context.mask_BT
    steps = [stream.step(x[:, t], boundary_BT[:, t], mask_BT[:, t]) for t in range(x.shape[1])]
    torch.testing.assert_close(torch.stack(steps, 1), z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "act", "options"), CASES)
def test_laws_of_every_variant(name, act, options):
    check_laws(build(name, act, options))


@pytest.mark.parametrize(("name", "act", "options"), CASES)
def test_further_levels_stream_and_are_causal(name, act, options):
    sae = build(name, act, options)
    x, context = text()

    def further(x):
        return sae.features(sae.encoding(Tokens(sae, x, sae.checked(x, context))))

    whole, future, other = further(x), x.clone(), x.clone()
    if not whole:
        return
    future[:, 10:] += 5.0
    other[:, :7] = 9.0
    stream = sae.stream(batch_size=3)
    steps = []
    for t in range(x.shape[1]):
        stream.step(x[:, t], context.boundary_BT[:, t], context.mask_BT[:, t])
        steps.append(stream.features)
    for level, h_NF in whole.items():
        h_BTF = h_NF.unflatten(0, x.shape[:2])
        streamed = torch.stack([step[level] for step in steps], 1)
        torch.testing.assert_close(streamed, h_BTF, atol=1e-5, rtol=1e-5)
        assert h_BTF[~context.mask_BT].abs().max() == 0 < h_BTF.abs().max()
        assert torch.equal(further(future)[level].view_as(h_BTF)[:, :10], h_BTF[:, :10])
        assert torch.equal(further(other)[level].view_as(h_BTF)[:, 7:], h_BTF[:, 7:])


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", sorted(STATIC_PARENT))
def test_reduces_to_its_static_parent(name, act):
    parent_name = {"relu": "l1"}.get(act, act)
    torch.manual_seed(0)
    parent = saes.build(parent_name, d_in=8, d_sae=24, k=4).eval()
    child = saes.build(name, d_in=8, d_sae=24, k=4, act=act, **STATIC_PARENT[name]).eval()
    missing = child.load_state_dict(parent.state_dict(), strict=False).missing_keys
    x, context = text()
    assert torch.equal(child.encode(x, context), parent.encode(x, context)), missing
    ours, theirs = child.loss(x, context), parent.loss(x, context)
    assert float(ours["total"].detach()) == pytest.approx(float(theirs["total"].detach()))


@pytest.mark.parametrize(("name", "act", "options"), CASES)
def test_contract(name, act, options, tmp_path):
    sae = build(name, act, options)
    x, context = text()
    out = sae(x, context)
    assert out.x_hat.shape == x.shape
    assert out.z.shape == out.pre.shape == (3, 14, 24)
    torch.testing.assert_close(out.x_hat, sum(out.beside.values(), sae.decode(out.z)))
    assert (out.z >= 0).all()
    if act == "topk":
        assert (out.z > 0).sum(-1).max() <= 4
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(24))
    ids = torch.cat(list(sae.groups.values())).sort().values
    assert torch.equal(ids, torch.arange(24))
    assert abs(sum(phase.share for phase in sae.phases()) - 1) < 1e-9
    sae.meta = {"world": "made"}
    sae.save(tmp_path / "sae")
    again = saes.load(tmp_path / "sae")
    assert again.name == name and again.cfg == sae.cfg and again.meta == sae.meta
    assert torch.equal(again.encode(x, context), out.z)


@pytest.mark.parametrize(("name", "act", "options"), CASES)
def test_gradients_reach_every_parameter_and_keep_the_norm(name, act, options):
    sae = build(name, act, options).train()
    sae.progress = 1.0
    x, context = text(B=6)
    sae.loss(x, context)["total"].backward()
    for parameter_name, parameter in sae.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().sum() > 0, parameter_name
    sae.project_gradients()
    along = (sae.W_dec.grad * sae.W_dec).sum(1)
    assert along.abs().max() < 1e-5


@pytest.mark.parametrize(("name", "act", "options"), CASES)
def test_sparse_loss_and_gradients_equal_the_dense_ones(name, act, options, monkeypatch):
    if act in ("relu", "jumprelu"):
        pytest.skip("dense by design")
    x, context = text(B=4)
    totals, gradients = [], []
    for dense in (False, True):
        sae = build(name, act, options).train()
        monkeypatch.setattr(type(sae), "dense_path", property(lambda _, dense=dense: dense))
        torch.manual_seed(5)
        total = sae.loss(x, context)["total"]
        total.backward()
        totals.append(float(total.detach()))
        gradients.append({n: p.grad.clone() for n, p in sae.named_parameters() if p.numel()})
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][parameter], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "act", "options"), CASES)
def test_loss_falls(name, act, options):
    sae = build(name, act, options).train()
    x, context = text(B=8)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
    history = []
    for step in range(60):
        sae.start_step(step, 60)
        terms = sae.loss(x, context)
        optimizer.zero_grad()
        terms["total"].backward()
        sae.project_gradients()
        optimizer.step()
        sae.finish_step()
        history.append(float(terms["mse"].detach()))
    assert history[-1] < 0.8 * history[0]


def test_aux_reaches_only_dead_latents():
    sae = build("topk", "topk", {}, dead_after=100).train()
    sae.idle_tokens[3] = 100
    with torch.no_grad():
        sae.b_enc[3] = -50.0
    x, context = text()
    terms = sae.loss(x, context)
    assert "aux" in terms
    with torch.no_grad():
        sae.b_enc[3] = -1.0
    sae.W_enc.grad = None
    sae.loss(x, context)["aux"].backward()
    reached = sae.W_enc.grad.abs().sum(0).nonzero()[:, 0].tolist()
    assert reached == [3]


@pytest.mark.parametrize("act", ["relu", "jumprelu"])
def test_sparsity_is_steered_to_k(act):
    torch.manual_seed(0)
    name = {"relu": "l1"}.get(act, act)
    sae = saes.build(name, d_in=8, d_sae=24, k=4, sparsity_warmup=0.05).train()
    x = torch.randn(32, 16, 8)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for step in range(800):
        sae.start_step(step, 800)
        terms = sae.loss(x)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        sae.finish_step()
    assert float(terms["l0"]) == pytest.approx(4, rel=0.2)


def test_batchtopk_keeps_k_per_token_on_average():
    sae = build("batchtopk", "batchtopk", {}).train()
    z = sae.encode(torch.randn(4, 32, 8))
    assert int((z > 0).sum()) == 4 * 4 * 32


def test_topk_by_hand():
    sae = saes.build("topk", d_in=2, d_sae=3, k=1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    x = torch.tensor([[[3.0, 1.0], [0.0, 1.0], [-2.0, 0.0]]])
    assert sae.encode(x).tolist() == [[[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]]
    assert sae(x).x_hat.tolist() == [[[3.0, 0.0], [0.0, 2.0], [-2.0, 0.0]]]
    # Errors: (0,1), (0,-1), (0,0): mean square over 6 numbers.
    assert float(sae.loss(x)["mse"].detach()) == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("name", "options", "needle"),
    [
        ("lstmm", {}, "choose one of"),
        ("topk", {"kk": 3}, "no option 'kk'"),
        ("topk", {"k": 0}, "k=0 is not allowed"),
        ("topk", {"k": 99}, "at most d_sae=24"),
        ("topk", {"act": "relu"}, "contradicts"),
        ("conv", {"act": "softmax"}, "one of relu"),
        ("conv", {"gate": "soft"}, "one of none, hard, learned"),
        ("conv", {"window": 0}, "window=0"),
        ("conv", {"group_shares": (0.5, 0.6)}, "sum to 1"),
        ("causal", {"alpha": 0.0}, "alpha=0.0"),
        ("causal", {"tau": -1.0}, "at least 0"),
        ("causal", {"bits": 16}, "8 or 32"),
        ("causal", {"tracked": 25}, "d_sae=24"),
        ("causal", {"window": 0}, "window=0"),
        ("matryoshka", {"blocks": (0.5, 0.6)}, "positive shares that sum to 1"),
        ("matryoshka", {"blocks": (0.1, 0.9), "prefix_weights": (1.0,)}, "2 numbers above 0"),
        ("matryoshka", {"blocks": (0.01,) * 100}, "at least one of 24 latents"),
        ("contrastive", {"blocks": (0.2, 0.3, 0.5)}, "high and low"),
        ("contrastive", {"similarity": "l2"}, "one of cosine, dot"),
        ("contrastive", {"partner": "next"}, "previous or earlier"),
        ("contrastive", {"pairs": 1}, "pairs=1"),
        ("predictive", {"n_heads": 5}, "a multiple of n_heads=5"),
        ("predictive", {"value_width": 6}, "value_width=6"),
        ("predictive", {"window": 0}, "window=0"),
    ],
)
def test_bad_values_say_what_is_allowed(name, options, needle):
    with pytest.raises(ValueError, match=needle):
        saes.build(name, d_in=8, d_sae=24, **{"k": 4, **options})


def test_wrong_shape_is_named():
    sae = build("topk", "topk", {})
    with pytest.raises(ValueError, match=r"reads \[B, T, 8\]"):
        sae.encode(torch.randn(2, 3, 9))
    with pytest.raises(ValueError, match="mask_BT has shape"):
        sae.encode(torch.randn(2, 3, 8), SequenceContext(torch.ones(2, 4, dtype=torch.bool)))


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "version"])
def test_damaged_checkpoints_are_named(damage, tmp_path):
    directory = tmp_path / "sae"
    build("topk", "topk", {}).save(directory)
    config, weights = directory / "cfg.json", directory / "sae.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif damage == "foreign":
        config.write_text("{}")
    else:
        config.write_text(config.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError) as caught:
        saes.load(directory)
    assert "\n" not in str(caught.value) and "sae" in str(caught.value)
