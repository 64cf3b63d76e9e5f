"""Sparse products against plain torch, values and gradients."""

import pytest
import torch

from tsae import saes
from tsae.kernels import linear, selection, sparse
from tsae.saes import SequenceContext
from tsae.saes.activations import BatchTopK, TopK
from tsae.saes.shares import Grouped, ReservedTopK


def dense_case(seed=0, N=12, F=20):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return [draw(N, 5), draw(5, F), draw(N, 3), draw(3, F), draw(F), draw(F, 5)]


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "grouped", "reserved"])
def test_sparse_encode_decode_equals_dense(kind, gathers, monkeypatch):
    monkeypatch.setattr(sparse, "has_sparse_products", lambda device: not gathers)
    act = {
        "topk": TopK(4),
        "batchtopk": BatchTopK(4),
        "grouped": Grouped([BatchTopK(2), BatchTopK(1)], [15, 5]),
        "reserved": ReservedTopK([2, 1], [15, 5]),
    }[kind]
    mask = torch.ones(12, dtype=torch.bool)
    mask[5] = False
    results = []
    for fast in (True, False):
        tensors = [t.clone().requires_grad_() for t in dense_case()]
        u, W, v, V, b, D = tensors
        if fast:
            codes, pre = sparse.encode(lambda p: act.select(p, mask), b, [(u, W), (v, V)])
            z, x_hat = codes.dense(), sparse.decode(codes, D)
        else:
            pre = u @ W + v @ V + b
            z = act(pre, mask)
            x_hat = z @ D
        (x_hat.sin().sum() + z.square().sum()).backward()
        results.append([z.detach(), x_hat.detach(), *[t.grad for t in tensors]])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize("shift", [0.0, 2.0, -4.0])
def test_the_batch_cut_keeps_exactly_the_largest_positive_entries(shift):
    g = torch.Generator().manual_seed(1)
    pre = torch.randn(300, 700, generator=g) + shift
    mask = torch.arange(300) % 7 != 3
    act = BatchTopK(5).train()
    rows, cols, crow = act.select(pre, mask)
    kept = torch.zeros_like(pre, dtype=torch.bool)
    kept[rows, cols] = True
    ordered = pre[mask].flatten().sort(descending=True).values
    n = int(mask.sum()) * 5
    cut = ordered[n].clamp_min(0.0)
    assert torch.equal(kept, (pre > cut) & mask[:, None])
    assert torch.equal(crow.diff(), kept.sum(1)) and float(act.threshold) == float(cut)
    assert len(rows) == (n if shift >= 0 else int((pre[mask] > 0).sum()))


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka", "conv"])
def test_every_gradient_of_the_loss_equals_autograd_through_dense_codes(name, monkeypatch):
    torch.manual_seed(0)
    options = {} if name == "batchtopk" else {"act": "topk"}
    if name == "conv":  # the contrast draws its pairs
        options["consistency"] = "cosine"
    sae = saes.build(name, d_in=6, d_sae=40, k=6, **options)
    sae = sae.double().train()
    x = torch.randn(2, 16, 6, dtype=torch.float64)
    context = SequenceContext(torch.rand(2, 16) > 0.2)
    gradients = []
    for dense in (False, True):
        monkeypatch.setattr(type(sae), "dense_path", dense)
        sae.zero_grad()
        sae.loss(x, context)["total"].backward()
        gradients.append({n: p.grad.clone() for n, p in sae.named_parameters()})
    for parameter, fast in gradients[0].items():
        torch.testing.assert_close(fast, gradients[1][parameter], msg=parameter)


# ---- selection -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("F", "k", "start", "stop"), [(40, 5, 0, 40), (40, 40, 0, 40), (300, 4, 7, 290), (9, 1, 2, 5)]
)
def test_largest_names_what_topk_names(F, k, start, stop):
    x_NF = torch.randn(64, F, generator=torch.Generator().manual_seed(F))
    k = min(k, stop - start)
    x_NF[1] = 0.0  # a tie of all
    x_NF[2] = x_NF[2].round()
    x_NF[3] = -x_NF[3].abs()
    x_NF[4, start] = float("nan")
    x_NF[5, start] = float("inf")
    x_NF[6] = float("-inf")
    cols_NK = selection.largest(x_NF, k, start, stop)
    assert torch.equal(cols_NK, selection.plain_largest(x_NF, k, start, stop))


def test_largest_by_hand():
    x_NF = torch.tensor([[3.0, -1.0, 5.0, 4.0], [-1.0, -2.0, -3.0, -4.0]])
    assert selection.largest(x_NF, 2).tolist() == [[2, 3], [0, 1]]
    assert selection.largest(x_NF, 1, 1, 4).tolist() == [[1], [0]]


def test_entries_by_column_are_a_stable_sort():
    cols = torch.randint(0, 30, (500,), generator=torch.Generator().manual_seed(0))
    order, begin_F = selection.by_column(cols, 32)
    assert torch.equal(order, cols.argsort(stable=True))
    assert torch.equal(begin_F.diff(), torch.bincount(cols, minlength=32))
    order, begin_F = selection.by_column(cols[:0], 3)
    assert order.numel() == 0 and begin_F.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 7, 5), (2, 3, 4, 5), (0, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_fast_linear_equals_linear(shape, with_bias, monkeypatch):
    monkeypatch.setattr(linear, "is_slow", lambda: True)
    g = torch.Generator().manual_seed(0)
    x, bias = torch.randn(shape, generator=g), torch.randn(6, generator=g) if with_bias else None
    weight = torch.randn(6, 5, generator=g)
    for w in (weight, torch.randn(5, 6, generator=g).T):
        for y in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
            expected = torch.nn.functional.linear(y, w, bias)
            with torch.no_grad(), linear.fast_linear():
                torch.testing.assert_close(torch.nn.functional.linear(y, w, bias=bias), expected)


def test_fast_linear_leaves_gradients_and_other_types_alone(monkeypatch):
    monkeypatch.setattr(linear, "is_slow", lambda: True)
    monkeypatch.setattr(linear, "dense", None)  # would fail if it were called
    x, weight = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    with linear.fast_linear():
        torch.nn.functional.linear(x, weight).sum().backward()
        assert weight.grad is not None
        with torch.no_grad():
            torch.nn.functional.linear(x.double(), weight.double())
            torch.nn.functional.linear(x.to("meta"), weight.to("meta"))


def test_the_faster_dense_layer_is_chosen_by_the_machine_alone(monkeypatch):
    def slow(capability, vendor):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        text = f"processor : 0\nvendor_id : {vendor}\n"
        monkeypatch.setattr(linear.Path, "read_text", lambda path: text)
        return linear.is_slow.__wrapped__()

    here = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert slow("AVX512", "AuthenticAMD") == here
    assert not slow("AVX512", "GenuineIntel") and not slow("AVX2", "AuthenticAMD")
