"""Truth: ranking by a value, the choice of a latent, three readings, the lines beside them."""

import numpy as np
import pytest
import torch
from eval_cases import Fake, Store, measured, read, tokens, value
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from lab.measures.truth.ceilings import ceilings
from lab.measures.truth.codes import Codes, shifts, variables
from lab.measures.truth.ranking import influences, single
from lab.measures.truth.recovery import Recovery, choose
from tsae.sequences import LabelSpec

SPECS = {
    "topic": LabelSpec("topic", "document", ("a", "b")),
    "kind": LabelSpec("kind", "token", ("p", "q", "r")),
}
KIND = {"kind": LabelSpec("kind", "token", ("p",))}


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


def said(choices, test, specs=SPECS, **options):
    part = Recovery(Codes(specs, [choices]), Codes(specs, [test]), **options)
    choice = part.own()
    part.matched()
    part.lifetimes(choice, 128)
    return part


@pytest.mark.parametrize("levels", [3, 10**6])
def test_scores_are_those_of_sklearn(levels):
    """Sparse values, many of them tied or none, for every latent and class of two labels."""
    rng = np.random.default_rng(0)
    z = rng.integers(1, levels, (700, 5)) * (rng.random((700, 5)) < 0.4)
    z[:, 4] = 7  # constant
    labels = {"topic": rng.integers(-1, 2, 700), "kind": rng.integers(-1, 3, 700)}
    codes = Codes(SPECS, [tokens(z[:300], labels={k: v[:300] for k, v in labels.items()})])
    codes.add(tokens(z[300:], labels={k: v[300:] for k, v in labels.items()}))
    scores = codes.scores()
    for c in range(5):
        y = codes.truth(c)
        for f in range(5):
            ap, auroc, f1, threshold = scores[f, :, c]
            assert ap == pytest.approx(average_precision_score(y, z[:, f]))
            assert auroc == pytest.approx(roc_auc_score(y, z[:, f]))
            assert f1 == pytest.approx(f1_score(y, z[:, f] >= threshold))
            every = [f1_score(y, z[:, f] >= t) for t in np.unique(z[:, f])[:: len(z) // 50]]
            assert f1 >= max(every) - 1e-12
            assert single(z[:, f].astype(float), y)[:3] == pytest.approx([ap, auroc, f1])
            chosen = codes.shifted_scores(np.full((3, 5), f), scores[f, 3], 0)
            assert chosen[:, c] == pytest.approx([ap, auroc, f1])


def test_ranking_by_hand():
    """Values 3, 2, 1, 0 of classes 1, 0, 1, 0: AP = (1 + 2/3) / 2, AUROC = 3/4, F1 = 4/5."""
    v, y = np.array([3.0, 2, 1, 0]), np.array([True, False, True, False])
    assert single(v, y) == pytest.approx([5 / 6, 3 / 4, 4 / 5, 0.5])
    found, each = influences(v, y, 1.0)
    assert found == pytest.approx([5 / 6, 3 / 4, 4 / 5])
    # AUROC: positives win 2 and 1 of 2 negatives, negatives lose to 1 and 2 of 2 positives
    assert each[1] == pytest.approx([1 / 8, -1 / 8, -1 / 8, 1 / 8])


@pytest.mark.parametrize("levels", [4, 10**6])
def test_influence_is_the_derivative_by_a_tokens_weight(levels):
    rng = np.random.default_rng(1)
    v = rng.integers(0, levels, 60).astype(float)
    y = rng.random(60) < 0.3
    found, each = influences(v, y, levels / 2)
    assert each.sum(1) == pytest.approx(0, abs=1e-12)
    for t in range(0, 60, 7):
        w = np.ones(60)
        w[t] += 1e-6
        moved = (
            average_precision_score(y, v, sample_weight=w),
            roc_auc_score(y, v, sample_weight=w),
            f1_score(y, v >= levels / 2, sample_weight=w),
        )
        assert each[:, t] == pytest.approx((np.array(moved) - found) / 1e-6, abs=1e-6)


def test_true_latents_are_found_and_score_one():
    part = said(data(0), data(1, first_doc=100))
    table = part.tried[0]
    assert dict(zip(table["group"], table["latent"], strict=True)) == {
        "document:topic=a": 2,
        "document:topic=b": 3,
        "token:kind=p": 4,
        "token:kind=q": 5,
        "token:kind=r": 6,
    }
    for scale, n in (("document", 2), ("token", 3)):
        for metric in ("ap", "auroc", "f1"):
            assert value(part.rows, metric, scale) == pytest.approx(1)
        assert value(part.rows, "lifetime_error", scale) == 0
        assert value(part.rows, "mcc", scale) > 0.85
        assert [r["n"] for r in part.rows if (r["metric"], r["group"]) == ("ap", scale)] == [n]
    by_scale = [value(part.rows, "mcc", scale) for scale in ("document", "token")]
    assert value(part.rows, "mcc") == pytest.approx((2 * by_scale[0] + 3 * by_scale[1]) / 5)
    assert not [r for r in part.rows if r["group"] == "section"]
    assert value(part.rows, "ap", "document:topic") == pytest.approx(1)


def test_the_choice_decides_and_test_does_not():
    """A latent that is right on test documents only is not chosen; its threshold is kept too."""
    label = [0, 0, -1, -1]
    choices = tokens([[3, 0], [2, 0], [1, 0], [0, 1]], labels={"kind": label})
    test = tokens([[0, 1], [1, 1], [2, 0], [3, 0]], labels={"kind": label})
    part = said(choices, test, KIND, min_count=1)
    assert set(part.tried[0]["latent"]) == {0}
    assert part.tried[2]["threshold"].tolist() == [1.5]
    assert value(part.rows, "ap", "token") == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert value(part.rows, "auroc", "token") == 0
    assert value(part.rows, "f1", "token") == 0
    # r of (0, 1, 2, 3) with (1, 1, 0, 0), with the sign that the choice gave
    assert value(part.rows, "mcc") == pytest.approx(-2 / np.sqrt(5))


def test_a_weak_false_firing_costs_little_where_values_are_read():
    part = said(data(0, noise=0.3), data(1, noise=0.3, first_doc=100))
    assert value(part.rows, "f1", "token") == pytest.approx(1)
    assert value(part.rows, "ap", "token") == pytest.approx(1)


def part(t, at):
    """Some of the tokens, whole documents of them."""
    labels = {name: label_N[at] for name, label_N in t.labels.items()}
    return tokens(t.z_NF[at], piece=t.piece_N[at], doc=t.doc_N[at], labels=labels)


@pytest.mark.parametrize("case", ["permuted", "scaled", "chunked"])
def test_what_does_not_matter(case):
    choices, test = data(0, noise=0.3), data(1, noise=0.3, first_doc=100)
    base = said(choices, test)
    if case == "chunked":
        parts = [Codes(SPECS, [part(t, t.piece_N < 9), part(t, t.piece_N >= 9)])
                 for t in (choices, test)]  # fmt: skip
        other = Recovery(*parts)
        other.lifetimes(other.own(), 128)
        other.matched()
    else:
        change = torch.randperm(8, generator=torch.Generator().manual_seed(3))
        factor = torch.tensor([1, 2, 4, 0.5, 8, 1, 2, 0.25])
        for t in (choices, test):
            t.z_NF.copy_(t.z_NF[:, change] if case == "permuted" else t.z_NF * factor)
        other = said(choices, test)
    keyed = [{(r["metric"], r["group"]): r["value"] for r in p.rows} for p in (base, other)]
    assert keyed[0] == pytest.approx(keyed[1], abs=1e-6)


def test_document_rows_sum_to_the_scores():
    part = said(data(0, noise=0.3), data(1, noise=0.3, first_doc=100))
    assert len(part.documents) == 3 * 4  # metrics × (two scales, two labels)
    for frame in part.documents:
        assert frame["den"].sum() == pytest.approx(1)
        (key,) = {*zip(frame["metric"], frame["group"], strict=True)}
        assert frame["num"].sum() == pytest.approx(value(part.rows, *key))


def test_rare_and_constant_variables_are_left_out_for_every_dictionary():
    assert said(data(0), data(1), min_count=10_000).tried[0].empty
    one_topic = data(1, n_docs=1, first_doc=100)  # topic a everywhere, b nowhere
    for pair in ((data(0), one_topic), (one_topic, data(0))):
        groups = {r["group"] for r in said(*pair, min_count=1).rows if r["metric"] == "ap"}
        assert not any(group.startswith("document") for group in groups)


def noise(x, context):
    """Codes that know nothing: eight latents, each on at a fifth of the tokens."""
    g = torch.Generator().manual_seed(int(1000 * float(x.abs().sum())) % 2**31)
    z = torch.rand(*x.shape[:2], 8, generator=g)
    return (z - 0.8).clamp(min=0) * context.mask_BT[..., None]


def test_a_constant_latent_scores_at_its_line():
    found = measured(
        {"one": Fake(lambda x, c: torch.ones_like(x), 8)}, Store(), families=["recovery"]
    )
    rows = found["one"].rows
    for r in rows:
        metric, _, line = r["metric"].partition("_")
        if line == "constant":
            own = [q["value"] for q in rows if (q["metric"], q["group"]) == (metric, r["group"])]
            assert len(own) == 3 and own == pytest.approx([r["value"]] * 3)
    assert value(rows, "ap_constant", "document:topic=a") == pytest.approx(1 / 3, abs=0.05)


def test_noise_and_its_average_score_at_chance():
    rows = measured({"noise": Fake(noise, 8)}, Store(240), families=["recovery"])["noise"].rows
    for r in rows:
        if r["metric"] in ("ap", "auroc", "f1") and r["group"] in ("document", "token"):
            line = value(rows, f"{r['metric']}_constant", r["group"])
            assert r["value"] == pytest.approx(line, abs=0.04), r
            chance = value(rows, f"{r['metric']}_chance", r["group"])
            assert chance == pytest.approx(line, abs=0.04)


def test_an_average_is_worth_what_it_is_worth():
    """A latent that fires at a fifth of its topic's tokens: its EMA tells the topic, itself hardly;
    a token's own class is told worse by an average."""

    def rare(x, context):
        g = torch.Generator().manual_seed(int(1000 * float(x.abs().sum())) % 2**31)
        on = torch.rand(*x.shape[:2], 1, generator=g) < 0.2
        return torch.cat(
            [x[..., :3].sub(1.5).clamp(min=0) * on, x[..., 3:].sub(1.5).clamp(min=0)], -1
        )

    found = measured({"rare": Fake(rare, 8)}, Store(48), families=["recovery"])["rare"]
    by = {(r["metric"], r["reading"], r["group"]): r["value"] for r in found.rows}
    assert by["ap", "own", "document"] < 0.6 < 0.85 < by["ap", "ema", "document"]
    assert by["ap", "own", "token"] == pytest.approx(1)
    assert by["ap_probe", "own", "document"] > 0.99
    assert by["ap_probe_ema", "own", "document"] > 0.99
    tried = found.tables["choices"]
    slow = tried[(tried["reading"] == "ema") & (tried["group"] == "document:topic=a")]
    assert sorted(slow["decay"].unique()) == [0.5, 0.8, 0.9, 0.95, 0.98]
    assert slow.groupby("metric")["chosen"].sum().eq(1).all()
    assert set(tried["split"]) == {"validation"}


def test_ema_of_a_column_by_hand():
    """δ = ½: (4, 0, 2) → 4, 2 / 1.5, (1 + 2) / 1.75; the second piece begins anew."""
    codes = Codes(KIND, [tokens([[4], [0], [2], [0], [1]], piece=[0, 0, 0, 1, 1],
                                labels={"kind": [0] * 5})])  # fmt: skip
    expected = [4, 2 / 1.5, 3 / 1.75, 0, 1 / 1.5]
    assert codes.column(0, 0.5) == pytest.approx(expected)
    assert codes.column(0) == pytest.approx([4, 0, 2, 0, 1])
    assert codes.averaged_scores(0.5).shape == (1, 4, 1)


def test_shifts_leave_nothing_slow_in_its_place():
    codes = Codes(SPECS, [data(0)])
    for (offset,) in shifts([codes], 50, 0):
        assert 4 * 20 <= offset <= 600 - 4 * 20
    moved = codes.scores(7)
    rolled = Codes(SPECS, [data(0)])
    rolled.class_NL = np.roll(codes.class_NL, -7, 0)
    assert moved == pytest.approx(rolled.scores())


def test_choice_takes_the_best_latent_at_the_best_decay():
    one, two = np.zeros((2, 2, 4, 1))
    one[:, :3, 0] = [[0.1, 0.2, 0.3], [0.4, 0.1, 0.2]]
    two[:, :3, 0] = [[0.3, 0.9, 0.1], [0.2, 0.8, 0.9]]
    two[1, 3, 0] = 5.0
    choice = choose([one, two])
    assert choice.latent_MC[:, 0].tolist() == [1, 0, 1]
    assert choice.decay_MC[:, 0].tolist() == [0, 1, 1]
    assert choice.threshold_C.tolist() == [5.0]
    assert choice.tried_DMC[:, :, 0].tolist() == [[0.4, 0.2, 0.3], [0.3, 0.9, 0.9]]


def test_ceilings_are_made_once_a_reading():
    store = Store(8)
    reading = read(store)
    first = ceilings(reading)
    count = len(store.read)
    assert ceilings(reading) is first and len(store.read) == count
    assert set(store.read) == {"train", "validation", "test"}
    assert first["probe"][0] == pytest.approx(1, abs=0.01)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="no labels"):
        variables({})
    with pytest.raises(ValueError, match="no valid token"):
        Codes(SPECS).scores()
