"""The lexical explainer by hand."""

import numpy as np
import pytest
import torch
from eval_cases import Fake, Store, read, value

from lab.measures.concepts import autointerp
from lab.measures.concepts.autointerp import Text


def test_rates_are_smoothed_towards_the_prior():
    active = np.array([[1.0], [1], [0], [0]])
    keys, rate = autointerp.rates(np.array([7, 7, 7, 9]), active, np.array([0.5]))
    assert keys.tolist() == [7, 9]
    assert rate[:, 0].tolist() == pytest.approx([(2 + 2.5) / 8, (0 + 2.5) / 6])


def corpus():
    """Latent 0 fires on token 3, latent 1 on token 4 after token 2, over 400 tokens."""
    generator = np.random.default_rng(0)
    token = generator.integers(0, 6, 400)
    previous = np.concatenate([[-1], token[:-1]])
    z = np.stack([token == 3, (token == 4) & (previous == 2)], 1).astype(float)
    return Text(token, previous, z)


def test_words_and_pairs_are_found_and_scored():
    text = corpus()
    word, pair = autointerp.explain(text, size=1)
    assert word.tokens == [3] and pair.pairs == [(2, 4)]
    assert autointerp.detection(word, text, text.z_NL[:, 0] > 0) == 1.0
    # Its words alone say "active" at every 4; the pair does not, yet the word is kept too.
    quiet = text.z_NL[:, 1] == 0
    assert autointerp.detection(pair, text, ~quiet) == pytest.approx(
        (1 + (text.token_N[quiet] != 4).mean()) / 2
    )


def test_a_latent_that_no_word_tells_is_near_chance():
    text = corpus()
    z, held_out = (np.random.default_rng(s).integers(0, 2, (400, 1)).astype(float) for s in (1, 2))
    (explanation,) = autointerp.explain(text._replace(z_NL=z), size=2)
    assert abs(autointerp.detection(explanation, text, held_out[:, 0] > 0) - 0.5) < 0.08


class WordStore(Store):
    """x has the token's own direction: token v of 8 is e_v."""

    def batches(self, split, batch_size):
        for batch in super().batches(split, batch_size):
            batch.tokens_BT = batch.tokens_BT % 8
            batch.x_BTD = torch.eye(8)[batch.tokens_BT]
            yield batch


def test_latents_of_words_are_told_by_words():
    sae = Fake(lambda x, _: x, 8, groups={"all": torch.arange(8), "odd": torch.tensor([1, 3])})
    reading = read(WordStore(), test=400, choose=400, batch=8)
    rows = autointerp.measure({"words": sae}, reading, None, size=1)["words"].rows
    assert value(rows, "detection") == value(rows, "detection", "odd") == 1.0
    assert [r["n"] for r in rows] == [8, 2]
