"""Lifetimes through a document, successions, and causal effects, by hand."""

import math

import pandas as pd
import pytest
import torch
from eval_cases import TableModel, value

from lab.measures.time import effects
from lab.measures.time.effects import choose, edited, ratio_error
from lab.measures.time.lifetimes import by_position, per_token

# Latent 0: active at 0, 1 and again at 3; latent 1: at 2, then alone in the second piece.
CODES = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 0], [0, 1], [0, 0]]).bool()
PIECES = torch.tensor([0, 0, 0, 0, 1, 1])


def test_births_returns_and_deaths_by_position():
    ages = by_position(CODES, PIECES).set_index("position")
    assert ages["tokens"].tolist() == [2, 2, 1, 1]
    assert ages["first"].tolist() == [0, 0, 1, 0]  # at position 0 nothing was silent before
    assert ages["back"].tolist() == [0, 0, 0, 1]
    assert ages["died"].tolist() == [0, 1, 1, 1]
    assert ages["seen"].tolist() == [2, 2, 2, 2]
    table = per_token(ages.reset_index())
    assert table.loc[1, "died"] == 50.0 and table.loc[2, "first"] == 100.0


# ---- effects -----------------------------------------------------------------------------------


def test_sets_are_the_longest_and_shortest_of_those_that_fire_enough():
    dwell = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0, 8.0])
    density = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])  # latent 0 fires too often
    sets = choose(dwell, density, 1, 0.01, 0.2, seed=0)
    assert sets["long"].tolist() == [5] and sets["short"].tolist() == [1]
    for name in ("random_long", "random_short"):
        assert sets[name].item() in (2, 3, 4)
    assert choose(dwell, density, 2, 0.01, 0.2, seed=0) == {}


def test_ablation_takes_all_and_addition_moves_the_mean_activity():
    z = torch.tensor([[2.0, 1.0], [4.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    latents, offset = torch.tensor([0]), torch.tensor([1])
    assert edited(z, latents, "ablate", offset)[:, 0].tolist() == [-2, -4, 0, 0]
    assert edited(z, latents, "add", offset)[:, 0].tolist() == [0, 3, 3, 0]


class OneSequence:
    """Tokens 0, 1, 2, 3 of two documents; the code of latent 0 is 2 at positions 1 and 3."""

    scale, layer = 2.0, 1

    def n_sequences(self, split):
        return 1

    def batch(self, split, rows, device):
        context = type("Context", (), {"mask_BT": torch.tensor([[False, True, True, True]])})
        return type(
            "Batch",
            (),
            {
                "x_BTD": torch.zeros(1, 4, 8),
                "tokens_BT": torch.tensor([[0, 1, 2, 3]]),
                "doc_BT": torch.tensor([[-1, 5, 5, 6]]),
                "context": context,
            },
        )


class TwoCodes:
    W_dec = torch.eye(2, 8)

    def encode(self, x, context):
        z = torch.zeros(1, 4, 2)
        z[0, [1, 3], 0] = 2.0
        return z


def test_the_effect_is_the_divergence_at_edited_tokens(monkeypatch):
    model = TableModel()
    for name in ("logits", "logits_with"):
        monkeypatch.setattr(effects.models, name, getattr(model, name))
    measured = effects.Effects(TwoCodes(), OneSequence(), model, 4, "cpu").measured(
        {"long": torch.tensor([0])}, n_sequences=9, seed=0
    )
    kl = []
    for token in (1, 3):
        clean = (model.embed[token] @ model.unembed).log_softmax(-1)
        # |change of x| is 2; the model's own residual moves by 2 / scale along the decoder row.
        new = ((model.embed[token] - torch.eye(8)[0]) @ model.unembed).log_softmax(-1)
        kl.append(float((clean.exp() * (clean - new)).sum()))
    assert value(measured.rows, "effect_kl", "ablate|long") == pytest.approx(sum(kl) / 2, rel=1e-5)
    assert value(measured.rows, "effect_push", "ablate|long") == pytest.approx(2.0)
    frame = measured.documents.query("group == 'ablate|long'")
    assert frame["doc"].tolist() == [5, 6] and frame["den"].tolist() == [1.0, 1.0]
    assert frame["num"].tolist() == pytest.approx(kl, rel=1e-5)


def test_the_standard_error_of_a_mean_is_the_usual_one():
    frame = pd.DataFrame({"num": [1.0, 2.0, 6.0], "den": [1.0, 1.0, 1.0]})
    sd = math.sqrt((4 + 1 + 9) / 2)
    assert ratio_error(frame) == pytest.approx(sd / math.sqrt(3))
    assert math.isnan(ratio_error(frame.head(1)))
