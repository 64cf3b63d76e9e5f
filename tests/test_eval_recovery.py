"""Recovery of known variables: by hand, and what must not matter."""

import pytest
import torch
from eval_cases import tokens, value

from lab.measures.truth.recovery import Recovery, pearson
from tsae.sequences import LabelSpec

SPECS = {
    "topic": LabelSpec("topic", "document", ("a", "b")),
    "kind": LabelSpec("kind", "token", ("p", "q", "r")),
}


def data(seed, n_docs=30, length=20, noise=0.0, first_doc=0):
    """Five latents that are the variables, three of noise; ``noise`` adds weak false firing."""
    g = torch.Generator().manual_seed(seed)
    n = n_docs * length
    doc = torch.arange(n) // length + first_doc
    topic = doc % 2
    kind = torch.randint(-1, 3, (n,), generator=g)
    truth = torch.stack([topic == 0, topic == 1, kind == 0, kind == 1, kind == 2], 1).float()
    z = torch.rand(n, 8, generator=g) * (torch.rand(n, 8, generator=g) < 0.2)
    z[:, 2:7] = truth * (1 + torch.rand(n, 5, generator=g))
    if noise:
        weak = (torch.rand(n, 5, generator=g) < noise) * 0.1 * torch.rand(n, 5, generator=g)
        z[:, 2:7] = torch.maximum(z[:, 2:7], weak)
    return tokens(z, piece=doc - first_doc, doc=doc, labels={"topic": topic, "kind": kind})


def scored(select, *test, **options):
    part = Recovery(SPECS, **options)
    part.select(select)
    for t in test:
        part.update(t)
    return part


def test_true_latents_are_found_and_score_one():
    part = scored(data(0), data(1, first_doc=100))
    assert part.best_latents() == {
        "document:topic=a": 2,
        "document:topic=b": 3,
        "token:kind=p": 4,
        "token:kind=q": 5,
        "token:kind=r": 6,
    }
    rows = part.rows()
    for scale, n in (("document", 2), ("token", 3)):
        for metric in ("recovery_f1", "recovery_precision", "recovery_recall", "recovery_f1_tuned"):
            assert value(rows, metric, scale) == 1
        assert value(rows, "recovery_classes", scale) == n
        assert value(rows, "lifetime_error", scale) == 0
        assert value(rows, "mcc", scale) > 0.85
    assert value(rows, "mcc") == pytest.approx(
        (2 * value(rows, "mcc", "document") + 3 * value(rows, "mcc", "token")) / 5
    )
    assert not [r for r in rows if r["group"] == "section"]
    assert value(rows, "recovery_f1_matched", "token") < 0.5


def test_scores_by_hand():
    """One latent; it fires on test tokens 0, 1, 2; the class holds at 1, 2, 3, 4."""
    spec = {"kind": LabelSpec("kind", "token", ("p",))}
    part = Recovery(spec, min_count=1)
    part.select(tokens([[1], [0]], labels={"kind": [0, -1]}))
    z = [[2], [1], [1], [0], [0], [0]]
    labels = {"kind": [-1, 0, 0, 0, 0, -1]}
    part.update(tokens(z, doc=[5, 5, 5, 6, 6, 6], piece=[0, 0, 0, 1, 1, 1], labels=labels))
    rows = part.rows()
    assert value(rows, "recovery_precision", "token") == pytest.approx(2 / 3)
    assert value(rows, "recovery_recall", "token") == pytest.approx(1 / 2)
    assert value(rows, "recovery_f1", "token") == pytest.approx(4 / 7)
    assert value(rows, "recovery_f1", "token:kind=p") == pytest.approx(4 / 7)
    frame = part.document_rows().set_index(["metric", "doc"])
    assert frame.loc[("recovery_f1", 5), ["num", "den"]].tolist() == [4, 5]
    assert frame.loc[("recovery_f1", 6), ["num", "den"]].tolist() == [0, 2]
    assert frame.loc[("recovery_f1", 5), "group"] == "token:kind=p"
    # r of (2,1,1,0,0,0) with (0,1,1,1,1,0): covariance 2/6 − (4/6)(4/6) over the two spreads
    spread = ((6 / 6 - 16 / 36) * (4 / 6 - 16 / 36)) ** 0.5
    assert value(rows, "mcc") == pytest.approx((2 / 6 - 16 / 36) / spread)


def test_selection_decides_and_test_does_not():
    """A latent that is right on test documents only is not chosen."""
    spec = {"kind": LabelSpec("kind", "token", ("p",))}
    part = Recovery(spec, min_count=1)
    label = [0, 0, -1, -1]
    part.select(tokens([[1, 0], [1, 0], [0, 0], [0, 1]], labels={"kind": label}))
    part.update(tokens([[0, 1], [0, 1], [1, 0], [1, 0]], labels={"kind": label}))
    assert part.best_latents() == {"token:kind=p": 0}
    assert value(part.rows(), "recovery_f1", "token") == 0
    assert value(part.rows(), "mcc") == -1  # the sign of the selection is kept


def test_tuned_threshold_ignores_weak_firing():
    """Half of the false tokens fire below 0.1, true ones above 1: only a threshold tells them."""
    rows = scored(data(0, noise=0.3), data(1, noise=0.3, first_doc=100)).rows()
    assert value(rows, "recovery_f1_tuned", "token") > value(rows, "recovery_f1", "token") + 0.1
    assert value(rows, "recovery_f1_tuned", "token") > 0.9


@pytest.mark.parametrize("case", ["permuted", "scaled", "chunked"])
def test_what_does_not_matter(case):
    select, test = data(0, noise=0.3), data(1, noise=0.3, first_doc=100)
    base = scored(select, test, calibration=600)
    if case == "chunked":
        half = test.piece_N < 15
        other = Recovery(SPECS, calibration=600)
        other.select(select.where(select.piece_N < 9))
        other.select(select.where(select.piece_N >= 9))
        other.update(test.where(half))
        other.update(test.where(~half))
    else:
        change = torch.randperm(8, generator=torch.Generator().manual_seed(3))
        factor = torch.tensor([1, 2, 4, 0.5, 8, 1, 2, 0.25])
        for t in (select, test):
            z = t.z_NF[:, change] if case == "permuted" else t.z_NF * factor
            t.z_NF.copy_(z)
        other = scored(select, test, calibration=600)
    for a, b in zip(base.rows(), other.rows(), strict=True):
        assert (a["metric"], a["group"], a["n"]) == (b["metric"], b["group"], b["n"])
        if case != "chunked" or not a["metric"].endswith(("_matched", "_excess")):
            assert a["value"] == pytest.approx(b["value"], abs=1e-6)


def test_document_rows_sum_to_the_scores():
    part = scored(data(0, noise=0.3), data(1, noise=0.3, first_doc=100))
    sums = part.document_rows().groupby(["metric", "group"])[["num", "den"]].sum()
    rows = part.rows()
    assert {m for m, _ in sums.index} == {"recovery_f1", "recovery_f1_matched"}
    for group, s in sums.loc["recovery_f1"].iterrows():
        assert s["num"] / s["den"] == pytest.approx(value(rows, "recovery_f1", group), abs=1e-9)
    null = sums.loc["recovery_f1_matched"]
    tokens_ = null[null.index.str.startswith("token")]
    mean = (tokens_["num"] / tokens_["den"]).mean()
    assert mean == pytest.approx(value(rows, "recovery_f1_matched", "token"), abs=1e-9)


def test_an_always_active_latent_has_no_excess():
    """F1 = 2p / (1 + p) for frequency p = ½ of either topic, which the null reaches as well."""
    select, test = data(0), data(1, first_doc=100)
    for t in (select, test):
        t.z_NF.fill_(1.0)
    rows = scored(select, test).rows()
    assert value(rows, "recovery_f1", "document") == pytest.approx(2 / 3)
    assert value(rows, "recovery_f1_excess", "document") == pytest.approx(0)
    assert value(rows, "recovery_f1_excess", "token") == pytest.approx(0)
    assert value(rows, "mcc") == 0


def test_rare_and_constant_variables_are_left_out_for_every_sae():
    few = scored(data(0), data(1, first_doc=100), min_count=10_000)
    assert [r for r in few.rows() if r["metric"] == "recovery_classes"] == []
    one_topic = data(1, n_docs=1, first_doc=100)  # topic a everywhere, b nowhere
    rows = scored(data(0), one_topic, min_count=1).rows()
    assert [r["group"] for r in rows if r["metric"] == "recovery_classes"] == ["token"]
    rows = scored(one_topic, data(0), min_count=1).rows()
    assert [r["group"] for r in rows if r["metric"] == "recovery_classes"] == ["token"]


def test_pearson_by_hand_and_of_constants():
    z, y = torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([0.0, 0, 1, 1]).double()
    r = pearson(z.sum(), z.square().sum(), (z * y).sum(), y.sum(), 4)
    assert float(r) == pytest.approx(float(torch.corrcoef(torch.stack([z, y]))[0, 1]))
    c = torch.full((4,), 0.1).double()
    assert float(pearson(c.sum(), c.square().sum(), (c * y).sum(), y.sum(), 4)) == 0


def test_misuse_is_named():
    with pytest.raises(ValueError, match="no labels"):
        Recovery({})
    with pytest.raises(ValueError, match="call select before update"):
        Recovery(SPECS).update(data(0))
    with pytest.raises(ValueError, match="after scoring began"):
        part = scored(data(0), data(1))
        part.select(data(2))
