"""Core metrics against numbers worked out by hand."""

import math

import pytest
import torch
from eval_cases import Batch, Fake, Store, TableModel, World, read, tokens, value

from lab.measures.fidelity import splice
from lab.measures.fidelity.core import Core
from lab.measures.fidelity.splice import predictable
from lab.measures.reading import Tokens
from tsae.sequences import SequenceContext

X = [[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]]  # mean (2, 1); squared distances to it: 2, 2, 4
X_HAT = [[1.0, 1.0], [3.0, 0.0], [2.0, 1.0]]  # squared errors: 1, 0, 4
Z = [[1.0, 0.0, 2.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]


def measured(x_hat=X_HAT, chunks=((0, 3),), mean=(0.0, 0.0)):
    part = Core(torch.tensor(mean))
    for a, b in chunks:
        part.update(tokens(Z[a:b], X[a:b], x_hat=x_hat[a:b], doc=[4, 4, 9][a:b]))
    return part


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("l0", 1.0),
        ("l1", 3.5 / 3),
        ("mse", 5 / 6),
        ("fve", 1 - 5 / 8),
        ("fve_saebench_original", (0.5 + 1 + 0) / 3),
        ("cosine", (1 / math.sqrt(2) + 1 + 7 / math.sqrt(13 * 5)) / 3),
        ("l2_ratio", (math.sqrt(2) + 1 + math.sqrt(5 / 13)) / 3),
        ("reconstruction_bias", 16 / 17),
        ("alive", 2 / 3),
    ],
)
def test_by_hand(metric, expected):
    assert value(measured().rows(), metric) == pytest.approx(expected, abs=1e-6)


def test_perfect_and_mean_reconstruction():
    assert value(measured(x_hat=X).rows(), "fve") == pytest.approx(1, abs=1e-12)
    assert value(measured(x_hat=[[2.0, 1.0]] * 3).rows(), "fve") == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("mean", [(0.0, 0.0), (2.0, 1.0), (50.0, -7.0)])
def test_batches_and_reference_point_do_not_matter(mean):
    whole, parts = measured().rows(), measured(chunks=((0, 1), (1, 3)), mean=mean).rows()
    for metric in ("fve", "mse", "l0", "cosine", "alive"):
        assert value(parts, metric) == pytest.approx(value(whole, metric), abs=1e-9)


def test_document_rows_by_hand_and_their_sums():
    part = measured(chunks=((0, 1), (1, 3)))
    rows = part.document_rows().set_index(["metric", "doc"])
    assert rows.loc[("fvu", 4), ["num", "den"]].tolist() == pytest.approx([1, 4])
    assert rows.loc[("fvu", 9), ["num", "den"]].tolist() == pytest.approx([4, 4])
    assert rows.loc[("l0", 4), ["num", "den"]].tolist() == [3, 2]
    fvu = rows.loc["fvu"]
    fve = value(part.rows(), "fve")
    assert 1 - fvu["num"].sum() / fvu["den"].sum() == pytest.approx(fve, abs=1e-12)


def test_economy_by_hand():
    """F = 4, one value bit: latent 0 of 4, 4, 1 stays, then changes; latent 1 is born and dies.

    Births 1, 1, 0 (log2 4 + 1 = 3 bits each); one change (1 bit); one death among two (1 bit).
    """
    z = torch.tensor([[4.0, 0, 0, 0], [4, 2, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    part = Core(torch.zeros(1), torch.full((4,), 4.0), value_bits=1)
    part.update(tokens(z, piece=[0, 0, 0, 1], doc=[0, 0, 0, 1]))  # the last begins anew: a birth
    rows = part.rows()
    assert value(rows, "births") == pytest.approx(3 / 4)
    assert value(rows, "deaths") == pytest.approx(1 / 4)
    assert value(rows, "bits") == pytest.approx((3 + 3 + 1 + 1 + 3) / 4)
    documents = part.document_rows().set_index(["metric", "doc"])
    assert documents.loc[("bits", 0), ["num", "den"]].tolist() == [8, 3]
    assert documents.loc[("births", 1), ["num", "den"]].tolist() == [1, 1]


def test_what_is_held_is_free_and_what_flickers_is_not():
    held = torch.zeros(100, 16)
    held[:, 3] = 1.0
    flicker = held.clone()
    flicker[::2] = 0.0
    bits = []
    for z in (held, flicker):
        part = Core(torch.zeros(1), z.amax(0))
        part.update(tokens(z))
        bits.append(value(part.rows(), "bits"))
    assert bits == pytest.approx([12 / 100, 50 * 12 / 100])  # log2 16 + 8, once and 50 times


def test_collapse_by_group():
    """Two latents always on, one at half the tokens, one dead: rates 1, 1, ½, 0."""
    z = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]])
    groups = {"slow": torch.tensor([0, 1]), "rest": torch.tensor([2, 3]), "none": torch.tensor([3])}
    part = Core(torch.zeros(1), None, groups)
    part.update(tokens(z))
    rows = part.rows()
    assert value(rows, "always_on") == 2 and value(rows, "always_on", "slow") == 2
    assert value(rows, "effective_latents", "slow") == pytest.approx(2)
    p = [0.4, 0.4, 0.2]
    assert value(rows, "effective_latents") == pytest.approx(
        math.exp(-sum(q * math.log(q) for q in p)), rel=1e-6
    )
    assert value(rows, "effective_latents", "rest") == pytest.approx(1)
    assert value(rows, "effective_latents", "none") == 0 == value(rows, "alive", "none")


def test_masked_tokens_do_not_count():
    """Values at masked positions change nothing."""
    mask = torch.tensor([[False, True, True, False]])
    doc = torch.tensor([[-1, 3, 3, 3]])
    z = torch.ones(1, 4, 2)
    results = []
    for junk in (0.0, 1e6):
        x = torch.tensor([[[junk, 0], [1.0, 2], [3, 5], [junk, junk]]])
        batch = Batch(
            x_BTD=x,
            context=SequenceContext(mask, torch.zeros(1, 4, dtype=torch.uint8)),
            doc_BT=doc,
            labels={},
        )
        part = Core(torch.zeros(2))
        part.update(Tokens.of(batch, z, x * 0.5))
        results.append(part.rows())
    assert results[0] == results[1]
    assert results[0][0]["n"] == 2


def test_nan_codes_are_refused():
    batch = next(Store().batches("test", 2))
    z = torch.full((2, 41, 3), float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        Tokens.of(batch, z, batch.x_BTD)


def test_nothing_evaluated_is_refused():
    with pytest.raises(ValueError, match="more tokens"):
        Core(torch.zeros(2)).rows()


def test_predictable_by_hand():
    mask = torch.tensor([[False, True, True, True, False, True]])
    doc = torch.tensor([[-1, 5, 5, 6, 6, 6]])
    # BOS no; 1 yes; 2 predicts the next document: no; 3 yes (its target may be masked); 4 masked
    assert predictable(mask, doc).tolist() == [[False, True, False, True, False]]


def spliced(monkeypatch, saes, n=4):
    model = TableModel()
    monkeypatch.setattr(splice, "models", model)
    return splice.measure(saes, read(Store(n), batch=2), World(model)), model


def test_identity_and_zero_splice(monkeypatch):
    """x̂ = x costs nothing; x̂ = 0 is the ablation itself."""
    saes = {"same": Fake(lambda x, c: x, 8), "zero": Fake(lambda x, c: 0 * x, 8)}
    out, model = spliced(monkeypatch, saes)
    same, zero = out["same"].rows, out["zero"].rows
    assert value(same, "ce_sae") == pytest.approx(value(same, "ce_clean"), abs=1e-6)
    assert value(same, "ce_score") == pytest.approx(1, abs=1e-5)
    assert value(same, "kl_score") == pytest.approx(1, abs=1e-5)
    assert value(zero, "ce_score") == pytest.approx(0, abs=1e-6)
    assert value(zero, "kl_score") == pytest.approx(0, abs=1e-6)
    assert value(zero, "ce_sae") == pytest.approx(math.log(11), abs=1e-6)  # all logits 0
    # two batches: clean once each, ablated and two SAEs once each
    assert model.calls == {"clean": 2, "edited": 6, "residual": 0}


def test_splice_reads_and_writes_store_units(monkeypatch):
    """The SAE sees raw * scale, and its output is divided by scale; CE against plain torch."""
    seen = []

    def codes(x, context):
        seen.append(x)
        return x + 1.0

    out, model = spliced(monkeypatch, {"plus": Fake(codes, 8)}, n=2)
    batch = next(Store(2).batches("test", 2))
    raw = model.embed[batch.tokens_BT]
    assert torch.allclose(seen[0], raw * 2.0)
    edited = torch.where(batch.context.mask_BT[..., None], raw + 0.5, raw)
    at = predictable(batch.context.mask_BT, batch.doc_BT)
    logits = (edited @ model.unembed)[:, :-1][at]
    expected = torch.nn.functional.cross_entropy(logits, batch.tokens_BT[:, 1:][at])
    rows, documents, _ = out["plus"]
    assert value(rows, "ce_sae") == pytest.approx(float(expected), abs=1e-5)
    assert rows[0]["n"] == 2 * 38  # 40 tokens in 2 documents: 2 × 19 predictions a sequence
    assert sorted(documents["den"]) == [19, 19, 19, 19]
    delta = value(rows, "ce_delta")
    assert delta == pytest.approx(float(expected) - value(rows, "ce_clean"), abs=1e-5)
    assert documents["num"].sum() / documents["den"].sum() == pytest.approx(delta, abs=1e-6)


def test_saebench_original_formula_slips_where_one_token_is_near_the_mean():
    """Errors of 1 everywhere; one of four tokens lies near the mean, and its ratio rules the mean.

    x = ±10, 0.1 and −0.1: x̄ = 0, Σ|x − x̂|² = 4, Σ|x − x̄|² = 200.02. Ratios: 1 − 1/100 twice and
    1 − 1/0.01 twice: the mean of ratios calls a good reconstruction far worse than the mean.
    """
    x = [[10.0], [-10.0], [0.1], [-0.1]]
    part = Core(torch.zeros(1))
    part.update(tokens([[1.0]] * 4, x, x_hat=[[v[0] + 1] for v in x]))
    rows = part.rows()
    assert value(rows, "fve") == pytest.approx(1 - 4 / 200.02, abs=1e-6)
    assert value(rows, "fve_saebench_original") == pytest.approx((2 * 0.99 - 2 * 99) / 4, abs=1e-3)
