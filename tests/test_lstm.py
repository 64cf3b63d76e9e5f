"""Recurrent codes: the bridge from a static SAE, the phases, the recurrent decoder."""

import math

import pytest
import test_saes as laws
import torch
from fake_store import FakeStore
from test_resume import Killed, MortalStore, same_files
from test_saes import ACTS, text
from test_train import config, rows

from tsae import saes
from tsae.errors import CheckpointError
from tsae.interop import save_saelens
from tsae.saes import SequenceContext
from tsae.saes.lstm import LSTMSAE
from tsae.training import train
from tsae.training.runs import run_training

STORE = FakeStore(n_train=22)
SMALL = {"hidden": 6, "memory": 3, "rank": 4}
STATIC_WEIGHTS = {"W_enc", "b_enc", "W_dec", "b_dec"}


def build(seed=0, **options):
    torch.manual_seed(seed)
    return saes.build("lstm", **{"d_in": 16, "d_sae": 32, "k": 4, **SMALL, **options})


def static(act="topk", steps=12, directory=None):
    torch.manual_seed(3)
    sae = saes.build({"relu": "l1"}.get(act, act), d_in=16, d_sae=32, k=4)
    return train.train(sae, STORE, directory, config(steps=steps), progress=False).sae


def test_a_batch_without_valid_tokens_has_no_codes():
    sae = build()
    context = SequenceContext(torch.zeros(2, 5, dtype=torch.bool))
    assert sae(torch.randn(2, 5, 16), context).z.abs().sum() == 0


def test_the_gate_penalty_is_the_mean_open_probability():
    sae = build(lambda_gate=2.0)
    with torch.no_grad():
        sae.recurrent.gate.slow.fill_(0.0)
    batch = STORE.batch("train", range(2))
    penalty = float(sae.loss(batch.x_BTD, batch.context)["gate"].detach())
    assert penalty == pytest.approx(2 / (1 + 11 ** (-2 / 3)))


# ---- the bridge and the phases ---------------------------------------------------------------


def recorded(monkeypatch, note):
    """Have the trainer note something at each step, before and after it."""
    seen, step = [], train.training_step

    def noted(sae, *rest):
        before, out = note(sae), step(sae, *rest)
        seen.append((sae.phase.name, before, out[0], note(sae)))
        return out

    monkeypatch.setattr(train, "training_step", noted)
    return seen


@pytest.mark.parametrize("decoder", ["static", "lstm"])
@pytest.mark.parametrize("act", ACTS)
def test_the_bridge_keeps_every_code(act, decoder, tmp_path, monkeypatch):
    """The teacher's codes at the first step, and the distilled ones at the first temporal one."""
    teacher = static(act, directory=tmp_path / "teacher")
    batch = STORE.batch("test", range(4))
    codes = teacher.encode(batch.x_BTD, batch.context)
    sae = LSTMSAE.from_static(teacher, decoder=decoder, **SMALL)
    assert torch.equal(sae.eval().encode(batch.x_BTD, batch.context), codes)
    torch.testing.assert_close(sae(batch.x_BTD, batch.context).x_hat, teacher.decode(codes))

    def encoded(sae):
        z = sae.eval().encode(batch.x_BTD, batch.context)
        sae.train()
        return z

    named = build(act=act, decoder=decoder, teacher=str(tmp_path / "teacher" / "sae"))
    seen = recorded(monkeypatch, encoded)
    train.train(named, STORE, tmp_path / "run", config(steps=10), progress=False)
    assert [s[0] for s in seen] == ["distil"] * 3 + ["introduce"] * 3 + ["refine"] * 4
    assert torch.equal(seen[0][1], codes) and torch.equal(seen[3][1], seen[2][3])
    assert not torch.equal(seen[-1][1], seen[2][3])
    log = rows(tmp_path / "run")
    if act != "batchtopk":  # which keeps k a batch in training, and a threshold's worth after it
        assert log[0]["match_codes"] + log[0]["match_output"] == pytest.approx(0, abs=1e-9)
    assert "match_codes" not in log[3] and "gate" in log[-1]


def test_distilling_into_another_activation_approaches_the_teacher(tmp_path):
    static("topk", directory=tmp_path / "teacher")
    sae = build(act="relu", teacher=str(tmp_path / "teacher" / "sae"), phase_shares=(0.8, 0.1, 0.1))
    train.train(sae, STORE, tmp_path / "run", config(steps=50), progress=False)
    matched = [row["match_codes"] for row in rows(tmp_path / "run") if row["phase"] == "distil"]
    assert len(matched) == 40 and matched[-1] < 0.6 * matched[0]


def test_phases_move_their_parts_and_no_others(tmp_path, monkeypatch):
    def parameters(sae):
        return {k: p.detach().clone() for k, p in sae.named_parameters()}

    seen, sae = recorded(monkeypatch, parameters), build(decoder="lstm")
    train.train(sae, STORE, tmp_path, config(steps=20), progress=False)
    assert [s[0] for s in seen] == ["static"] * 6 + ["introduce"] * 6 + ["refine"] * 8
    temporal = {name for name in seen[0][1] if name.startswith("recurrent.")}
    moving = {"static": STATIC_WEIGHTS, "introduce": temporal, "refine": STATIC_WEIGHTS | temporal}
    for number, (name, before, terms, after) in enumerate(seen):
        moved = {k for k in after if not torch.equal(before[k], after[k])}
        # At the first temporal step rho = 0 stops some gradients.
        assert moved <= moving[name] if number == 6 else moved == moving[name]
        assert ("gate" in terms) == (name == "refine")
        assert ("recurrent" in terms) == ("next" in terms) == (name != "static")


def test_k_falls_along_a_cosine_in_the_static_phase_and_inference_keeps_k():
    sae = build().train()
    first, second, _ = sae.phases()
    expected = {0: 16, 15: 10, 30: 4, 7: round(4 * (2.5 + 1.5 * math.cos(math.pi * 7 / 30)))}
    batch = STORE.batch("train", range(3))
    for step, k in expected.items():
        sae.start_step(step, 100, first)
        assert sae.act.k_now == k
        assert sae.loss(batch.x_BTD, batch.context)["l0"] <= k
        assert (sae.eval().encode(batch.x_BTD, batch.context) > 0).sum(-1).max() <= 4
        assert sae.train().act.k_now == k
    sae.start_step(3, 100, second)
    assert sae.act.k_now == 4


def test_the_prediction_and_the_price_by_hand():
    """Two latents that read two axes; u W_next = (h, m) W_next is 0, so b_next alone predicts."""
    sae = build(d_in=2, d_sae=2, k=2, price=3.0, predict=0.5, act="relu", lambda_gate=0.0).train()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.recurrent.b_next.copy_(torch.tensor([0.0, math.log(3.0)]))
    x = torch.tensor([[[1.0, 0.0], [9.0, 9.0], [3.0, 1.0], [0.0, 2.0], [5.0, 0.0]]])
    mask = torch.tensor([[True, False, True, True, True]])
    context = SequenceContext(mask, torch.tensor([[3, 0, 0, 0, 3]], dtype=torch.uint8))
    terms = sae.loss(x, context)
    # Born: 2 + 1, then 1, over 4 tokens and d = 2; the last token starts a document.
    terms = {name: float(term.detach()) for name, term in terms.items()}
    assert terms["births"] == pytest.approx(3 * 4 / 8)
    # Active after another: latents 0 and 1, then 1, of chances 1/4 and 3/4.
    nats = (math.log(4) + 2 * math.log(4 / 3)) / 3
    assert terms["next"] == pytest.approx(0.5 * nats)
    chances = sae.eval().next_logits(x, context).softmax(-1)[0, 2]
    assert chances.tolist() == pytest.approx([0.25, 0.75])


def test_a_sampled_softmax_is_near_the_full_one():
    torch.manual_seed(0)
    whole = build(d_in=16, d_sae=400).recurrent
    few = build(d_in=16, d_sae=400, negatives=200).recurrent
    few.load_state_dict(whole.state_dict())
    u, codes = torch.randn(40, 10), (torch.rand(40, 400) < 0.02).float()
    context = SequenceContext().filled(torch.zeros(2, 20, 1))
    for part in (whole, few):
        torch.nn.init.normal_(part.W_next, std=0.1, generator=torch.Generator().manual_seed(1))
    drawn = [float(few.surprise(u, codes, context)) for _ in range(20)]
    assert sum(drawn) / 20 == pytest.approx(float(whole.surprise(u, codes, context)), rel=0.01)


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_killed_while_or_after_distilling_resumes(step, tmp_path):
    static("topk", directory=tmp_path / "teacher")

    def student():
        return build(act="jumprelu", teacher=str(tmp_path / "teacher" / "sae"))

    asked = config(checkpoint_every=1)
    train.train(student(), STORE, tmp_path / "whole", asked, progress=False)
    with pytest.raises(Killed):
        train.train(student(), MortalStore(step), tmp_path / "torn", asked, progress=False)
    train.train(student(), STORE, tmp_path / "torn", asked, progress=False)
    same_files(tmp_path / "torn", tmp_path / "whole")


def test_teachers_that_do_not_fit_are_named(tmp_path):
    static("topk", directory=tmp_path / "teacher")
    wider = build(d_sae=64, teacher=str(tmp_path / "teacher" / "sae"))
    with pytest.raises(CheckpointError, match="teacher/sae has d_sae=32, but 64 is asked for"):
        train.train(wider, STORE, tmp_path / "run", config(), progress=False)
    absent = build(teacher=str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match="absent"):
        train.train(absent, STORE, tmp_path / "run", config(), progress=False)
    with pytest.raises(CheckpointError, match="'conv' SAE, whose encoder is not the static one"):
        LSTMSAE.from_static(saes.build("conv", d_in=16, d_sae=32, k=4))


def test_a_teacher_of_another_world_is_refused(tmp_path):
    static("topk", directory=tmp_path / "teacher")
    here = FakeStore(n_train=22)
    here.fingerprint = "e" * 64
    sae = build(teacher=str(tmp_path / "teacher" / "sae"))
    with pytest.raises(CheckpointError, match="use the store it came from"):
        train.train(sae, here, tmp_path / "run", config(), progress=False)


def test_a_teacher_from_saelens_starts_the_bridge_in_the_units_of_the_store(tmp_path):
    teacher = static("jumprelu", directory=tmp_path / "teacher")
    save_saelens(teacher, tmp_path / "theirs")
    run_training(
        STORE, tmp_path / "run", variant="lstm", act="jumprelu", k=4, d_sae=32, lr=1e-3,
        options={**SMALL, "teacher": str(tmp_path / "theirs")}, progress=False,
        **{"steps": 4, "warmup_steps": 0, "batch_tokens": 64},
    )  # fmt: skip
    batch = STORE.batch("test", range(4))
    given = saes.load(tmp_path / "run" / "teacher")
    codes, ours = (s.eval().encode(batch.x_BTD, batch.context) for s in (teacher, given))
    torch.testing.assert_close(ours, codes)


def test_the_ablations_by_hand():
    batch = STORE.batch("test", range(3))
    x, context = batch.x_BTD, batch.context
    plain = build().eval()
    open_ = build(gated=False, bridge=False).eval()  # every gate 1, every rho 1
    assert torch.equal(open_.recurrent.weight(), open_.recurrent.W)
    with torch.no_grad():
        plain.recurrent.rho.fill_(1.0)
        plain.recurrent.gate.slow.fill_(100.0)
    open_.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(open_.encode(x, context), plain.encode(x, context))
    names = [p.name for p in build(phase_shares=(0.0, 0.4, 0.6)).phases()]
    assert names == ["introduce", "refine"]
    skipping = build(phase_shares=(0.4, 0.0, 0.6)).phases()
    assert [(p.name, p.share) for p in skipping] == [("static", 0.4), ("refine", 0.6)]


# ---- the recurrent decoder -------------------------------------------------------------------

DECODER = {**SMALL, "decoder": "lstm"}


def test_the_recurrent_part_predicts_from_earlier_tokens_of_the_document_alone():
    sae = laws.build("lstm", "topk", DECODER)
    x, context = text()
    out = sae(x, context)
    part = out.beside["x_recurrent"]
    torch.testing.assert_close(out.x_hat, sae.decode(out.z) + part)
    starts = context.filled(x).boundary_BT == 3
    assert part[starts].abs().max() == 0 and part[:, 12].abs().max() > 0
    changed = x.clone()
    changed[:, 10] += 5.0
    again = sae(changed, context).beside["x_recurrent"]
    assert torch.equal(again[:, :11], part[:, :11]) and not torch.equal(again[:, 11:], part[:, 11:])


@pytest.mark.parametrize("act", ["topk", "relu"])
def test_mse_and_recurrent_split_the_whole_error(act):
    sae = laws.build("lstm", act, DECODER)
    x, context = text()
    terms, out = sae.loss(x, context), sae(x, context)
    mask = context.mask_BT
    whole = (x - out.x_hat)[mask].square().mean()
    alone = (x - sae.decode(out.z))[mask].square().mean()
    torch.testing.assert_close(terms["mse"], alone)
    torch.testing.assert_close(terms["mse"] + terms["recurrent"], whole)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"hidden": -1}, "hidden=-1"),
        ({"memory": 1.5}, "memory=1.5"),
        ({"decoder": "gru"}, "static, or lstm with hidden above 0"),
        ({"decoder": "lstm", "hidden": 0}, "static, or lstm with hidden above 0"),
        ({"price": -1.0}, "price=-1.0"),
        ({"anneal": 0.5}, "anneal=0.5"),
        ({"phase_shares": (0.5, 0.5)}, "three shares of at least 0 that sum to 1"),
        ({"phase_shares": (1.5, -0.5, 0.0)}, "three shares of at least 0 that sum to 1"),
    ],
)
def test_bad_values_say_what_is_allowed(options, needle):
    with pytest.raises(ValueError, match=needle):
        build(**options)
