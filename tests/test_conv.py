"""The temporal convolution against hand-worked numbers and its definitions."""

import itertools

import pytest
import torch

from tsae import saes
from tsae.kernels import sparse
from tsae.saes import SequenceContext
from tsae.saes.consistency import block, excess_rate
from tsae.saes.shares import ReservedTopK


def tiny(**options):
    one_group = {"group_shares": (1.0,), "consistency": "none"}
    defaults = {"act": "relu", "k": 3, "window": 3, "lag_rank": None, **one_group}
    sae = saes.build("conv", d_in=1, d_sae=3, **{**defaults, **options}).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        if options.get("lag_rank", None) is None:
            sae.W_lag.copy_(torch.tensor([[[10.0, 0.0, 0.0]], [[100.0, 0.0, 0.0]]]))
    return sae


def test_lags_and_hard_gate_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(1, 5, 1)
    boundary = torch.tensor([[3, 0, 0, 1, 0]], dtype=torch.uint8)
    z = tiny(gate="hard", gate_level=1).encode(x, SequenceContext(None, boundary))[0, :, 0]
    # x_t + 10 x_{t-1} + 100 x_{t-2}, cut at token 3
    assert z.tolist() == [1.0, 12.0, 123.0, 4.0, 45.0]
    z = tiny(gate="none").encode(x, SequenceContext(None, boundary))[0, :, 0]
    assert z.tolist() == [1.0, 12.0, 123.0, 234.0, 345.0]
    z = tiny(gate="hard").encode(x, SequenceContext(None, boundary))[0, :, 0]
    assert z.tolist() == [1.0, 12.0, 123.0, 234.0, 345.0]  # one group is a document's
    z = tiny(gate="hard", gate_level=2).encode(x, SequenceContext(None, boundary))[0, :, 0]
    assert z.tolist() == [1.0, 12.0, 123.0, 234.0, 345.0]


def test_learned_gate_is_the_product_of_what_it_passes():
    sae = tiny(gate="learned")
    with torch.no_grad():
        sae.boundary_w.fill_(0.0)
        sae.boundary_b.fill_(0.0)  # b = 1/2 everywhere but at the start
    x = torch.ones(1, 3, 1)
    z = sae.encode(x)[0, :, 0]
    # 1;  1 + 10/2;  1 + 10/2 + 100/4
    assert z.tolist() == [1.0, 6.0, 31.0]


def test_full_rank_lags_equal_full_lags():
    torch.manual_seed(0)
    low = saes.build("conv", d_in=6, d_sae=12, k=4, window=3, lag_rank=6, gate="none").eval()
    full = saes.build("conv", d_in=6, d_sae=12, k=4, window=3, lag_rank=None, gate="none").eval()
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(full, name).copy_(getattr(low, name))
        A, B = low.A_lag.unflatten(1, (2, 6)), low.B_lag.unflatten(1, (2, 6))
        full.W_lag.copy_(torch.stack([A[:, j] @ B[:, j].t() for j in range(2)]))
    x = torch.randn(2, 9, 6)
    torch.testing.assert_close(low.encode(x), full.encode(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("act", ["relu", "topk"])
def test_cosine_consistency_equals_its_definition(act):
    torch.manual_seed(3)
    weights, levels = (0.2, 0.3, 0.5), (1, 2, 3)
    sae = saes.build(
        "conv", d_in=5, d_sae=20, k=6, act=act, consistency="cosine", consistency_weights=weights,
        group_levels=levels,
    )  # fmt: skip
    x = torch.randn(2, 7, 5)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 2] = False
    boundary = torch.zeros(2, 7, dtype=torch.uint8)
    boundary[0, 3], boundary[1, 4], boundary[1, 2] = 1, 2, 3
    context = SequenceContext(mask, boundary)
    z, expected = sae.encode(x, context).detach(), 0.0
    for g, name in enumerate(("fast", "sentence", "document")):
        z_BTG = z[..., sae.groups[name]]
        for lag, b in itertools.product((1, 2, 4), range(2)):
            for t in range(lag, 7):
                crossed = bool((boundary[b, t - lag + 1 : t + 1] >= levels[g]).any())
                if not crossed and mask[b, t] and mask[b, t - lag]:
                    now, then = z_BTG[b, t], z_BTG[b, t - lag]
                    scale = (now.square().sum() * then.square().sum() + 1e-6).sqrt()
                    expected += weights[g] * float(1 - now @ then / scale)
    expected /= int(mask.sum())
    assert float(sae.loss(x, context)["consistency"].detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("lag_rank", [3, None])
def test_each_window_closes_at_its_groups_own_level(lag_rank):
    """One latent a group; of x = 1, 1, 1, 1 only what the group's window holds arrives."""
    sae = saes.build("conv", d_in=3, d_sae=3, k=3, act="relu", window=4, lag_rank=lag_rank,
                     group_shares=(1 / 3, 1 / 3, 1 / 3), consistency="none").eval()  # fmt: skip
    with torch.no_grad():
        sae.W_enc.zero_()
        if lag_rank is None:
            sae.W_lag.copy_(torch.ones(3, 1, 1) * torch.eye(3))
        else:
            sae.A_lag.copy_(torch.eye(3).repeat(1, 3))
            sae.B_lag.copy_(torch.eye(3).flip(1).repeat(1, 3).flip(1))
    x = torch.ones(1, 4, 3)
    boundary = torch.tensor([[3, 1, 2, 0]], dtype=torch.uint8)
    z = sae.encode(x, SequenceContext(None, boundary))[0]
    reach = {name: z[:, ids[0]].tolist() for name, ids in sae.groups.items()}
    assert reach["document"] == [0, 1, 2, 3]  # predecessors in the document
    assert reach["sentence"] == [0, 1, 0, 1] and reach["fast"] == [0, 0, 0, 1]


def test_block_of_sparse_codes_equals_the_dense_block():
    torch.manual_seed(0)
    weight = torch.randn(3, 8, requires_grad=True)
    x, mask = torch.randn(6, 3), torch.ones(6, dtype=torch.bool)
    act = ReservedTopK([2, 1], [5, 3])
    mix, results = torch.randn(6, 3), []
    for fast in (True, False):
        codes, _ = sparse.encode(lambda p: act.select(p, mask), torch.zeros(8), [(x, weight)])
        codes = codes if fast else codes.dense()
        part, excess = block(codes, 5, 8), excess_rate(codes, torch.tensor(6))
        results.append((part, excess, *torch.autograd.grad((part * mix).sum() + excess, weight)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("kind", "guard", "nested", "collapses"),
    [
        ("cosine", 0.0, False, True),
        ("cosine", 1.0, False, False),
        ("contrastive", 1.0, True, False),
    ],
)
def test_cosine_collapses_to_latents_that_are_on_and_the_guard_prevents_it(
    kind, guard, nested, collapses
):
    """Documents that differ by a direction of their own, and tokens that share a strong one."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 24, 8, generator=g) + torch.randn(12, 1, 8, generator=g)
    x = x + 4.0 * torch.eye(8)[0]
    torch.manual_seed(0)
    sae = saes.build("conv", d_in=8, d_sae=32, k=4, window=2, group_shares=(0.5, 0.25, 0.25),
                     nested=nested, consistency=kind, guard=guard, lag_rank=4,
                     consistency_weights=(0.0, 0.3, 0.3)).train()  # fmt: skip
    optimizer = torch.optim.Adam(sae.parameters(), lr=2e-2)
    for _ in range(80):
        optimizer.zero_grad()
        sae.loss(x)["total"].backward()
        optimizer.step()
        sae.finish_step()
    slow = torch.cat([sae.groups["document"], sae.groups["sentence"]])
    rate = (sae.eval().encode(x)[..., slow] > 0).float().mean((0, 1))
    assert bool((rate > 0.7).any()) == collapses, rate


def test_groups_have_their_latents_and_their_share_of_k():
    shares = {"group_shares": (0.5, 0.3, 0.2), "nested": False}
    sae = saes.build("conv", d_in=4, d_sae=100, k=10, **shares).eval()
    sizes = {name: len(ids) for name, ids in sae.groups.items()}
    assert sizes == {"fast": 50, "sentence": 30, "document": 20}
    with torch.no_grad():
        sae.b_enc.fill_(10.0)  # all positive: nothing is left unused
    z = sae(torch.randn(2, 5, 4)).z
    for name, expected in (("fast", 5), ("sentence", 3), ("document", 2)):
        assert ((z[..., sae.groups[name]] > 0).sum(-1) == expected).all()


def test_unused_share_of_k_is_lent_by_hand():
    """Blocks {0..3} and {4, 5, 6} with shares 2 and 2."""
    act = ReservedTopK([2, 2], [4, 3])
    pre = torch.tensor(
        [
            [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0],  # both blocks use their share
            [9.0, 8.0, 7.0, 6.0, 5.0, -4.0, -3.0],  # one slot of the second is lent: 7
            [9.0, 8.0, 7.0, 6.0, 0.0, -4.0, -3.0],  # both are lent: 7 and 6
            [-9.0, 8.0, -7.0, -6.0, 5.0, 4.0, 3.0],  # one slot of the first is lent: 3
            [-9.0, -8.0, -7.0, 6.0, 5.0, -4.0, -3.0],  # only two entries are positive
        ]
    )
    kept = [
        [9.0, 8.0, 0.0, 0.0, 5.0, 4.0, 0.0],
        [9.0, 8.0, 7.0, 0.0, 5.0, 0.0, 0.0],
        [9.0, 8.0, 7.0, 6.0, 0.0, 0.0, 0.0],
        [0.0, 8.0, 0.0, 0.0, 5.0, 4.0, 3.0],
        [0.0, 0.0, 0.0, 6.0, 5.0, 0.0, 0.0],
    ]
    everything = torch.ones(5, dtype=torch.bool)
    assert act(pre, everything).tolist() == kept
    rows, cols, crow = act.select(pre, everything)
    assert crow.tolist() == [0, 4, 8, 12, 16, 20] and (cols.view(5, 4).diff() > 0).all()
    sparse_z = torch.zeros(5, 7).index_put((rows, cols), pre[rows, cols].clamp_min(0))
    assert sparse_z.tolist() == kept


@pytest.mark.parametrize(("ks", "sizes"), [([3, 2], [20, 12]), ([6, 2], [4, 28])])
def test_lending_keeps_as_many_latents_as_topk(ks, sizes):
    torch.manual_seed(0)
    pre = torch.randn(200, 32) - torch.linspace(-1.0, 3.0, 200)[:, None]
    z = ReservedTopK(ks, sizes)(pre, torch.ones(200, dtype=torch.bool))
    positive = (pre > 0).sum(1)
    assert torch.equal((z > 0).sum(1), positive.clamp_max(sum(ks)))
    for k, of_z, of_pre in zip(ks, z.split(sizes, 1), pre.split(sizes, 1), strict=True):
        assert ((of_z > 0).sum(1) >= (of_pre > 0).sum(1).clamp_max(k)).all()
