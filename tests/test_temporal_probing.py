"""Temporal probing on codes whose accuracies are known, and our own English minimal pairs."""

from collections import Counter

import numpy as np
import pytest
import torch
from eval_cases import value

from lab.measures.concepts import temporal_probing
from lab.measures.concepts.temporal_probing import document_rows, groups, measure, no_power, probe
from lab.measures.reading import Reading, Sizes
from lab.worlds import minimal_pairs, tasks
from lab.worlds.tasks import ProbeItem


def pairs(n_templates=4, n_words=4):
    """Token 1 says the label, token 2 + template and 6 + word fill in; both conditions occur."""
    items = []
    for template in range(n_templates):
        for word in range(n_words):
            for label in (0, 1):
                tokens = (0, 10 + label, 2 + template, 6 + word)
                condition = f"attractors={label}"
                items.append(ProbeItem("agreement", tokens, label, template, word, condition))
    return items


class World:
    def task_names(self):
        return ["agreement"]

    def probe_items(self, task):
        return pairs()

    def model(self, device):
        return "model"


class Store:
    layer, scale = 1, 2.0

    def n_sequences(self, split):
        return 1


class Context:
    """Codes that hold the label of token 1 at later tokens (``sees``), or nothing of it."""

    def __init__(self, sees):
        self.sees = sees

    def encode(self, x, context):
        assert not context.mask_BT[:, 0].any() and (context.boundary_BT[:, :2] == 3).all()
        told = (x[:, 1:2] / Store.scale == 11).float()[..., 0]
        z = torch.zeros(*x.shape[:2], 3)
        if self.sees:
            z[..., 1] = told
        z[..., 2] = 1.0
        return z


@pytest.fixture
def measured(monkeypatch):
    residual = lambda model, tokens, layer: tokens[..., None].float()  # noqa: E731
    monkeypatch.setattr(temporal_probing.models, "residual", residual)
    saes = {"sees": Context(True), "blind": Context(False)}
    monkeypatch.setattr(temporal_probing, "LEAST", 12)
    monkeypatch.setattr(temporal_probing, "CLEAR", 0.5)
    reading = Reading(Store(), Sizes(), progress=False)
    return measure(saes, reading, World(), n_splits=3)


def test_accuracies_of_codes_that_hold_the_answer_and_of_codes_that_do_not(measured):
    sees, blind = measured["sees"], measured["blind"]
    for metric in ("probe_accuracy", "probe_one_accuracy"):
        assert value(sees.rows, metric, "agreement") == 1.0
        assert value(sees.rows, metric, "agreement|attractors=1") == 1.0
        assert value(blind.rows, metric, "agreement") == 0.5  # one answer for both halves
    # The residual at the deciding token is the word's number alone.
    assert value(sees.rows, "probe_residual_accuracy", "agreement") == 0.5
    n = next(r["n"] for r in sees.rows if r["metric"] == "probe_accuracy")
    assert n == 3 * 2 * 2 * 2  # splits x test templates x test words x labels


def test_document_rows_add_up_to_the_rows(measured):
    for found in measured.values():
        frame = found.documents
        for (metric, group), rows in frame.groupby(["metric", "group"]):
            total = rows["num"].sum() / rows["den"].sum()
            assert total == pytest.approx(value(found.rows, metric, group))


def test_answers_are_counted_by_split_and_pair():
    items = pairs(1, 2)
    a = np.array([[0.0], [1.0], [0.0], [0.0]])
    counts = probe(a, items, [([0, 1], [2, 3]), ([0, 1], [2, 3])])
    assert counts.tolist() == [[0, 0, 2, 0], [0, 0, 2, 2]]
    whole = document_rows("probe_accuracy", groups(items), counts, first_pair=5)[0]
    assert whole[["doc", "num", "den"]].to_numpy().tolist() == [[6, 2, 4]]


def test_what_cannot_tell_codes_apart_has_a_reason():
    assert (no_power(399, 0.8), no_power(400, 0.59), no_power(400, 0.99)) == (1, 2, 3)
    assert no_power(400, 0.6) == no_power(400, 0.98) == 0


def test_a_task_at_chance_is_reported_by_its_reference_alone(monkeypatch):
    residual = lambda model, tokens, layer: tokens[..., None].float()  # noqa: E731
    monkeypatch.setattr(temporal_probing.models, "residual", residual)
    monkeypatch.setattr(temporal_probing, "LEAST", 12)
    reading = Reading(Store(), Sizes(), progress=False)
    found = measure({"sees": Context(True)}, reading, World(), n_splits=3)["sees"]
    assert value(found.rows, "probe_residual_accuracy", "agreement") == 0.5
    assert value(found.rows, "probe_dropped", "agreement") == 2
    assert {r["metric"] for r in found.rows} == {"probe_residual_accuracy", "probe_dropped"}
    assert found.documents is None


# ---- English pairs -------------------------------------------------------------------------------


class Words:
    """A token a word, with its space."""

    def __init__(self):
        self.ids = {}

    def __call__(self, text):
        return [self.ids.setdefault(word, len(self.ids) + 1) for word in text.split()]


@pytest.mark.parametrize("task", minimal_pairs.TASKS)
def test_english_items_are_balanced_pairs_that_can_be_split(task):
    encode = Words()
    items = minimal_pairs.make(task, encode, bos_id=0)
    assert len(items) >= temporal_probing.LEAST
    for a, b in zip(items[0::2], items[1::2], strict=True):
        assert (a.label, b.label) == (0, 1)
        assert (a.template, a.word) == (b.template, b.word)
        assert a.tokens != b.tokens and a.tokens[0] == 0
    train, test = tasks.split(items)
    assert len(train) >= 50 and len(test) >= 50
    for half in (train, test):
        assert Counter(item.label for item in half)[0] == len(half) / 2


def test_attractors_are_counted_by_hand():
    encode = Words()
    items = minimal_pairs.make("agreement", encode, bos_id=0)
    back = {id: word for word, id in encode.ids.items()}
    text = {" ".join(back[t] for t in item.tokens[1:]): item for item in items}
    assert text["The key near the cabinet"].condition == "attractors=0"
    assert text["The keys near the cabinet"].condition == "attractors=1"
    assert text["The key near the cabinets behind the rivers"].condition == "attractors=2"
