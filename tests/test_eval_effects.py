"""Causal effects of latents of long and of short lifetime, by hand."""

from types import SimpleNamespace

import pytest
import torch
from eval_cases import TableModel, read

from lab.measures.time import effects
from lab.measures.time.effects import choose


def test_sets_are_the_longest_and_shortest_of_those_that_fire_enough():
    dwell = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0, 8.0])
    density = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])  # latent 0 fires too often
    sets = choose(dwell, density, 1, seed=0)
    assert sets["long"].tolist() == [5] and sets["short"].tolist() == [1]
    for name in ("random_long", "random_short"):
        assert sets[name].item() in (2, 3, 4)
    assert choose(dwell, density, 2, seed=0) == {}


def test_the_effect_is_the_divergence_at_edited_tokens(monkeypatch):
    """Tokens 0 (BOS), 1, 2, 3; the code of latent 0 is 2 at positions 0, 1 and 3."""
    model = TableModel()
    for name in ("logits", "logits_with"):
        monkeypatch.setattr(effects.models, name, getattr(model, name))
    context = SimpleNamespace(mask_BT=torch.tensor([[False, True, True, True]]))
    batch = SimpleNamespace(x_BTD=torch.zeros(1, 4, 8), tokens_BT=torch.arange(4)[None],
                            context=context)  # fmt: skip
    store = SimpleNamespace(scale=2.0, layer=1, n_sequences=lambda split: 1,
                            batch=lambda *a: batch)  # fmt: skip
    codes = torch.tensor([[[2.0, 0], [2, 0], [0, 0], [2, 0]]])
    sae = SimpleNamespace(W_dec=torch.eye(2, 8), encode=lambda x, c: codes)
    found = effects.ablated(sae, read(store), model, {"long": torch.tensor([0])})
    kl = []
    for token in (1, 3):
        clean = (model.embed[token] @ model.unembed).log_softmax(-1)
        # |change of x| is 2; the model's own residual moves by 2 / scale along the decoder row.
        new = ((model.embed[token] - torch.eye(8)[0]) @ model.unembed).log_softmax(-1)
        kl.append(float((clean.exp() * (clean - new)).sum()))
    assert found["effect_kl", "long"] == (pytest.approx(sum(kl) / 2, rel=1e-5), 2)
    moved = model.unembed[0]  # of every logit at token 1, which token 2 follows; nothing follows 3
    lost = float(moved[2] - moved.mean())
    assert found["effect_logit", "long"] == (pytest.approx(lost, rel=1e-4), 1)
