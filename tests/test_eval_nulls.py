"""Averages and shuffled windows: exact small cases and the laws they are defined by."""

import pytest
import torch
from eval_cases import Batch, Fake, Store

from lab.measures.nulls import ShuffledNull, averaged
from tsae import saes
from tsae.sequences import SequenceContext


def context(boundary, mask=None):
    boundary = torch.tensor([boundary], dtype=torch.uint8)
    ones = torch.ones_like(boundary).bool()
    return SequenceContext(ones if mask is None else torch.tensor([mask]).bool(), boundary)


IDENTITY = Fake(lambda x, c: x, 2)


def batch(x, boundary, mask):
    ids = torch.zeros(1, len(boundary), dtype=torch.long)
    x = torch.tensor([x]).float()[..., None]
    return Batch(x_BTD=x, doc_BT=ids, context=context(boundary, mask), labels={})


def test_average_by_hand():
    """δ = ½: (2, 6, ·, 4) with a masked token: 2, (1 + 6) / 1.5, as it is, (3.5 + 4) / 1.75."""
    made = averaged(batch([2, 6, 9, 4], [3, 0, 0, 0], [1, 1, 0, 1]), 0.5)
    assert made[0, :, 0].tolist() == pytest.approx([2, 7 / 1.5, 9, 7.5 / 1.75])


def test_average_begins_anew_with_a_document_even_at_a_masked_token():
    made = averaged(batch([2, 6, 4, 8], [3, 0, 3, 0], [1, 1, 0, 1]), 0.5)
    assert made[0, :, 0].tolist() == pytest.approx([2, 7 / 1.5, 4, 8])


def test_average_is_causal_and_a_constant_stays():
    store = next(Store().batches("test", 4))
    whole = averaged(store, 0.9)
    store.x_BTD[:, 30:] += 5.0
    assert torch.equal(averaged(store, 0.9)[:, :30], whole[:, :30])
    store.x_BTD.fill_(3.0)
    assert torch.allclose(averaged(store, 0.98), torch.tensor(3.0))


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


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="window=0"):
        ShuffledNull(IDENTITY, 0)
