"""The published peers (matryoshka, contrastive, predictive) against their definitions."""

from math import e, exp, log

import pytest
import torch

from tsae import saes
from tsae.saes import SequenceContext
from tsae.saes.encoding import Tokens
from tsae.saes.nested import decoded_blocks

# ---- matryoshka ---------------------------------------------------------------------------


def nested_by_hand(**options):
    """Four latents on two axes, prefixes of 1, 2 and 4 latents."""
    blocks = {"blocks": (0.25, 0.25, 0.5)}
    sae = saes.build("matryoshka", d_in=2, d_sae=4, k=4, **{**blocks, **options}).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[0.5, 0.0, 0.25, 0.0], [0.0, 0.5, 0.0, 0.25]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    return sae


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("weights", [None, (2.0, 3.0, 0.5)])
def test_every_prefix_reconstructs(dense, weights, monkeypatch):
    sae = nested_by_hand(prefix_weights=weights)
    monkeypatch.setattr(type(sae), "dense_path", property(lambda _: dense))
    x = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [50.0, 50.0]]])
    context = SequenceContext(torch.tensor([[True, True, False]]))
    terms = {name: float(v.detach()) for name, v in sae.loss(x, context).items()}
    # z = (1.5, 2, 0.75, 1); errors (1.5, 4), (1.5, 2) and (0.75, 1); the second token is exact.
    one, two, full = 18.25 / 4, 6.25 / 4, 1.5625 / 4
    w = weights or (1.0, 1.0, 1.0)
    assert terms["mse"] == pytest.approx(full)
    assert terms["prefixes"] == pytest.approx(w[0] * one + w[1] * two + (w[2] - 1) * full)
    assert terms["total"] == pytest.approx(w[0] * one + w[1] * two + w[2] * full)


@pytest.mark.parametrize("act", ["relu", "topk"])
def test_a_prefix_is_the_decoding_of_truncated_codes(act):
    torch.manual_seed(0)
    sae = saes.build("matryoshka", d_in=6, d_sae=32, k=5, act=act).eval()
    assert [len(ids) for ids in sae.groups.values()] == [2, 2, 4, 8, 16]
    x = torch.randn(3, 7, 6)
    context = sae.checked(x, SequenceContext(torch.rand(3, 7) > 0.2))
    codes = sae.encoding(Tokens(sae, x, context, sparse=not sae.dense_path)).codes
    assert isinstance(codes, torch.Tensor) == (act == "relu")
    z_NF = codes if act == "relu" else codes.dense()
    prefixes = torch.stack(decoded_blocks(codes, sae.W_dec, sae.sizes), 1).cumsum(1)
    for p, end in enumerate((2, 4, 8, 16)):
        cut = torch.where(torch.arange(32) < end, z_NF, 0.0)
        expected = sae.decode(cut) - sae.b_dec
        torch.testing.assert_close(prefixes[:, p], expected, atol=1e-5, rtol=1e-5)


# ---- contrastive --------------------------------------------------------------------------


def contrastive(**options):
    options = {"d_in": 4, "d_sae": 10, "k": 3, "act": "topk", **options}
    return saes.build("contrastive", **options).eval()


def contrast(h_BTH, boundary=None, mask=None, **options):
    sae = contrastive(**options)
    context = SequenceContext(mask, boundary).filled(h_BTH)
    return float(sae.contrast(h_BTH.flatten(0, 1), context))


def test_info_nce_by_hand():
    # Two documents, one pair each: h[t-1] = (1, 0), (0, 1) and h[t] = (2, 0), (0, 3).
    h = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])
    dot = (log(1 + exp(-2)) + log(1 + exp(-3))) / 2
    assert contrast(h, similarity="dot") == pytest.approx(dot)
    assert contrast(h, similarity="cosine") == pytest.approx(log(1 + 1 / e), rel=1e-3)
    # Both directions count. h[t] = (1, 1), (0, 2), h[t-1] = (1, 0), (0, 1): S = [[1, 1], [0, 2]].
    h = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [0.0, 2.0]]])
    rows, columns = log(2) + log(1 + exp(-2)), 2 * log(1 + exp(-1))
    assert contrast(h, similarity="dot") == pytest.approx((rows + columns) / 4)


def test_pairs_of_one_document_are_no_negatives():
    h = torch.ones(1, 3, 2)  # two pairs of one document, all alike
    assert contrast(h, similarity="dot") == pytest.approx(0.0)


@pytest.mark.parametrize("partner", ["previous", "earlier"])
def test_pairs_cross_neither_documents_nor_invalid_tokens(partner):
    boundary = torch.zeros(2, 9, dtype=torch.uint8)
    boundary[0, 4], boundary[1, 6], boundary[1, 3] = 3, 3, 2
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6] = mask[1, 7] = False
    # Each document has a direction of its own: a pair across documents would cost about 100.
    document = torch.tensor([[0] * 4 + [1] * 5, [2] * 6 + [3] * 3])
    h = 10.0 * torch.eye(4)[document]
    h[~mask] = torch.nan
    torch.manual_seed(0)
    assert contrast(h, boundary, mask, partner=partner) == pytest.approx(0.0, abs=1e-6)
    if partner == "previous":  # (8, 7) of the second row is no pair: 7 is invalid
        h[1, 8] = torch.nan
        assert contrast(h, boundary, mask) == pytest.approx(0.0, abs=1e-6)


def test_at_most_so_many_pairs_are_compared():
    h = torch.ones(40, 2, 2)  # a pair a document
    assert contrast(h, pairs=16) == pytest.approx(log(16))
    assert contrast(h[:1, :1]) == 0.0


@pytest.mark.parametrize(("similarity", "weights"), [("cosine", (1.0, 1.0)), ("dot", (0.2, 0.8))])
def test_total_is_the_published_sum(similarity, weights):
    torch.manual_seed(0)
    sae = contrastive(d_in=5, d_sae=20, k=4, similarity=similarity, alpha=2.0)
    x = torch.randn(4, 3, 5)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[0, 0] = False
    terms = sae.loss(x, SequenceContext(mask))
    with torch.no_grad():
        z = sae.encode(x, SequenceContext(mask))
        full = (x - sae.decode(z))[mask].square().mean()
        high = torch.where(torch.arange(20) < 4, z, 0.0)
        prefix = (x - sae.decode(high))[mask].square().mean()
        pairs = [(b, t) for b in range(4) for t in (1, 2) if mask[b, t - 1]]
        s = torch.zeros(len(pairs), len(pairs))
        for i, (b, t) in enumerate(pairs):
            for j, (c, u) in enumerate(pairs):
                now, then = z[b, t, :4], z[c, u - 1, :4]
                scale = 1.0
                if similarity == "cosine":
                    scale = ((now @ now + 1e-4) * (then @ then + 1e-4)).sqrt()
                s[i, j] = -torch.inf if b == c and i != j else now @ then / scale
        diagonal = s.log_softmax(1).diagonal() + s.log_softmax(0).diagonal()
        expected = weights[0] * prefix + weights[1] * full - 2.0 / 5 * diagonal.mean() / 2
    assert float(terms["total"].detach()) == pytest.approx(float(expected), rel=1e-5)


def test_published_defaults_and_groups():
    sae = saes.build("contrastive", d_in=8, d_sae=50, k=5)
    assert (sae.cfg.act, sae.cfg.threshold_ema, sae.cfg.alpha) == ("batchtopk", 0.999, 1.0)
    assert {name: len(ids) for name, ids in sae.groups.items()} == {"high": 10, "low": 40}


# ---- predictive ---------------------------------------------------------------------------


def plain_attention(**options):
    """Queries 0, so that every readable key and the empty one weigh the same."""
    options = {"d_in": 2, "d_sae": 2, "k": 1, "n_heads": 1, **options}
    sae = saes.build("predictive", **options).eval()
    with torch.no_grad():
        for matrix in (sae.W_enc, sae.W_dec, sae.value.weight, sae.output.weight):
            matrix.copy_(torch.eye(2))
        sae.query.weight.zero_()
    return sae


def test_prediction_by_hand():
    sae, unit = plain_attention(), 4 * 2**0.5  # z_in = relu(x) / unit
    x = unit * torch.tensor([[[1.0, 0.0], [2.0, 2.0], [3.0, 9.0], [0.0, 5.0]]])
    mask = torch.tensor([[True, True, False, True]])
    boundary = torch.tensor([[3, 0, 0, 0]], dtype=torch.uint8)
    out = sae(x, SequenceContext(mask, boundary))
    # t=0 reads the empty key alone. t=1 reads (1, 0)/2: x is projected on (1, 0).
    # t=3 reads ((1, 0) + (2, 2))/3 = (1, 2/3): (0, 5) projects on it with 30/13.
    predicted = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [30 / 13, 20 / 13]])
    torch.testing.assert_close(out.beside["x_p"][0], unit * predicted)
    z_p, _ = sae.predicted(x, SequenceContext(mask, boundary))
    torch.testing.assert_close(z_p[0], unit * predicted)
    new = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 45 / 13]])
    torch.testing.assert_close(out.z[0], unit * new)
    terms = sae.loss(x, SequenceContext(mask, boundary))
    # What is left: -30/13 in the first coordinate of the last token, over 3 tokens x 2.
    assert float(terms["mse"].detach()) == pytest.approx((unit * 30 / 13) ** 2 / 6)
    assert float(terms["predicted_density"]) == pytest.approx(3 / 6)
    assert float(terms["l0"]) == pytest.approx(1.0)
    boundary[0, 3] = 3  # a new document has nothing to read
    assert sae(x, SequenceContext(mask, boundary)).beside["x_p"][0, 3].tolist() == [0.0, 0.0]


def test_window_limits_what_is_read():
    sae = plain_attention(window=1)
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]])
    x_p = sae(x).beside["x_p"][0]
    assert x_p.tolist() == [[0.0, 0.0], [0.0, 0.0], [0.0, 4.0]]  # reads (0, 1) alone


def random_predictive(**options):
    torch.manual_seed(0)
    sae = saes.build("predictive", d_in=6, d_sae=24, k=4, **options).eval()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    sae.finish_step()
    return sae


def test_attention_equals_the_published_form():
    """Keys and values of the codes shifted by one token, all four biases, causal softmax."""
    sae = random_predictive()
    F, heads = 24, 4
    x = torch.randn(2, 9, 6)
    key_bias, value_bias = torch.randn(F), torch.randn(F)
    with torch.no_grad():
        ours = sae.predicted(x)
        # Ours has no such biases: its output bias holds what the values' one would add.
        output_bias = sae.output.bias - sae.output.weight @ value_bias
        u = x - sae.b_dec
        z_in = (u @ sae.W_dec.t()).relu() / (4 * 6**0.5)
        shifted = torch.cat([torch.zeros(2, 1, F), z_in[:, :-1]], 1)
        q, k = sae.query(z_in), sae.key(shifted) + key_bias
        v = sae.value(shifted) + value_bias
        q, k, v = (a.view(2, 9, heads, F // heads).transpose(1, 2) for a in (q, k, v))
        read = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        read = read.transpose(1, 2).reshape(2, 9, F)
        z = (read @ sae.output.weight.t() + output_bias).relu()
        x_p = z @ sae.W_dec
        scale = (x_p * u).sum(-1, keepdim=True) / x_p.square().sum(-1, keepdim=True)
    torch.testing.assert_close(ours[0], z * scale, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours[1], x_p * scale, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [2, 128])
def test_prediction_is_a_projection_and_streams(window):
    sae = random_predictive(window=window)
    x = torch.randn(3, 12, 6)
    boundary = torch.zeros(3, 12, dtype=torch.uint8)
    boundary[1, 5] = 3
    mask = torch.rand(3, 12) > 0.2
    context = SequenceContext(mask, boundary)
    with torch.no_grad():
        out = sae(x, context)
    x_p = out.beside["x_p"]
    assert x_p[~mask].abs().max() == 0
    left = x - sae.b_dec - x_p
    assert (left * x_p).sum(-1)[mask].abs().max() < 1e-4
    torch.testing.assert_close(sae.predicted(x, context)[0] @ sae.W_dec, x_p, atol=1e-5, rtol=1e-4)
    loss = float(sae.loss(x, context)["mse"].detach())
    assert loss == pytest.approx(float((x - out.x_hat)[mask].square().mean()), rel=1e-5)
    stream = sae.stream(3)
    for t in range(12):
        z = stream.step(x[:, t], boundary[:, t], mask[:, t])
        torch.testing.assert_close(z, out.z[:, t], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(stream.beside["x_p"], x_p[:, t], atol=1e-5, rtol=1e-5)
