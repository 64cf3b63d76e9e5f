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
from tsae.interop import load_saelens, save_saelens
from tsae.saes import SequenceContext
from tsae.saes.lstm import LSTMSAE
from tsae.training import train

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


@pytest.mark.parametrize("decoder", ["static", "lstm"])
@pytest.mark.parametrize("act", ACTS)
def test_the_bridge_keeps_every_code(act, decoder, tmp_path):
    """From teacher to the first temporal step nothing changes; only then do codes move."""
    teacher = static(act, directory=tmp_path / "teacher")
    batch = STORE.batch("test", range(4))
    codes = teacher.encode(batch.x_BTD, batch.context)
    sae = LSTMSAE.from_static(teacher, decoder=decoder, **SMALL)
    assert torch.equal(sae.eval().encode(batch.x_BTD, batch.context), codes)
    torch.testing.assert_close(sae(batch.x_BTD, batch.context).x_hat, teacher.decode(codes))

    named = build(act=act, decoder=decoder, teacher=str(tmp_path / "teacher" / "sae"))
    seen, step = [], train.training_step

    def recorded(sae, *rest):
        seen.append((sae.phase, sae.eval().encode(batch.x_BTD, batch.context)))
        sae.train()
        return step(sae, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "training_step", recorded)
        train.train(named, STORE, tmp_path / "run", config(steps=10), progress=False)
    assert [phase for phase, _ in seen] == ["distil"] * 3 + ["introduce"] * 3 + ["refine"] * 4
    assert all(torch.equal(z, codes) for _, z in seen[:4])
    assert not torch.equal(seen[-1][1], codes)
    log = rows(tmp_path / "run")
    assert [row["match_codes"] + row["match_output"] for row in log[:3]] == pytest.approx([0] * 3)
    assert "match_codes" not in log[3] and "gate" in log[-1]


def test_distilling_into_another_activation_approaches_the_teacher(tmp_path):
    static("topk", directory=tmp_path / "teacher")
    sae = build(act="relu", teacher=str(tmp_path / "teacher" / "sae"), phase_shares=(0.8, 0.1, 0.1))
    train.train(sae, STORE, tmp_path / "run", config(steps=50), progress=False)
    matched = [row["match_codes"] for row in rows(tmp_path / "run") if row["phase"] == "distil"]
    assert len(matched) == 40 and matched[-1] < 0.5 * matched[0]


def test_phases_move_their_parts_and_no_others(tmp_path, monkeypatch):
    history, sae = [], build(decoder="lstm")
    step = train.training_step

    def recorded(sae, *rest):
        out = step(sae, *rest)
        parameters = {k: p.detach().clone() for k, p in sae.named_parameters()}
        history.append((sae.phase, parameters, out[0]))
        return out

    monkeypatch.setattr(train, "training_step", recorded)
    train.train(sae, STORE, tmp_path, config(steps=20), progress=False)
    assert [name for name, *_ in history] == ["static"] * 6 + ["introduce"] * 6 + ["refine"] * 8
    temporal = {name for name in history[0][1] if name.startswith("recurrent.")}
    moving = {"static": STATIC_WEIGHTS, "introduce": temporal, "refine": STATIC_WEIGHTS | temporal}
    for (before, earlier, _), (name, later, terms) in zip(history, history[1:], strict=False):
        moved = {k for k in later if not torch.equal(earlier[k], later[k])}
        if before == name:  # at the first temporal step rho = 0 stops all other gradients
            assert moved == moving[name]
        else:
            assert moved <= moving[name]
        assert ("gate" in terms) == (name == "refine")
        assert ("recurrent" in terms) == (name != "static")


def test_k_falls_along_a_cosine_in_the_static_phase_and_inference_keeps_k():
    sae = build().train()
    expected = {0: 16, 15: 10, 30: 4, 7: round(4 * (2.5 + 1.5 * math.cos(math.pi * 7 / 30)))}
    batch = STORE.batch("train", range(3))
    for step, k in expected.items():
        sae.start_step(step, 100, "static")
        assert sae.act.k_now == k
        assert sae.loss(batch.x_BTD, batch.context)["l0"] <= k
        assert (sae.eval().encode(batch.x_BTD, batch.context) > 0).sum(-1).max() <= 4
        assert sae.train().act.k_now == k
    sae.start_step(3, 100, "introduce")
    assert sae.act.k_now == 4
    sae = build(anneal=1.0).train()
    sae.start_step(0, 100, "static")
    assert sae.act.k_now == 4


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
    with pytest.raises(CheckpointError, match="SAELens directory, in the units of the raw"):
        train.train(build(teacher=str(tmp_path / "theirs")), STORE, tmp_path, config(), False)
    back = load_saelens(tmp_path / "theirs", STORE)
    batch = STORE.batch("test", range(4))
    codes = back.encode(batch.x_BTD, batch.context)
    torch.testing.assert_close(codes, teacher.encode(batch.x_BTD, batch.context))
    back.save(tmp_path / "ours")
    named = build(act="jumprelu", teacher=str(tmp_path / "ours"))
    named.initialise(STORE.mean_D)
    named.phase = "introduce"  # the first step of phase (b)
    assert torch.equal(named.eval().encode(batch.x_BTD, batch.context), codes)


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


@pytest.mark.parametrize("act", ACTS)
def test_the_laws_hold_with_the_recurrent_decoder(act, monkeypatch):
    laws.test_codes_are_causal_within_the_document("lstm", act, DECODER)
    laws.test_invalid_tokens_have_no_code_and_reach_no_other("lstm", act, DECODER)
    laws.test_streaming_equals_batch("lstm", act, DECODER)
    laws.test_gradients_reach_every_parameter_and_keep_the_norm("lstm", act, DECODER)
    if act in ("topk", "batchtopk"):
        law = laws.test_sparse_loss_and_gradients_equal_the_dense_ones
        law("lstm", act, DECODER, monkeypatch)


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
        ({"tbptt": 0}, "None or a whole number above 0"),
        ({"anneal": 0.5}, "anneal=0.5"),
        ({"phase_shares": (0.5, 0.5)}, "three shares of at least 0 that sum to 1"),
        ({"phase_shares": (1.5, -0.5, 0.0)}, "three shares of at least 0 that sum to 1"),
    ],
)
def test_bad_values_say_what_is_allowed(options, needle):
    with pytest.raises(ValueError, match=needle):
        build(**options)
