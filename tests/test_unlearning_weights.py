"""Baselines that change weights, on a random model: what is trained, and that it is undone."""

from types import SimpleNamespace

import pytest
import tiny_models
import torch

from lab.edits.clamp import Clamp
from lab.edits.edit import Edit
from lab.measures.unlearning.config import UnlearnConfig
from lab.measures.unlearning.exam import Exam
from lab.measures.unlearning.weights import LowRank, matrices, relearned, swept, trained
from lab.worlds.knowledge import Question
from tsae import models, saes
from tsae.sequences import FilledContext


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return models.boot(tiny_models.save(tmp_path_factory.mktemp("llama")))


def weights(model):
    return {name: p.clone() for name, p in model.named_parameters()}


def changed(model, before):
    return {n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])}


@pytest.mark.parametrize("low_rank", [False, True])
def test_the_wanted_blocks_alone_are_trained_and_come_back(llama, low_rank):
    before, tokens = weights(llama), torch.tensor([[256, 5, 6, 7]])
    clean = models.residual(llama, tokens, 2)

    def loss(step):
        return models.residual(llama, tokens, 2, gradient=True).square().sum()

    # A block of a Llama has seven matrices, each owned by one module.
    assert len(matrices(llama, [1])) == 7
    with trained(llama, [1], loss, 3, lr=1e-2, low_rank=low_rank):
        assert models.residual(llama, tokens, 2).norm() < clean.norm()
        torch.testing.assert_close(
            models.residual(llama, tokens, 0), models.residual(llama, tokens, 0)
        )
        if not low_rank:
            assert {n.split("layers.")[1][0] for n in changed(llama, before)} == {"1"}
    assert changed(llama, before) == set()
    assert set(weights(llama)) == set(before)
    assert not any(p.requires_grad for p in llama.parameters())
    torch.testing.assert_close(models.residual(llama, tokens, 2), clean, rtol=0, atol=0)


def test_a_low_rank_product_starts_at_nothing():
    weight = torch.randn(5, 3)
    assert torch.equal(LowRank(weight)(weight), weight)


def context(tokens_BT):
    return FilledContext(tokens_BT != 0, torch.zeros_like(tokens_BT, dtype=torch.uint8))


def bench(model, **options):
    """Questions whose right answer is what the random model says, so that it knows them all."""
    asked = []
    for i, name in enumerate(("forget", "near", "far", "forget")):
        prompt = (256, 10 + i, 20 + i)
        best = models.logits(model, torch.tensor([prompt]))[0, -1].argsort(descending=True)[:4]
        choices = tuple((int(t),) for t in best)
        asked.append(Question(name, name, prompt, choices, 0, i, "plain"))
    sae = saes.build("topk", d_in=tiny_models.D_MODEL, d_sae=8, k=2).eval()
    exam = Exam(model, 1, asked, context, 4, "cpu")
    store = SimpleNamespace(
        layer=1, d_model=tiny_models.D_MODEL, scale=1.0,
        median_norm=float(models.residual(model, torch.tensor([[256, 5, 6]]), 1)[:, 1:].norm(dim=-1).mean()),
    )  # fmt: skip
    rows = {True: [q.prompt for q in asked if q.neighbourhood == "forget"], False: [(256, 40, 41)]}
    return SimpleNamespace(
        model=model, sae=sae, store=store, exam=exam, device="cpu", context=context,
        config=UnlearnConfig(**options), drawn=asked, token_rows=rows.__getitem__,
        reread=lambda edit: ([], exam.ask(None)[1][0].assign(metric="ce")),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["rmu", "lora"])
def test_baselines_are_swept_and_undone(llama, name):
    before = weights(llama)
    made = bench(llama, strengths=(100, 1000), stop_below=0.0)
    rows, documents = swept(made, name, torch.arange(4))
    forget = {r["group"]: r["value"] for r in rows if r["metric"] == "unlearn_forget_accuracy"}
    assert list(forget) == [f"weights/{name}|m=100", f"weights/{name}|m=1000"]
    assert all(0 <= value <= 1 for value in forget.values())
    assert {d["group"].iloc[0] for d in documents} == set(forget)
    assert changed(llama, before) == set()


def test_relearning_raises_the_answers_under_the_edit(llama):
    made = bench(llama)
    edit = Edit(made.sae, Clamp(made.sae, range(8), hold=True), 300, 1.0, matched=True)
    prompt, answer = made.drawn[0].prompt, made.drawn[0].choices[0][0]

    def likely():
        edit.within(context(torch.tensor([prompt])))
        logits = models.logits_with(llama, torch.tensor([prompt]), 1, edit)
        return float(logits[0, -1].log_softmax(-1)[answer])

    before = likely()
    with relearned(made, edit, made.drawn, 20):
        assert likely() > before
    assert likely() == pytest.approx(before)
