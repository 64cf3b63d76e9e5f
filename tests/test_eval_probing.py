"""Pooling, sparse probing, SCR, TPP and absorption on cases worked out by hand."""

import numpy as np
import pytest
import torch
from eval_cases import Fake, Store, read, tokens, value

from lab.measures.concepts import absorption, perturbation, probing, units
from lab.measures.concepts.perturbation import Case

TRUE = Fake(lambda x, _: x.clamp(min=1) - 1, 8)  # latent i: direction i, noise cut off


# ---- units --------------------------------------------------------------------------------


def test_units_end_at_documents_sections_and_sequences():
    t = tokens(
        np.eye(6), piece=[0, 0, 0, 0, 1, 1], boundary=[3, 0, 2, 1, 3, 0], doc=[0, 0, 0, 0, 0, 0]
    )
    assert units.unit_ids(t, "document").tolist() == [0, 0, 0, 0, 1, 1]
    assert units.unit_ids(t, "section").tolist() == [0, 0, 1, 1, 2, 2]
    assert units.unit_ids(t, "token").tolist() == [0, 1, 2, 3, 4, 5]


def test_pooling_is_the_mean_of_each_unit():
    a = torch.tensor([[1.0, 0], [3, 2], [5, 5]])
    assert units.pooled(a, torch.tensor([0, 0, 1]), 2).tolist() == [[2, 1], [5, 5]]


def test_units_of_a_store_hold_whole_documents_and_their_labels():
    got = units.read(TRUE, read(Store(4), test=160, batch=3), "test")
    assert len(got["document"].doc_U) == 8 and len(got["token"].doc_U) == 4 * 40
    assert set(got["document"].labels) == {"topic"} and set(got["token"].labels) == {"kind"}
    x_UD, z_UF, _, labels = got["document"]
    # A document of topic c has 3 in direction c on every token, codes 3 − 1.
    assert np.allclose(x_UD[np.arange(8), labels["topic"]], 3, atol=0.1)
    assert np.allclose(z_UF[np.arange(8), labels["topic"]], 2, atol=0.1)


# ---- probing ------------------------------------------------------------------------------


def test_latents_are_ranked_by_mean_difference():
    a = np.array([[1.0, 0, 5], [1, 4, 5], [0, 0, 5], [0, 0, 5]])
    y = np.array([1, 1, 0, 0])  # |differences| 1, 2, 0
    assert probing.by_mean_difference(a, y).tolist() == [1, 0, 2]


def test_balanced_draws_as_many_negatives_evenly_and_never_the_unlabelled():
    label = np.array([0] * 6 + [1] * 30 + [2] * 30 + [-1] * 30)
    at, y = probing.balanced(label, 0, 100, np.random.default_rng(0))
    assert y.tolist() == [1] * 6 + [0] * 6
    assert np.bincount(label[at[:6]]).tolist() == [6]
    assert np.bincount(label[at[6:]], minlength=3).tolist() == [0, 3, 3]
    assert len(probing.balanced(label, 2, 4, np.random.default_rng(0))[0]) == 8


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_probes_do_not_depend_on_the_units_of_the_codes(scale):
    generator = np.random.default_rng(0)
    a = generator.normal(size=(60, 3))
    y = (a[:, 0] > 0).astype(int)
    probe, other = probing.fit(a, y), probing.fit(scale * a, y)
    assert (probe.predict(a) == other.predict(scale * a)).all()
    assert np.allclose(other.weights(3) * scale, probe.weights(3), atol=1e-3)


def test_one_true_latent_reads_a_class_and_the_residual_does_too():
    store = Store(40)
    found = probing.measure(
        {"true": TRUE, "blind": Fake(lambda x, _: torch.zeros_like(x), 8)},
        read(store, test=1600, choose=1600, batch=8),
        ks=(1, 5),
        min_count=10,
    )
    rows = found["true"].rows
    assert value(rows, "probe_sparse", "document|k=1") == 1.0
    assert value(rows, "probe_sparse", "token|k=1") > 0.99
    assert value(rows, "probe_residual", "token:kind|k=all") > 0.99
    assert [r["n"] for r in rows if r["group"] == "token|k=1"] == [4, 4]
    blind = found["blind"].rows
    assert value(blind, "probe_sparse", "document|k=all") == 0.5  # balanced: chance
    assert value(blind, "probe_residual", "token|k=1") == value(rows, "probe_residual", "token|k=1")
    documents = found["true"].documents
    mine = documents[
        (documents["metric"] == "probe_sparse") & (documents["group"] == "token:kind=p")
    ]
    k5 = documents[documents["metric"] == "probe_sparse"].groupby("group")[["num", "den"]].sum()
    k5 = (k5["num"] / k5["den"]).filter(like="token:").mean()
    assert k5 == pytest.approx(value(rows, "probe_sparse", "token|k=5"))
    assert mine["doc"].min() >= 1000  # test documents alone


# ---- SCR and TPP --------------------------------------------------------------------------


def test_ablating_the_spurious_latents_restores_the_desired_probe():
    """x = ±1 for A, ±4 for B; two latents each, one a sign. Without B's, x_2 = 0 on every unit."""
    generator = np.random.default_rng(0)
    a, b = np.repeat([0, 0, 1, 1], 40), np.tile(np.repeat([0, 1], 40), 2)
    sign = np.stack([2.0 * a - 1, 4 * (2.0 * b - 1)], 1)
    x, z = sign + 0.01 * generator.normal(size=sign.shape), np.hstack([sign, -sign]).clip(min=0)
    directions = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    together = a == b
    biased, full = Case(x[together], z[together], a[together]), Case(x, z, a)
    base, oracle, after = perturbation.scr(biased, (full, full), Case(x, z, b), directions, (1, 2))
    assert (base, oracle) == (0.5, 1.0)  # it follows B, four times as large
    assert after[2] == 1.0
    # With latent B+ gone its units stand at 0 and A decides; those of B− are still called A−.
    assert after[1] == 0.75


def test_strongest_latents_by_hand():
    z = np.array([[2.0, 0, 3], [2, 0, 3], [0, 1, 3], [0, 1, 3]])
    y = np.array([1, 1, 0, 0])  # mean differences 2, −1, 0
    directions, w = np.array([[1.0, 0], [0, 3], [5, 5]]), np.array([1.0, 1.0])
    # Effects 2·1, −1·3, 0·10: signed counts positive differences alone, else absolute values.
    assert perturbation.strongest(z, y, w, directions, 3, signed=True).tolist() == [0]
    assert perturbation.strongest(z, y, w, directions, 3, signed=False).tolist() == [1, 0]


def test_tpp_of_separate_concepts_and_of_a_shared_latent():
    generator = np.random.default_rng(0)
    on = np.eye(3)[np.arange(60) % 3]
    x = 2 * on + 0.01 * generator.normal(size=(60, 3))
    cases = {str(c): Case(x, 2 * on, on[:, c].astype(int)) for c in range(3)}
    own = perturbation.tpp(cases, cases, np.eye(3), (1,))
    # Ablated, probe c calls every unit negative: it is right on 2/3 and the others stay right.
    assert own[1] == pytest.approx(1 / 3)
    shared = {c: case._replace(z_UF=np.full((60, 1), 2.0)) for c, case in cases.items()}
    assert perturbation.tpp(shared, shared, np.ones((1, 3)), (1,))[1] == 0.0  # no latent tells


def test_cells_are_balanced_and_the_best_filled_pair_is_found():
    a = np.repeat([0, 1, 2], [20, 20, 2])
    b = np.tile([0, 1], 21)
    found = perturbation.cells(a, b, (0, 1, 0, 1), 7)
    assert {c: len(u) for c, u in found.items()} == {(0, 0): 7, (0, 1): 7, (1, 0): 7, (1, 1): 7}
    made = units.Units(np.zeros((42, 1)), np.zeros((42, 1)), np.zeros(42), {"a": a, "b": b})
    ((one, two, classes),) = perturbation.pairs(made, 3)
    assert (one, two) == ("a", "b") and set(classes[:2]) == {0, 1}


def test_directions_are_the_decoder_rows():
    decoder = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    assert np.allclose(perturbation.directions(Fake(None, 8, decoder)), decoder, atol=1e-6)


# ---- absorption ---------------------------------------------------------------------------


def test_absorption_by_hand():
    """Latent 0 stands for the parent; 1 for a child along it; 2 is orthogonal. w = (1, 0)."""
    directions = np.array([[1.0, 0], [0.6, 0.8], [0, 1]])
    z = np.array(
        [
            [2.0, 0, 0],  # the main latent alone
            [0, 5, 0],  # absorbed: part 3 of 3
            [0, 1, 9],  # part 0.6 of 3 is below 0.4
            [1, 5, 0],  # both: min(3, 4 − 1) / (3 + 1)
        ]
    )
    x = np.array([[2.0, 0], [3, 0], [3, 0], [4, 0]])
    full, fraction = absorption.absorbed(x, z, np.array([1.0, 0]), directions, np.array([0]))
    assert full.tolist() == [False, True, False, False]
    assert fraction.tolist() == pytest.approx([0, 1, 0, 0.75])


def test_main_latents_end_where_the_probe_stops_gaining():
    half = np.tile([1, 0], 50)
    y = np.concatenate([np.ones(100, int), np.zeros(100, int)])
    z = np.zeros((200, 3))
    z[:100, 0], z[:100, 1] = 2 * half, 1.9 * (1 - half)  # a parent split over two latents
    assert absorption.main_latents(z, y).tolist() == [0, 1]
    assert absorption.main_latents(z[:, [0, 2]] + z[:, [1, 2]], y).tolist() == [0]


def test_letters_are_those_of_whole_words_alone():
    assert absorption.letters([" list", "ing", " A", " Bus", " x1", "Ġcat"]).tolist() == [
        11, -1, -1, 1, -1, 2,
    ]  # fmt: skip


def test_children_lie_in_their_parent():
    parent, child = np.array([0, 0, 1, 1, -1, 1]), np.array([0, 0, 1, 2, 2, 1])
    assert absorption.contained(parent, child, 2, 4).tolist() == [0, 1, -2, -2]
