"""The two nulls: exact small cases and the laws they are defined by."""

import pytest
import torch
from eval_cases import Fake, Store

from lab.measures.nulls import EmaNull, ShuffledNull, best_ema, rank_mask
from tsae import saes
from tsae.saes.base import SequenceContext


def context(boundary, mask=None):
    boundary = torch.tensor([boundary], dtype=torch.uint8)
    ones = torch.ones_like(boundary).bool()
    return SequenceContext(ones if mask is None else torch.tensor([mask]).bool(), boundary)


IDENTITY = Fake(lambda x, c: x, 2)


def test_ema_by_hand():
    """δ = ½: m = (2, 0), (1, ½), (½, ¼ + 1); each token keeps as many as the parent had."""
    x = torch.tensor([[[4.0, 0], [0, 1], [0, 2]]])
    z = EmaNull(IDENTITY, 0.5).encode(x, context([3, 0, 0]))
    assert z.tolist() == [[[2, 0], [1, 0], [0, 1.25]]]


def test_ema_resets_at_documents_only_and_skips_masked_tokens():
    x = torch.tensor([[[4.0, 0], [0, 1], [0, 1]]])
    null = EmaNull(IDENTITY, 0.5)
    assert null.encode(x, context([3, 3, 0])).tolist()[0][1] == [0, 0.5]
    assert null.encode(x, context([3, 2, 0])).tolist()[0][1] == [1, 0]
    masked = null.encode(x, context([3, 0, 0], [1, 0, 1]))  # m passes by the masked token
    assert masked.tolist()[0][2] == [1, 0]


@pytest.mark.parametrize("act", ["topk", "batchtopk", "l1"])
def test_ema_keeps_l0_and_decay_zero_is_the_parent(act):
    torch.manual_seed(0)
    sae = saes.build(act, d_in=8, d_sae=16, k=3).eval()
    batch = next(Store().batches("test", 4))
    z = sae.encode(batch.x_BTD, batch.context)
    same = EmaNull(sae, 0.0)
    assert torch.equal(same.encode(batch.x_BTD, batch.context), z)
    out = same(batch.x_BTD, batch.context)
    assert torch.allclose(out.x_hat, sae(batch.x_BTD, batch.context).x_hat)
    slow = EmaNull(sae, 0.8).encode(batch.x_BTD, batch.context)
    assert torch.equal((slow != 0).sum(-1), (z != 0).sum(-1))
    assert not torch.equal(slow, z)


def test_ema_is_causal_and_documents_do_not_mix():
    torch.manual_seed(0)
    null = EmaNull(saes.build("topk", d_in=8, d_sae=16, k=3).eval(), 0.8)
    batch = next(Store().batches("test", 4))
    z = null.encode(batch.x_BTD, batch.context)
    later = batch.x_BTD.clone()
    later[:, 30:] += torch.randn_like(later[:, 30:])
    assert torch.equal(null.encode(later, batch.context)[:, :30], z[:, :30])
    first = batch.x_BTD.clone()
    first[:, :21] += torch.randn_like(first[:, :21])  # the first document
    assert torch.equal(null.encode(first, batch.context)[:, 21:], z[:, 21:])


def test_rank_mask_by_hand():
    z = torch.tensor([[[3.0, 1, 2], [1, 1, 0], [5, 6, 7]]])
    assert rank_mask(z, torch.tensor([[2, 1, 0]])).tolist() == [[[3, 0, 2], [1, 0, 0], [0, 0, 0]]]


def test_shuffling_leaves_a_static_sae_alone():
    torch.manual_seed(0)
    sae = saes.build("topk", d_in=8, d_sae=16, k=3).eval()
    batch = next(Store().batches("test", 4))
    null = ShuffledNull(sae, window=8)
    assert torch.allclose(
        null.encode(batch.x_BTD, batch.context), sae.encode(batch.x_BTD, batch.context), atol=1e-6
    )
    a, b = null(batch.x_BTD, batch.context), sae(batch.x_BTD, batch.context)
    assert torch.allclose(a.x_hat, b.x_hat, atol=1e-6)
    assert torch.allclose(a.z, b.z, atol=1e-6)


def test_permutation_stays_in_windows_of_a_document():
    c = context([3, 3, 0, 0, 0, 0, 3, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1, 0, 1])
    order = ShuffledNull(IDENTITY, window=3, seed=1).permutation(c, (1, 10), "cpu")[0].tolist()
    windows = [{0}, {1, 2, 3}, {4, 5}, {6, 7}, {8}, {9}]
    for window in windows:
        assert {order[i] for i in window} == window
    seeds = [
        ShuffledNull(IDENTITY, 3, seed).permutation(c, (1, 10), "cpu").tolist() for seed in range(6)
    ]
    assert any(s != seeds[0] for s in seeds)


def test_codes_are_put_back_in_place():
    """z[t] = (x[t], x[t − 1]): the token's own part survives, the neighbour is another one's."""

    def pair(x, c):
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return torch.cat([x, before], -1)

    x = torch.arange(1.0, 17.0).reshape(1, 16, 1)
    null = ShuffledNull(Fake(pair, 2), window=8, seed=0)
    z = null.encode(x)
    assert z[0, :, 0].tolist() == x[0, :, 0].tolist()
    order = null.permutation(None, (1, 16), "cpu")[0]
    moved = x[0, order, 0]
    expected = torch.zeros(16)
    expected[order] = torch.cat([torch.zeros(1), moved[:-1]])
    assert z[0, :, 1].tolist() == expected.tolist()
    assert z[0, :, 1].tolist() != pair(x, None)[0, :, 1].tolist()
    assert torch.equal(ShuffledNull(Fake(pair, 2), window=1).encode(x), pair(x, None))


def test_best_ema_is_chosen_on_training_documents():
    store = Store()
    sae = Fake(lambda x, c: x.sub(1).clamp(min=0), 8)
    null, score = best_ema(sae, store, limit_tokens=10_000)
    assert set(store.read) == {"train"}
    assert set(score) == {0.5, 0.8, 0.9}
    assert score[null.decay] == max(score.values())
    assert null.name == "ema(fake)"


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="decay is 1"):
        EmaNull(IDENTITY, 1)
    with pytest.raises(ValueError, match="window is 0"):
        ShuffledNull(IDENTITY, 0)


def test_ema_keeps_what_a_predictive_parent_predicted():
    torch.manual_seed(0)
    sae = saes.build("predictive", d_in=8, d_sae=16, k=3).eval()
    batch = next(Store().batches("test", 4))
    parent, same = sae(batch.x_BTD, batch.context), EmaNull(sae, 0.0)
    assert parent.beside["x_p"].abs().max() > 0.1
    torch.testing.assert_close(same(batch.x_BTD, batch.context).x_hat, parent.x_hat)
    slow = EmaNull(sae, 0.8)(batch.x_BTD, batch.context)
    torch.testing.assert_close(slow.x_hat, sae.decode(slow.z) + parent.beside["x_p"])
