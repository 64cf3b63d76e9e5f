"""Absorption by a latent that stands for its parent too, and parents read as an SAE."""

import pytest
import torch
from eval_cases import Batch, read, value

from lab.measures.composition.levels import Parents
from lab.measures.concepts import absorption
from lab.measures.concepts.perturbation import directions
from tsae import saes
from tsae.sequences import LabelSpec, SequenceContext

TOPICS, KINDS, D = 3, 4, 7
RARE = TOPICS + 1  # axis and latent of the kind that is one token in 25 of topic 0


class Store:
    """24 documents of 25 tokens; x = 3 e_topic + 2 e_kind, and each kind lies in one topic."""

    label_specs = {
        "topic": LabelSpec("topic", "document", ("a", "b", "c")),
        "kind": LabelSpec("kind", "token", ("a's", "a's rare", "b's", "c's")),
    }

    def n_sequences(self, split):
        return 24

    def batches(self, split, batch_size):
        topic = (torch.arange(24) % TOPICS)[:, None].repeat(1, 25)
        kind = torch.where(topic == 0, 0, topic + 1)
        kind[topic[:, 0] == 0, 7] = 1
        axes = torch.eye(D)
        yield Batch(
            x_BTD=3 * axes[topic] + 2 * axes[TOPICS + kind],
            tokens_BT=kind,
            doc_BT=torch.arange(24)[:, None].repeat(1, 25),
            context=SequenceContext(torch.ones(24, 25).bool(), torch.zeros(24, 25).byte()),
            labels={"topic": topic, "kind": kind},
        )


def absorbing():
    """A latent an axis, but that of topic 0 is off where the rare kind's, which points at both, is
    on; level 2 is a copy of level 1."""
    sae = saes.build(
        "hierarchical", d_in=D, d_sae=D, act="relu", k=2, k2=2, ratio=1, scope="token"
    ).eval()
    with torch.no_grad():
        for weights in (sae.W_enc, sae.W_dec, sae.uppers[0].W_enc, sae.uppers[0].W_dec):
            weights.copy_(torch.eye(D))
        sae.W_enc[RARE, 0] = -1.5  # 3 − 1.5 · 2 = 0
        sae.W_enc[RARE, RARE] = 2
        sae.W_dec[RARE, 0] = sae.W_dec[RARE, RARE] = 0.5**0.5
    return sae


def test_a_rare_part_absorbs_its_parent():
    options = {"per_class": 600, "min_count": 1}
    sae = {"sae": absorbing()}
    rows = absorption.measure(sae, read(Store(), batch=24), **options)["sae"].rows
    # Of three topics, topic 0 is absorbed on one token in 25, by its own rare kind.
    assert value(rows, "absorption", "document") == pytest.approx(1 / 25 / 3)
    assert {r["group"] for r in rows} == {"all", "document", "token"}


def test_parents_are_read_as_an_sae():
    sae = absorbing()
    with torch.no_grad():
        sae.uppers[0].W_dec[0] = torch.tensor([0.6, 0, 0, 0, 0.8, 0, 0])
    parents, batch = Parents(sae), next(Store().batches("test", 24))
    with torch.no_grad():
        out = parents(batch.x_BTD, batch.context)
        h2 = sae.parents(batch.x_BTD, batch.context)
    assert torch.equal(out.z, h2)
    assert torch.equal(out.x_hat, sae.decode_parents(h2))
    assert directions(parents)[0] == pytest.approx(
        [0.6 + 0.8 * 0.5**0.5, 0, 0, 0, 0.8 * 0.5**0.5, 0, 0]
    )
    assert directions(parents) == pytest.approx(parents.W_dec.detach().numpy())
    assert (parents.cfg.d_sae, parents.cfg.k, parents.cfg.levels) == (D, 2, 1)
