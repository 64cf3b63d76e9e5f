"""Rounds, correction and leaky memory: by hand, and fast forms against plain torch."""

import functools

import pytest
import torch

from tsae import saes
from tsae.kernels import rounds, sparse
from tsae.kernels.held import held
from tsae.kernels.leaky import leaky_mean
from tsae.saes import SequenceContext, passages
from tsae.saes.activations import BatchTopK, TopK
from tsae.saes.encoding import Tokens
from tsae.saes.shares import CappedTopK


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- rounds and correction ----------------------------------------------------------------------


def test_two_rounds_and_the_correction_by_hand():
    W_dec = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    mask = torch.tensor([True])
    given = torch.tensor([[2.0, 1.0]]), W_dec.t(), W_dec, [torch.zeros(2)] * 2, [TopK(1)] * 2, mask
    parts, pres, r = rounds.sparse_rounds(*given)
    # 2.2 against 2: latent 1 first; it leaves (0.24, -0.32), of which latent 0 takes 0.24.
    torch.testing.assert_close(pres[0], torch.tensor([[2.0, 2.2]]))
    torch.testing.assert_close(r, torch.tensor([[0.0, -0.32]]))
    codes = rounds.merged(parts)
    torch.testing.assert_close(codes.dense(), torch.tensor([[0.24, 2.2]]))
    codes = rounds.corrected(codes, r, W_dec, torch.tensor(0.5))
    # Along latent 1 the error is -0.32 * 0.6; latent 0 sees none of it.
    torch.testing.assert_close(codes.dense(), torch.tensor([[0.24, 2.2 - 0.096]]))


def test_a_corrected_code_keeps_a_twentieth_of_itself():
    z, W_dec = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    moved = rounds.dense_corrected(z, torch.tensor([[-9.0, 9.0]]), W_dec, torch.tensor(1.0))
    torch.testing.assert_close(moved, torch.tensor([[0.05, 0.0]]))


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("act", [TopK, BatchTopK])
def test_sparse_rounds_equal_dense_ones(act, gathers, monkeypatch):
    monkeypatch.setattr(sparse, "has_sparse_products", lambda device: not gathers)
    mask = torch.arange(12) % 5 != 2
    spare = torch.tensor([0, 1, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0])
    results = []
    for fast in (True, False):
        tensors = [draw(0, 12, 5), draw(1, 5, 20), draw(2, 20, 5), draw(3, 20), draw(4, 20)]
        tensors = [t.requires_grad_() for t in [*tensors, torch.tensor(0.4, dtype=torch.float64)]]
        r, W, D, b, c, eta = tensors
        given = r, W, D, [b, b + c], [act(3), act(2)], mask, spare
        if fast:
            parts, _, left = rounds.sparse_rounds(*given)
            codes = rounds.corrected(rounds.merged(parts), left, D, eta)
            z, x_hat = codes.dense(), sparse.decode(codes, D)
        else:
            z, _, left = rounds.dense_rounds(*given)
            z = rounds.dense_corrected(z, left, D, eta)
            x_hat = z @ D
        assert (z[~mask] == 0).all()
        (x_hat.sin().sum() + z.square().sum() + left.cos().sum()).backward()
        results.append([z.detach(), *[t.grad for t in tensors]])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


def test_spare_slots_are_filled():
    pre = torch.tensor([[5.0, 4.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    mask, spare = torch.ones(2, dtype=torch.bool), torch.tensor([2, 0])
    rows, cols, crow = TopK(1).select(pre, mask, spare)
    assert (rows.tolist(), cols.tolist(), crow.tolist()) == ([0, 0, 0, 1], [0, 1, 2, 3], [0, 3, 4])
    assert TopK(1)(pre, mask, spare).tolist() == [[5.0, 4.0, 3.0, 0.0], [0.0, 0.0, 0.0, 4.0]]


# ---- memory -------------------------------------------------------------------------------------


def test_leaky_mean_by_hand():
    e = torch.tensor([[[4.0], [1.0], [7.0], [2.0]]])
    keep, valid = (
        torch.tensor([[False, True, True, False]]),
        torch.tensor([[True, True, False, True]]),
    )
    m, after = leaky_mean(e, torch.tensor([0.5]), keep, valid)
    # 4;  (2 + 1) / 1.5;  the same, as the token is invalid;  2, as a document starts.
    torch.testing.assert_close(m.flatten(), torch.tensor([4.0, 2.0, 2.0, 2.0]))
    assert after.sum_BF.tolist() == [[2.0]] and after.count_B.tolist() == [1]
    m, _ = leaky_mean(e, torch.tensor([0.5]), keep, valid, prior_F=1.0)
    torch.testing.assert_close(m.flatten(), torch.tensor([2.0, 1.2, 1.2, 1.0]))  # 3 / 2.5


def plain_mean(e_BTF, delta_F, keep_BT, valid_BT, prior_F):
    """The leaky mean one token at a time."""
    total = weight = torch.zeros_like(e_BTF[:, 0])
    means = []
    for e, keep, valid in zip(e_BTF.unbind(1), keep_BT.t(), valid_BT.t(), strict=True):
        total, weight, valid = keep[:, None] * total, keep[:, None] * weight, valid[:, None]
        total = torch.where(valid, delta_F * total + e, total)
        weight = torch.where(valid, delta_F * weight + 1.0, weight)
        means.append(total / (prior_F + weight.clamp_min(1.0)))
    return torch.stack(means, 1)


@pytest.mark.parametrize("scanned", [False, True])
def test_leaky_mean_equals_the_plain_loop_and_goes_on_where_it_stopped(scanned):
    fast_mean = functools.partial(leaky_mean, reference=scanned)
    keep, valid = draw(0, 3, 14) > -0.8, draw(1, 3, 14) > -0.5
    prior, results = torch.tensor([0.0, 0.5, 1.0, 4.0, 9.0], dtype=torch.float64), []
    for run in (lambda *given, **more: fast_mean(*given, **more)[0], plain_mean):
        e, logit = draw(2, 3, 14, 5).requires_grad_(), draw(3, 5).requires_grad_()
        m = run(e, torch.sigmoid(logit), keep, valid, prior_F=prior)
        m.sin().sum().backward()
        results.append((m.detach(), e.grad, logit.grad))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)
    e, delta = e.detach(), torch.sigmoid(logit.detach())
    first, after = fast_mean(e[:, :6], delta, keep[:, :6], valid[:, :6], None, prior)
    second, _ = fast_mean(e[:, 6:], delta, keep[:, 6:], valid[:, 6:], after, prior)
    torch.testing.assert_close(torch.cat([first, second], 1), results[0][0])


# ---- what the losses read -----------------------------------------------------------------------


def passage():
    """Two sequences: a document of two sections and a new document; one invalid token."""
    boundary = torch.tensor([[3, 0, 2, 0, 3, 0], [3, 0, 0, 0, 0, 0]], dtype=torch.uint8)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 3] = False
    x = torch.arange(12.0).view(2, 6, 1) * mask[..., None]
    return x.flatten(0, 1), SequenceContext(mask, boundary).filled(x)


def test_sums_of_a_passage_by_hand():
    u, context = passage()
    total, n = passages.others_sum(u, context, level=2)
    assert n[:6].tolist() == [1, 1, 0, 1, 1, 1] and total[:6, 0].tolist() == [1, 0, 0, 2, 5, 4]
    total, n = passages.next_sum(u, context, horizon=2)
    assert n[:6].tolist() == [2, 1, 0, 0, 1, 0] and total[:6, 0].tolist() == [3, 2, 0, 0, 5, 0]
    assert n[6:].tolist() == [2, 2, 2, 2, 1, 0] and total[6:10, 0].tolist() == [15, 17, 19, 21]


def test_contrast_prefers_memories_that_tell_documents_apart():
    _, context = passage()
    document = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2])
    apart = torch.eye(3)[document]
    torch.manual_seed(0)
    alike = passages.contrast(torch.ones(12, 3), context, 99, 2, 0.1)
    assert float(passages.contrast(apart, context, 99, 2, 0.1)) < 0.001 < float(alike)


def test_slow_latents_hold_their_document_in_memory():
    """A latent that is on by its memory stays on at a token that gives no evidence of it."""
    sae = saes.build("slowfast", d_in=2, d_sae=4, k=3, slow_shares=(0.5,), slow_k=(0.3,),
                     rounds=(1.0,), correct=False)  # fmt: skip
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]))
    x = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    boundary = torch.tensor([[3, 0, 3]], dtype=torch.uint8)
    on = sae.encode(x, SequenceContext(None, boundary))[0, :, :2] > 0
    assert on.tolist() == [[True, False], [True, False], [False, True]]


def test_a_held_latent_leaves_for_a_clearly_stronger_one_alone():
    m = torch.tensor([[[2.0, 1.0], [2.0, 3.0], [2.0, 5.0], [2.0, 3.0], [2.0, 3.0]]])
    keep = torch.tensor([[False, True, True, True, False]])
    valid = torch.ones(1, 5, dtype=torch.bool)
    for rho, latents in ((1.0, [0, 1, 1, 1, 1]), (0.5, [0, 0, 1, 1, 1]), (0.3, [0, 0, 0, 0, 1])):
        on, after = held(m, 1, rho, keep, valid)
        assert on[0].int().argmax(1).tolist() == latents and after.tolist() == [[False, True]]
        assert (on.sum(-1) == 1).all()


def test_held_equals_plain_torch_and_goes_on_where_it_stopped():
    m, keep, valid = draw(0, 3, 14, 6).float(), draw(1, 3, 14) > -0.8, draw(2, 3, 14) > -0.5
    on, after = held(m, 2, 0.6, keep, valid)
    plain, last = held(m, 2, 0.6, keep, valid, reference=True)
    assert torch.equal(on, plain) and torch.equal(after, last)
    first, then = held(m[:, :6], 2, 0.6, keep[:, :6], valid[:, :6])
    second, _ = held(m[:, 6:], 2, 0.6, keep[:, 6:], valid[:, 6:], then)
    assert torch.equal(torch.cat([first, second], 1), on)


@pytest.mark.parametrize(
    "most, kept", [(2, [[3.0, 2.0, 0.0], [0.0] * 3]), (1, [[3.0, 0, 0], [0.5, 0, 0]])]
)
def test_a_batch_shares_its_slots_up_to_the_most_of_a_token(most, kept):
    act = CappedTopK(1, most, ema=0.5)
    pre, valid = torch.tensor([[3.0, 2.0, 1.0], [0.5, 0.4, 0.3]]), torch.ones(2, dtype=torch.bool)
    assert act(pre, valid).tolist() == kept
    rows, cols, _ = act.select(pre, valid)
    assert torch.zeros(2, 3).index_put((rows, cols), pre[rows, cols]).tolist() == kept


def test_slots_follow_memory_and_values_stay_within_their_bound():
    """Each token has k latents, of which slow ones at most slow_most and on average slow_ks; a value
    lies within kappa of its memory's, corrected or not."""
    torch.manual_seed(0)
    sae = saes.build("slowfast", d_in=16, d_sae=128, k=12, bound=0.3)
    cfg = sae.cfg
    assert (cfg.slow_ks, cfg.slow_most, cfg.fast_ks) == ([3, 2], [4, 3], [3, 2])
    x = torch.randn(8, 40, 16)
    tokens = Tokens(sae, x, sae.checked(x, None))
    codes, pres, aux = sae.train().found(tokens, None)
    z = codes.dense()
    slow = z[:, : sae.n_slow]
    assert ((z > 0).sum(1) == 12).all()
    counts = torch.stack([(part > 0).sum(1) for part in slow.split(cfg.slow_sizes, 1)])
    assert counts.max(1).values.tolist() == [4, 3] and counts.float().mean(1).tolist() == [3, 2]
    share = (slow / (pres[0] * sae.log_gain.exp()))[slow > 0]
    assert share.min() >= 0.7 - 1e-5 and share.max() <= 1.3 + 1e-5
