"""Composition measures and the clamping of parents, on numbers worked out by hand."""

import math

import pytest
import torch
from edit_cases import text
from eval_cases import Store, read, tokens, value
from test_unlearning import D, ToyStore, ToyWorld, config, identity, values

from lab.edits.clamp import Clamp
from lab.edits.edit import Edit
from lab.edits.hierarchical import Above, Parents, above, above_parents, children
from lab.edits.ranking import coded
from lab.measures.composition import levels, purity
from lab.measures.composition.composition import (
    Edges,
    Fit,
    fired,
    given_parent,
    measure,
    strongest,
    visible,
)
from lab.measures.unlearning.unlearning import unlearn
from tsae import saes
from tsae.sequences import LabelSpec


def two_level(W, d=4, **options):
    """h1 = relu(x) over the axes of x, parent i = h1 of leaf i; W is given."""
    W = torch.as_tensor(W, dtype=torch.float32)
    parents, leaves = W.shape
    torch.manual_seed(0)
    given = {
        "act": "relu",
        "k": 1,
        "k2": 1,
        "scope": "token",
        "ratio": leaves // parents,
        **options,
    }
    sae = saes.build("hierarchical", d_in=d, d_sae=leaves, **given).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d, leaves))
        sae.W_dec.copy_(torch.eye(leaves, d))
        sae.uppers[0].W_enc.copy_(torch.eye(leaves, parents))
        sae.uppers[0].W_dec.copy_(torch.eye(parents, leaves))
        sae.uppers[0].composer.W.copy_(W)
        sae.uppers[0].composer.energy1.fill_(1.0)
        sae.uppers[0].composer.energy2.copy_(torch.arange(parents, 0.0, -1.0))
    return sae


def both(z, h2, x=None, doc=None, labels=None):
    leaves = tokens(z, x, doc=doc, labels=labels)
    return levels.Both(leaves, tokens(h2, leaves.x_ND, doc=doc))


def test_edges_are_of_the_strongest_parents_that_fire_and_nulls_are_no_children():
    sae = two_level(torch.tensor([[0.0, 0.2, 0.9, 0, 0, 0], [0.5, 0, 0, -0.4, 0, 0]]), d=6)
    rates = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]).double()
    frequency = levels.Frequencies(rates, torch.tensor([0.1, 0.1]).double())
    found = strongest(sae, frequency, seed=0)
    assert found.parents_P.tolist() == [0, 1] and found.place_E.tolist() == [0, 0, 1]
    assert found.leaf_E.tolist() == [2, 1, 0]
    assert found.weight_E.tolist() == pytest.approx([0.9, 0.2, 0.5])
    assert not set(found.null_E[:2].tolist()) & {1, 2} and found.null_E[2] != 0
    silent = frequency._replace(level2_P=torch.tensor([0.0, 0.1]).double())
    assert strongest(sae, silent, seed=0).parents_P.tolist() == [1]


def test_shares_of_an_edge_by_hand():
    edges = Edges(*(torch.tensor([i]) for i in (0, 0, 0, 1, 1)))
    z = [[1, 0], [1, 0], [1, 1], [0, 1], [0, 1], [0, 1]]
    h2 = [[1], [1], [0], [1], [0], [0]]
    counts = fired(edges, both(z, h2))
    assert counts[:, 0].tolist() == [3, 3, 2, 4, 1]
    never = torch.tensor([[3.0, 1, 1, 0, 0]]).T  # a null leaf that never fires says nothing
    found = given_parent(torch.cat([counts, never], 1))
    assert [float(share) for share in found] == pytest.approx([2 / 3, 1 / 3])


def test_purity_by_hand():
    base = torch.tensor([2.0, 2.0])
    counts = torch.tensor([[4.0, 0.0], [3.0, 3.0], [1.0, 3.0]])
    h = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = [1.0, 0.0, 1 - h / math.log(2)]
    assert purity.purity(counts, base).tolist() == pytest.approx(expected)
    assert purity.purity(torch.zeros(1, 2), base).isnan().all()


def test_counts_of_batches_give_the_purity_of_all():
    g = torch.Generator().manual_seed(0)
    active = (torch.rand(200, 3, generator=g) < 0.4).float()
    label = torch.randint(-1, 3, (200,), generator=g)
    specs = {"a": LabelSpec("a", "token", ("x", "y", "z"))}
    sets = purity.Sets(specs, torch.tensor([0]), torch.tensor([[2], [1]]))
    for part in (slice(0, 70), slice(70, 200)):
        sets.update(both(active[part], active[part], labels={"a": label[part]}))
    assert sets.counts["a"][:, -1].sum() == (label >= 0).sum()
    for place, s in enumerate((0, 2, 1)):  # the parent, then a leaf of each draw
        by_class = torch.bincount(label[(active[:, s] > 0) & (label >= 0)], minlength=3).double()
        alone = purity.purity(by_class[None], torch.bincount(label[label >= 0]).double())
        assert sets.purities("a")[place] == pytest.approx(float(alone))
    assert sets.covered("a").all()


def test_leaves_matched_to_parents_fire_as_often():
    level1 = torch.tensor([0.01, 0.5, 0.1, 0.02, 0.3]).double()
    frequency = levels.Frequencies(level1, torch.tensor([0.5, 0.0]).double())
    chosen = {tuple(levels.matched_leaves(frequency, seed).tolist()) for seed in range(30)}
    assert {leaf for leaf, _ in chosen} == set(range(5))  # of five leaves all are candidates
    assert {silent for _, silent in chosen} == {0}
    level1 = torch.cat([torch.full((8,), 0.4), torch.full((40,), 0.001)]).double()
    frequency = levels.Frequencies(level1, torch.tensor([0.5]).double())
    assert all(levels.matched_leaves(frequency, seed)[0] < 8 for seed in range(20))


def test_fit_of_a_perfect_composition_by_hand():
    fit = Fit(torch.ones(1, 2))
    z = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]
    fit.update(both(z, [[1.0], [2.0], [2.0]], [[1.0], [2.0], [3.0]]))
    rows = fit.rows()
    assert value(rows, "composition_r2") == pytest.approx(1.0)
    assert value(rows, "l0_level1") == pytest.approx(4 / 3)
    assert value(rows, "l0_level2") == 1 and value(rows, "l0_both") == pytest.approx(7 / 3)
    assert value(rows, "fve_parents") == pytest.approx(1.0)


def test_the_sparsity_of_a_matrix_by_hand():
    fit = Fit(torch.tensor([[0.5, -0.5, 0.0, 0.0009], [1.0, 0.0, 0.0, 0.0]]))
    fit.update(both([[1.0, 0, 0, 0]] * 2, [[1.0, 0]] * 2))
    assert value(fit.rows(), "composition_small") == pytest.approx(5 / 8)


def test_the_family_measures_two_levels_alone_and_finds_the_planted_parents():
    """Axes 0-2 of the store are topics: parents 0-2 are their leaves, W names them."""
    W = torch.zeros(4, 8)
    W[torch.arange(4), torch.arange(4)] = 1.0
    sae = two_level(W, d=8)
    with torch.no_grad():
        sae.b_enc.fill_(-1.0)
    others = {"one": saes.build("hierarchical", d_in=8, d_sae=8, k=2, levels=1)}
    store = Store()
    store.d_model = 8
    found = measure({"two": sae, **others}, read(store, batch=8), None)
    assert set(found) == {"two"}
    rows, tables = found["two"].rows, found["two"].tables
    assert value(rows, "child_given_parent") == 1
    assert value(rows, "child_given_parent_excess") > 0
    assert value(rows, "composition_r2") == pytest.approx(1.0)
    assert value(rows, "parent_purity") > 0.7
    assert value(rows, "level_ap", "level2:document") == pytest.approx(1)
    parents = tables["parents"].set_index("parent")
    assert parents.loc[[0, 1, 2], "label"].tolist() == ["topic"] * 3
    assert parents.loc[[0, 1, 2], "cls"].tolist() == ["a", "b", "c"]
    assert (tables["composition"]["parent"] == tables["composition"]["child"]).all()
    assert set(tables["level_dwell"]["group"]) == {"level1", "level2", "leaves"}


def test_tokens_of_space_alone_can_be_seen():
    assert [visible(text) for text in (" word", "\n", "  ")] == ["word", "\\n", "__"]


# ---- clamping -----------------------------------------------------------------------------


def test_children_are_taken_parent_by_parent_in_proportion_to_w():
    W = torch.tensor([[0.2, 0.8, 0.0, -0.5], [0.0, 0.4, 1.0, 0.1]])
    leaves, share = children(W, torch.tensor([0, 1]), 3)
    assert leaves.tolist() == [1, 0, 2]
    torch.testing.assert_close(share, torch.tensor([[1.0, 0.25, 0.0], [0.4, 0.0, 1.0]]))
    leaves, share = children(W, torch.tensor([0, 1]), 2)
    assert leaves.tolist() == [1, 0] and share[1].tolist() == [0, 0]  # never came to parent 1


def test_a_parent_clamps_its_firing_children_where_it_speaks_alone():
    sae = two_level([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    push = Parents(sae, Above(torch.tensor([0]), torch.tensor([1.5])), 4)
    edit = Edit(sae, push, 100.0, 1.0)
    assert push.latents.tolist() == [0, 1]
    # sqrt(4) = 2 is 100 per cent; BOS, then: speaks with both, with one; is silent below its q
    raw = torch.tensor([[[9.0, 9, 9, 9], [2, 3, 1, 0], [2, 0, 1, 0], [1, 3, 1, 0]]])
    moved = edit(raw)
    expected = [[9.0, 9, 9, 9], [-2, -1, 1, 0], [-2, 0, 1, 0], [1, 3, 1, 0]]
    assert moved[0].tolist() == expected
    assert edit.touched_BT.sum() == 2
    leaf = Edit(sae, Clamp(sae, [1], q_K=torch.tensor([1.0])), 100.0, 1.0)
    assert leaf(raw)[0, :, 1].tolist() == [9, -2, 0, -2]
    with pytest.raises(ValueError, match="with two levels"):
        Parents(saes.build("topk", d_in=4, d_sae=4, k=1), Above(*[torch.ones(1).long()] * 2), 1)


def test_latents_are_ranked_by_forget_tokens_above_what_retained_text_rarely_exceeds():
    retain = torch.zeros(10, 3)
    retain[:, 0] = torch.arange(10.0)  # exceeded by one token in ten: 8
    retain[0, 1] = 5.0
    forget = torch.tensor([[9.0, 1, 0], [8.5, 0, 0], [1, 2, 0], [1, 0, 0]])
    ids = torch.arange(3)

    def axes(t):
        return t.x_BTD[t.keep_BT]

    sae = two_level(torch.zeros(1, 3), d=3)
    texts = coded(sae, [text(forget)]), coded(sae, [text(retain)])
    found = above(axes, ids, *texts, 0.1)
    assert found.latents.tolist() == [0, 1] and found.q_K.tolist() == [8.0, 0.0]
    # The random control takes all of them, each held to its own q.
    drawn = above(axes, ids, *texts, 0.1, seed=0)
    assert sorted(drawn.latents.tolist()) == [0, 1, 2]
    assert drawn.q_K.tolist() == [[8.0, 0.0, 0.0][i] for i in drawn.latents.tolist()]


def test_parents_without_children_are_not_ranked():
    sae = two_level([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.5, 0.0]])
    texts = coded(sae, [text([[1.0, 1, 0, 0]])]), coded(sae, [text([[0.0, 0, 0, 0]])])
    found = above_parents(sae, *texts, 0.0)
    assert found.latents.tolist() == [1]
    assert Parents(sae, found, 2).latents.tolist() == [1, 2]


def test_parents_and_as_many_leaves_forget_what_they_hold_and_one_level_has_neither():
    """Parent 0 hears axes 0 and 2, axis 1 half as much; W says 0 and, half as much, 2."""
    W = torch.zeros(2, D)
    W[0, 0], W[0, 2] = 1.0, 0.5
    sae = two_level(W, d=D)
    with torch.no_grad():
        sae.uppers[0].W_enc.zero_()
        sae.uppers[0].W_enc[:3, 0] = torch.tensor([1.0, 0.5, 1.0])
    asked = config(edits=("clamp", "hierarchical", "leaves"), retain_thresholds=(0.0,))
    rows, _ = unlearn(sae, ToyStore(), ToyWorld(), asked, progress=False)
    forget = values(rows, "unlearn_forget_accuracy")
    for strategy in ("hierarchical", "leaves"):
        group = f"always/{strategy}|t=0|n={{}}|m=100".format
        assert forget[group(1)] == 3 / 4 and forget[group(2)] == 2 / 4
        assert values(rows, "unlearn_near_accuracy")[group(2)] == 1.0
        assert values(rows, "unlearn_latents")[group(2)] == 2
    rows, _ = unlearn(identity(), ToyStore(), ToyWorld(), asked, progress=False)
    assert set(values(rows, "unlearn_score")) == {"always/clamp", "always/hold-random"}
    with pytest.raises(ValueError, match="one that fits a 'l1' SAE"):
        alone = config(edits=("leaves",))
        unlearn(identity(), ToyStore(), ToyWorld(), alone, progress=False)
