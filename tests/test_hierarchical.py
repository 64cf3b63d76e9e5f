"""Two levels: equations and shrinkage by hand, phases, and level 1 from a static SAE."""

import pytest
import torch
from fake_store import FakeStore
from test_saes import ACTS, text
from test_train import config

from tsae import saes
from tsae.errors import CheckpointError
from tsae.saes import SequenceContext
from tsae.saes.composition import Composition, soft_threshold
from tsae.saes.hierarchical import HierarchicalSAE
from tsae.training import train

STORE = FakeStore()
STATIC = {"relu": "l1"}


def build(seed=0, **options):
    torch.manual_seed(seed)
    return saes.build("hierarchical", **{"d_in": 16, "d_sae": 32, "k": 4, **options})


def by_hand():
    """d = 2, F1 = 2, F2 = 1: h1 = relu(x), h2 = relu(2 h1_1 + h1_2 - 1), W = (1, 0.5)."""
    sae = build(d_in=2, d_sae=2, k=2, ratio=2, k2=1, mu=3.0, lambda_c=10.0, scope="token")
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
        sae.uppers[0].W_enc.copy_(torch.tensor([[2.0], [1.0]]))
        sae.uppers[0].b.copy_(torch.tensor([0.0, 1.0]))
        sae.uppers[0].W_dec.copy_(torch.tensor([[0.6, 0.8]]))
        sae.uppers[0].composer.W.copy_(torch.tensor([[1.0, 0.5]]))
    return sae


def test_levels_and_losses_by_hand():
    sae = by_hand()
    x = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [0.0, 0.5]]])
    context = SequenceContext(torch.tensor([[True, False, True]]))
    out = sae(x, context)
    assert out.z.tolist() == [[[1.0, 2.0], [0.0, 0.0], [0.0, 0.5]]]
    # 2*1 + 2 - 1 = 3;  0.5 - 1 < 0.
    h2 = sae.parents(x, context)
    assert h2.tolist() == [[[3.0], [0.0], [0.0]]]
    torch.testing.assert_close(sae.decode_parents(h2)[0, 0], torch.tensor([1.8, 2.4]))
    terms = {name: float(value.detach()) for name, value in sae.loss(x, context).items()}
    assert terms["mse"] == 0
    # Errors (-0.8, -0.4) and (0, 0.5): (0.64 + 0.16 + 0.25) / 4, times mu.
    assert terms["mse_parents"] == pytest.approx(3 * 1.05 / 4)
    # W h1 - h2: 2 - 3 and 0.25 - 0, over 2 tokens and d = 2, times lambda_c.
    assert terms["composition"] == pytest.approx(10 * (1 + 0.0625) / 4)
    assert terms["l0_parents"] == 0.5 and terms["l0"] == 1.5
    assert terms["total"] == pytest.approx(terms["mse_parents"] + terms["composition"])


def test_parents_through_the_product_of_dictionaries_equal_those_through_the_children():
    sae = build()
    h2 = torch.rand(3, 4)
    torch.testing.assert_close(sae.decode_parents(h2), sae.decode(h2 @ sae.uppers[0].W_dec))


def test_soft_threshold_by_hand():
    W = torch.tensor([[3.0, -3.0, 0.5], [-0.5, 1.0, 0.0]])
    expected = [[2.0, -2.0, 0.0], [-0.25, 0.75, 0.0]]
    assert soft_threshold(W, torch.tensor([[1.0], [0.25]])).tolist() == expected


def test_composition_of_orthogonal_children_is_the_closed_form_of_the_lasso():
    """Energies 1/2 and 2, so s1 s2 = 1, and (W - 2)/2 + lambda_w = 0 at W = 2 - 2 lambda_w."""
    h1 = torch.eye(2).repeat(4, 1)
    h2 = 2 * h1[:, :1]
    for lambda_w, expected in ((0.1, 1.8), (0.0, 2.0), (1.0, 0.0)):
        composer = Composition(2, 1, lambda_w)
        for _ in range(100):
            composer.fit(h1, h2, composer(h1) - h2, torch.tensor(8))
        assert composer.W[0, 0].item() == pytest.approx(expected, abs=1e-4)
        assert composer.W[0, 1].item() == 0


def test_a_planted_composition_is_found_and_the_rest_is_exactly_zero():
    g = torch.Generator().manual_seed(0)
    truth = torch.zeros(6, 60)
    for parent in range(6):
        truth[parent, 10 * parent : 10 * parent + 3] = torch.tensor([1.0, 0.7, 0.5])
    composer = Composition(60, 6, 0.1)
    for _ in range(200):
        h1 = torch.rand(400, 60, generator=g) * (torch.rand(400, 60, generator=g) < 0.1)
        h2 = h1 @ truth.t()
        composer.fit(h1, h2, composer(h1) - h2, torch.tensor(400))
    assert ((composer.W > 0.1) == (truth > 0)).all()
    assert (composer.W == 0).float().mean() > 0.9
    assert (composer.W[truth > 0] < truth[truth > 0]).all()  # a lasso shrinks what it keeps


@pytest.mark.parametrize("act", ["topk", "relu"])
def test_the_step_of_w_is_the_same_from_sparse_and_dense_codes(act, monkeypatch):
    x, context = text()
    found = []
    for dense in (False, True):
        sae = build(d_in=8, d_sae=24, act=act).train()
        monkeypatch.setattr(type(sae), "dense_path", property(lambda _, dense=dense: dense))
        for _ in range(3):
            sae.loss(x, context)
            sae.finish_step()
        found.append(sae.composition)
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(*found)


def test_phases_move_their_level_and_no_other(tmp_path, monkeypatch):
    history, sae = [], build(act="jumprelu")
    step = train.training_step

    def recorded(sae, *rest):
        out = step(sae, *rest)
        history.append(
            (sae.phase.name, {k: v.clone() for k, v in sae.state_dict().items()}, out[0])
        )
        return out

    monkeypatch.setattr(train, "training_step", recorded)
    train.train(sae, STORE, tmp_path, config(steps=10), progress=False)
    assert [name for name, *_ in history] == ["level1"] * 4 + ["level2"] * 3 + ["joint"] * 3
    lower = {"W_enc", "b_enc", "W_dec", "b_dec", "act.log_threshold"}
    names = ("W_enc", "b", "W_dec", "act.log_threshold", "composer.W")
    upper = {f"uppers.0.{name}" for name in names}
    moving = {"level1": lower, "level2": upper, "joint": lower | upper}
    for (_, earlier, _), (name, later, terms) in zip(history, history[1:], strict=False):
        moved = {k for k in lower | upper if not torch.equal(earlier[k], later[k])}
        assert moved == moving[name]
        assert ("mse_parents" in terms) == (name != "level1")
    torch.testing.assert_close(sae.uppers[0].W_dec.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(
    ("curriculum", "shares"),
    [
        (("level1", "level2", "joint"), [0.4, 0.3, 0.3]),
        (("level1", "level2"), [4 / 7, 3 / 7]),
        (("level2", "joint"), [0.5, 0.5]),
        (("joint",), [1.0]),
    ],
)
def test_a_curriculum_shares_out_all_steps(curriculum, shares):
    phases = build(curriculum=list(curriculum)).phases()  # a list, as JSON gives it
    assert tuple(p.name for p in phases) == curriculum
    assert [p.share for p in phases] == pytest.approx(shares)


def test_the_shares_of_the_phases_can_be_chosen():
    sae = build(shares=(0.6, 0.1, 0.3), curriculum=("level1", "joint"))
    assert [p.share for p in sae.phases()] == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("act", ACTS)
def test_a_static_sae_becomes_level_one_and_stays_while_frozen(act, tmp_path):
    torch.manual_seed(3)
    static = saes.build(STATIC.get(act, act), d_in=16, d_sae=32, k=4)
    static = train.train(static, STORE, tmp_path / "static", config(), progress=False).sae
    batch = STORE.batch("test", range(4))
    codes = static.encode(batch.x_BTD, batch.context)
    given = HierarchicalSAE.from_static(static, curriculum=("level2",))
    named = build(act=act, teacher=str(tmp_path / "static" / "sae"), curriculum=("level2",))
    for sae, name in ((given, "given"), (named, "named")):
        assert sae.cfg.act == act
        train.train(sae, STORE, tmp_path / name, config(resample_every=0), progress=False)
        assert torch.equal(sae.encode(batch.x_BTD, batch.context), codes)
        assert sae.composition.abs().sum() > 0
    assert given.meta["fingerprint"] == STORE.fingerprint


def test_only_static_saes_of_the_same_size_fit():
    with pytest.raises(CheckpointError, match="'conv' SAE, whose encoder is not the static one"):
        HierarchicalSAE.from_static(saes.build("conv", d_in=16, d_sae=32, k=4))
    with pytest.raises(CheckpointError, match="d_sae=32, but 64 is asked for"):
        HierarchicalSAE.from_static(saes.build("topk", d_in=16, d_sae=32, k=4), d_sae=64)


def test_dead_parents_alone_reconstruct_what_level_two_misses():
    sae = build(dead_after=100).train()
    with torch.no_grad():
        sae.uppers[0].b.copy_(sae.uppers[0].W_enc[:, 2] * 40)  # parent 2 is far below 0 everywhere
        sae.uppers[0].idle[2] = 100
    batch = STORE.batch("train", range(4))
    sae.loss(batch.x_BTD, batch.context)["aux_parents"].backward()
    assert sae.uppers[0].W_dec.grad.abs().sum(1).nonzero()[:, 0].tolist() == [2]
    assert sae.uppers[0].W_enc.grad.abs().sum(0).nonzero()[:, 0].tolist() == [2]
    assert sae.W_dec.grad is None
    sae.uppers[0].W_enc.grad = None
    with torch.no_grad():
        sae.uppers[0].idle.zero_()
    assert "aux_parents" not in sae.loss(batch.x_BTD, batch.context)
    assert sae.uppers[0].idle[2] == 4 * 15  # the valid tokens of the batch


def test_a_level_reads_the_mean_of_the_passage_so_far():
    sae = build(d_in=2, d_sae=2, k=2, ratio=2, k2=1, act="relu", scope="section", prior=1.0)
    level = sae.uppers[0]
    a = torch.tensor([[1.0], [9.0], [3.0], [8.0], [5.0]])
    mask = torch.tensor([[True, False, True, True, True]])
    boundary = torch.tensor([[3, 0, 1, 2, 0]], dtype=torch.uint8)
    context = SequenceContext(mask, boundary).filled(torch.zeros(1, 5, 1))
    # One token of zero begins every mean: 1/2, (1 + 3)/3; from the section on 8/2, (8 + 5)/3.
    expected = [1 / 2, 1 / 2, 4 / 3, 4.0, 13 / 3]
    assert level.mean(a, context)[:, 0].tolist() == pytest.approx(expected, rel=2e-3)


def test_a_third_level_is_the_second_of_the_second():
    sae = build(levels=3, ratio=2, scope="token", k2=4)
    x, context = torch.randn(2, 9, 16), SequenceContext()
    h2, h3 = sae.parents(x, context), sae.parents(x, context, level=3)
    assert h2.shape == (2, 9, 16) and h3.shape == (2, 9, 8)
    filled = context.filled(x)
    torch.testing.assert_close(sae.uppers[1](h2.flatten(0, 1), filled)[0], h3.flatten(0, 1))
    expected = sae.decode(h3 @ sae.uppers[1].W_dec @ sae.uppers[0].W_dec)
    torch.testing.assert_close(sae.decode_parents(h3, 3), expected)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"levels": 4}, "levels=4 is not allowed; levels must be 1, 2 or 3"),
        ({"ratio": 33}, "from 1 to 32"),
        ({"scope": "page"}, "one of token, sentence, section, document"),
        ({"act2": "soft"}, "one of relu, topk, batchtopk, jumprelu, or None"),
        ({"k2": 5}, "from 1 to F2=4"),
        ({"mu": -1.0}, "mu=-1.0"),
        ({"curriculum": ("level2", "level1")}, "in this order"),
        ({"curriculum": ()}, "some of level1, level2, joint"),
        ({"shares": (0.5, 0.5)}, "3 numbers above 0"),
        ({"shares": (0.5, 0.0, 0.5)}, "3 numbers above 0"),
    ],
)
def test_bad_values_say_what_is_allowed(options, needle):
    with pytest.raises(ValueError, match=needle):
        build(**options)
    with pytest.raises(ValueError, match="2 for parents"):
        build(levels=1).parents(torch.zeros(1, 2, 16))
