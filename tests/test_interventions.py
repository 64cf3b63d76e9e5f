"""Ranking, pushes, their random control and gates, against numbers found by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from lab.edits import (
    Ablation,
    Clamp,
    Direction,
    Edit,
    GateConfig,
    Mass,
    Text,
    calibrate,
    coded,
    frequency,
    labelled,
    quantiles,
    random_control,
    select,
)
from lab.edits.evidence import Path, Prefix, exceeded_at_most
from lab.edits.gate import running
from tsae import saes
from tsae.saes import SequenceContext


def identity(d: int = 4):
    """z = relu(x), x_hat = z: each latent is one axis; negative x is the error term."""
    sae = saes.build("l1", d_in=d, d_sae=d, k=1).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
        sae.W_dec.copy_(torch.eye(d))
    return sae


def context(mask, boundary=None):
    mask_BT = torch.as_tensor(mask, dtype=torch.bool)
    boundary_BT = torch.zeros_like(mask_BT, dtype=torch.uint8)
    if boundary is not None:
        boundary_BT = torch.as_tensor(boundary, dtype=torch.uint8)
    return SequenceContext(mask_BT, boundary_BT)


def clamp(m=50, scale=1.0, latents=(0,), hold=False, **options):
    sae = identity()
    return Edit(sae, Clamp(sae, latents, hold), m, scale, **options)


# ---- pushes -----------------------------------------------------------------------------------

RAW = torch.tensor(
    [[[3.0, 1, 0, 0], [2, -1, 0, 0.1], [-1, 2, 0, 0], [1, 0, 5, -3], [4, 0, 0, 0]]]
)  # fmt: skip


def test_clamp_by_hand_edits_only_where_the_latent_fires():
    # d = 4: unit = 2/100, so m = 50 sets the code to -1 in normalised units, -1/scale in raw ones.
    edit = clamp(50, scale=0.5)
    out = edit(RAW)
    expected = RAW.clone()
    expected[0, [1, 3, 4], 0] = -2.0  # position 0 is BOS, at position 2 latent 0 is silent
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    assert edit.touched_BT.tolist() == [[False, True, False, True, True]]
    assert edit.seen_BT.sum() == 4  # all but BOS
    untouched = ~edit.touched_BT[0]
    assert torch.equal(out[0, untouched], RAW[0, untouched])


def test_matched_pushes_all_move_by_the_same_share_of_the_tokens_norm():
    sae = identity()
    pushes = [
        Clamp(sae, [0]),
        Clamp(sae, [0, 1, 2], hold=True),
        Ablation(sae, [0]),
        Direction(torch.tensor([0.0, 3.0, 0.0, 4.0])),
    ]
    for push in pushes:
        out = Edit(sae, push, 30, 0.5, matched=True)(RAW)
        for t in (1, 3, 4):
            moved = (out - RAW)[0, t].norm().item()
            assert moved == pytest.approx(0.3 * RAW[0, t].norm().item(), rel=1e-5)
        # Scaling the token scales the edit, which an unmatched clamp does not do.
        torch.testing.assert_close(Edit(sae, push, 30, 3.5, matched=True)(RAW / 7), out / 7)


def test_hold_ablation_and_direction_by_hand():
    sae = identity()
    held = clamp(50, hold=True, latents=[0, 2])(RAW)
    # Negative x is the error term: it stays, and the held code adds to it.
    assert held[0, 1:, 0].tolist() == [-1.0, -2.0, -1.0, -1.0]
    assert held[0, 1:, 2].tolist() == [-1.0, -1.0, -1.0, -1.0]
    half = Edit(sae, Ablation(sae, [0]), 50, 1.0)(RAW)
    assert half[0, 1:, 0].tolist() == [1.0, -1.0, 0.5, 2.0]
    along = Edit(sae, Direction(torch.tensor([0.0, 3.0, 0.0, 4.0])), 50, 1.0)(RAW)
    torch.testing.assert_close(along[0, 1:] - RAW[0, 1:], torch.tensor([[0, -0.6, 0, -0.8]] * 4))


def test_unit_scale_is_a_raw_code():
    for scale in (0.5, 3.0):
        out = clamp(25, scale, unit=scale)(RAW)
        assert out[0, [1, 3, 4], 0].tolist() == pytest.approx([-25.0] * 3, rel=1e-5)


def test_masked_massive_and_bos_are_never_edited():
    edit = clamp(massive_norm=3.9)
    out = edit.within(context([[1, 1, 1, 0, 1]]))(RAW)
    # token 3 is masked and also too long, token 4 has norm 4 > 3.9
    assert edit.touched_BT.tolist() == [[False, True, False, False, False]]
    assert (int(edit.touched_BT.sum()), int(edit.seen_BT.sum())) == (1, 2)
    assert torch.equal(out[0, [0, 2, 3, 4]], RAW[0, [0, 2, 3, 4]])


def test_context_grows_with_generated_text_and_must_fit():
    edit = clamp().within(context([[1, 1, 0]], [[0, 0, 1]]))
    grown = edit.context_of(RAW)
    assert grown.mask_BT.tolist() == [[False, True, False, True, True]]
    assert grown.boundary_BT.tolist() == [[3, 3, 1, 0, 0]]
    with pytest.raises(ValueError, match=r"shape \(1, 3\).*\(1, 2\)"):
        edit(RAW[:, :2])
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        edit(RAW.expand(2, -1, -1))


@pytest.mark.parametrize("name", saes.names())
def test_laws_of_an_edit_hold_for_every_variant(name):
    torch.manual_seed(0)
    sae = saes.build(name, d_in=12, d_sae=48, k=6).eval()
    raw = 3 * torch.randn(3, 10, 12)
    within = context(torch.rand(3, 10) > 0.2, torch.randint(0, 3, (3, 10)))
    scale = 0.4
    edit = Edit(sae, Clamp(sae, range(0, 48, 3)), 80, scale).within(within)
    out = edit(raw)
    touched = edit.touched_BT
    assert 0 < int(touched.sum()) < int(within.mask_BT.sum())
    assert not touched[:, 0].any() and not touched[~within.mask_BT].any()
    assert torch.equal(out[~touched], raw[~touched])
    # The error term stays: the change is the change of the decoded codes alone.
    _, z, full = edit.codes(raw)
    z_new = torch.where((z > 0) & (torch.arange(48) % 3 == 0), -80 * math.sqrt(12) / 100, z)
    moved = (sae.decode(z_new) - sae.decode(z)) / scale
    torch.testing.assert_close((out - raw)[touched], moved[touched], atol=1e-4, rtol=1e-4)
    # Causal: what follows token 6 changes nothing up to it.
    later = raw.clone()
    later[:, 7:] = torch.randn(3, 3, 12)
    torch.testing.assert_close(edit(later)[:, :7], out[:, :7], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options, field",
    [
        ({"latents": [4]}, "latents"),
        ({"latents": [1, 1]}, "latents"),
        ({"m": 0}, "m=0"),
        ({"scale": float("nan")}, "scale"),
        ({"unit": -1.0}, "unit"),
    ],
)
def test_bad_values_are_named(options, field):
    with pytest.raises(ValueError, match=field):
        clamp(**options)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        sae = identity().train()
        Edit(sae, Clamp(sae, [0]), 50, 1.0)


# ---- ranking ----------------------------------------------------------------------------------


def text(rows, keep=None):
    """One sequence from rows of codes; all valid, all kept unless told."""
    x = torch.tensor([rows], dtype=torch.float32)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    keep_BT = mask if keep is None else torch.tensor([keep], dtype=torch.bool)
    return Text(x, SequenceContext(mask, None), keep_BT)


def test_frequency_and_selection_by_hand():
    forget = [
        text([[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]),
        text([[1, 1, 1, 1]] * 2, [True, False]),
    ]
    forget_F = frequency(coded(identity(), forget))
    assert forget_F.tolist() == [3 / 4, 2 / 4, 1 / 4, 2 / 4]
    rows = [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    retain_F = frequency(coded(identity(), [text(rows)]))
    # retain shares: 0, 1/4, 0, 2/4; ties in the forget share go to the lower id
    assert select(forget_F, retain_F, 0.2).tolist() == [0, 2]
    assert select(forget_F, retain_F, 0.25).tolist() == [0, 1, 2]
    assert select(forget_F, retain_F, 0.5).tolist() == [0, 1, 3, 2]


def test_selection_within_a_group():
    forget_F, retain_F = torch.tensor([0.1, 0.4, 0.3, 0.0]), torch.zeros(4)
    assert select(forget_F, retain_F, 0.01).tolist() == [1, 2, 0]
    assert select(forget_F, retain_F, 0.01, torch.tensor([0, 2, 3])).tolist() == [2, 0]
    with pytest.raises(ValueError, match="empty"):
        coded(identity(), [])
    with pytest.raises(ValueError, match="retain_threshold"):
        select(forget_F, retain_F, 1.5)


class LabelledStore:
    """Two sequences of 4 tokens; label 'domain' is -1 at BOS."""

    domain = torch.tensor([[-1, 0, 0, 1], [-1, 2, 2, 2]], dtype=torch.int16)

    def batches(self, split, batch_size):
        mask = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 1]], dtype=torch.bool)
        for b in range(2):
            batch = SimpleNamespace(
                x_BTD=torch.full((1, 4, 1), float(b)),
                context=SequenceContext(mask[b : b + 1], torch.zeros(1, 4, dtype=torch.uint8)),
                labels={"domain": self.domain[b : b + 1]},
                tokens_BT=torch.arange(4)[None],
            )
            batch.to = lambda device, batch=batch: batch
            yield batch


def test_labelled_text_keeps_valid_tokens_of_the_class_and_the_rest_elsewhere():
    (inside,) = labelled(LabelledStore(), "train", "domain", [0])
    assert inside.keep_BT.tolist() == [[False, True, True, False]]
    outside = list(labelled(LabelledStore(), "train", "domain", [0], inside=False))
    assert [t.keep_BT[0].tolist() for t in outside] == [
        [False, False, False, True],
        [False, True, False, True],
    ]
    assert (
        len(list(labelled(LabelledStore(), "train", "domain", [0], inside=False, limit_tokens=1)))
        == 1
    )


# ---- random control ---------------------------------------------------------------------------


def test_random_control_has_the_same_density_and_is_disjoint():
    generator = torch.Generator().manual_seed(1)
    frequency_F = 10 ** (-4 * torch.rand(400, generator=generator))
    frequency_F[:50] = 0.0
    chosen = torch.arange(50, 400, 20)
    control = random_control(chosen, frequency_F, seed=3)
    assert len(control.unique()) == len(chosen)
    assert not set(control.tolist()) & set(chosen.tolist())
    ratio = (frequency_F[control] / frequency_F[chosen]).log10().abs()
    assert ratio.max() < 0.3  # the densities span four decades
    assert torch.equal(control, random_control(chosen, frequency_F, seed=3))
    assert not torch.equal(control, random_control(chosen, frequency_F, seed=4))


def test_random_control_by_hand():
    # The only latents of like density: 3 for latent 0, 2 for latent 1; 4 is silent.
    frequency_F = torch.tensor([0.5, 0.01, 0.011, 0.4, 0.0])
    assert random_control([0, 1], frequency_F, candidates=1).tolist() == [3, 2]
    with pytest.raises(ValueError, match="2 other latents fire; a control of 3"):
        random_control([0, 1, 4], frequency_F)


# ---- gates ------------------------------------------------------------------------------------


def test_running_scores_by_hand():
    u = torch.tensor([[9.0, 4, 0, 8, 4, 2]])
    where = context([[0, 1, 1, 0, 1, 1]], [[3, 3, 0, 0, 0, 3]])
    ema = running(u, where, GateConfig(score="ema", decay=0.5), 0.0)
    # reset, 4/2, 2/2, masked: stands still, (1 + 4)/2, reset: 2/2
    assert ema.tolist() == [[0.0, 2.0, 1.0, 1.0, 2.5, 1.0]]
    cusum = running(u, where, GateConfig(score="cusum"), 1.5)
    # reset, 4 - 1.5, 2.5 - 1.5, masked, 1 + 4 - 1.5, reset: 2 - 1.5
    assert cusum.tolist() == [[0.0, 2.5, 1.0, 1.0, 3.5, 0.5]]
    assert running(u, where, GateConfig(score="token"), 0.0) is u
    window = running(u, where, GateConfig(score="window", window=2), 0.0)
    # 4, (4 + 0)/2, 0 alone is valid, 4 alone, 2 alone
    assert window.tolist() == [[0.0, 4.0, 2.0, 0.0, 4.0, 2.0]]
    share = running(u, where, GateConfig(score="share"), 0.0)
    torch.testing.assert_close(share, torch.tensor([[0.0, 1 / 5, 1 / 6, 1 / 6, 2 / 7, 1 / 5]]))


def test_benign_text_in_front_dilutes_a_share_and_nothing_else():
    subject = torch.tensor([0.0, 3, 3, 3])
    diluted = torch.cat([torch.zeros(40), subject])[None]
    alone, where = subject[None], [context(torch.ones(1, n)) for n in (4, 44)]
    where = [w.filled(torch.zeros(1, w.mask_BT.shape[1], 1)) for w in where]
    for score, same in (("share", False), ("ema", True), ("cusum", True), ("window", True)):
        cfg = GateConfig(score=score, window=3)
        ends = [
            running(u, w, cfg, 0.5)[0, -1].item()
            for u, w in zip((alone, diluted), where, strict=True)
        ]
        assert (ends[0] == pytest.approx(ends[1], rel=0.05)) is same, score


def test_threshold_is_the_smallest_that_is_exceeded_by_at_most_the_share():
    values = torch.tensor([5.0, 1, 4, 2, 3, 0, 0, 0, 0, 0])
    assert exceeded_at_most(values, 0.2).item() == 3.0
    assert exceeded_at_most(values, 0.0).item() == 5.0
    assert exceeded_at_most(values, 0.6).item() == 0.0


def noise_batches(seed, n=8):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(4, 50, 4, generator=generator)
        mask = torch.rand(4, 50, generator=generator) > 0.1
        mask[:, 0] = False
        boundary = 3 * (torch.rand(4, 50, generator=generator) > 0.95).to(torch.uint8)
        boundary[:, 1] = 3
        yield Text(x, SequenceContext(mask, boundary), mask)


def mass_gate(retain, latents, cfg):
    read, ids = coded(identity(), retain), torch.tensor(latents)
    return calibrate(Mass(ids, quantiles(ids, read, cfg.latent_rate)), read, cfg)


@pytest.mark.parametrize("score", ["token", "window", "share", "ema", "cusum"])
@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_a_gate_hits_its_false_positive_rate_on_retained_text(score, rate):
    cfg = GateConfig(score=score, false_positive_rate=rate, latent_rate=0.3, window=30)
    gate = mass_gate(noise_batches(0), [0, 2], cfg)
    read = coded(identity(), noise_batches(0))
    n = sum(int(t.keep_BT.sum()) for t in read)
    opens = [gate.open(t.x_BTD, t.z_BTF.to_dense(), t.context)[t.keep_BT] for t in read]
    share = float(torch.cat(opens).double().mean())
    assert share <= rate and gate.measured_rate == pytest.approx(share)
    assert share > rate - 1 / n or score == "share"  # shares have ties
    beyond = torch.cat([t.kept(torch.tensor([0, 2])) for t in read]) > gate.evidence.q_K
    beyond_K = beyond.double().mean(0)
    assert ((beyond_K <= 0.3) & (beyond_K > 0.3 - 1 / n)).all()


def test_a_gate_waits_for_evidence():
    # Retained text: latent 0 fires weakly and alone on 1 token in 20.
    rows = [[1.0 if t % 20 == 0 else 0.0, 0, 0, 1] for t in range(100)]
    cfg = GateConfig(decay=0.5, false_positive_rate=0.0, latent_rate=0.0)
    gate = mass_gate([text(rows)], [0, 1], cfg)
    assert gate.evidence.q_K.tolist() == [1.0, 0.0]  # the largest values on the retained text
    assert gate.threshold == 0.0
    raw = torch.tensor(
        [[[9.0, 9, 0, 0], [1, 0, 0, 0], [2, 3, 0, 0], [0.5, 0, 0, 0], [4, -1, 0, 0]]]
    )
    expected = raw.clone()
    expected[0, 2, :2] = -1.0  # unit = 2/100; 1 at token 1 says nothing
    expected[0, 3:, 0] = -1.0  # the score stays above 0
    torch.testing.assert_close(clamp(latents=[0, 1], gate=gate)(raw), expected)
    object.__setattr__(gate, "threshold", 3.0)
    # scores: 0, 5/2 = 2.5, 1.25, (1.25 + 4)/2 = 2.625: never above 3
    assert torch.equal(clamp(latents=[0, 1], gate=gate)(raw), raw)


@pytest.mark.parametrize("score", ["token", "window", "share", "ema", "cusum"])
def test_gates_are_causal(score):
    cfg = GateConfig(score=score, false_positive_rate=0.2, latent_rate=0.4, window=5)
    edit = clamp(latents=[0, 2], gate=mass_gate(noise_batches(0), [0, 2], cfg))
    raw = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(5))
    out = edit(raw)
    assert 0 < edit.touched_BT.double().mean() < 0.7
    later = raw.clone()
    later[:, 20:] += 3.0
    assert torch.equal(edit(later)[:, :20], out[:, :20])


# ---- a chain as evidence ------------------------------------------------------------------------

ABC = Prefix((Path((0, 1, 2), ((1, 2), (3,)), (0.5, 0.25)),), {0: 0.0, 1: 0.0, 2: 1.0})


def said(codes, boundary=None):
    z = torch.tensor([codes], dtype=torch.float32)
    return ABC(z, z, context(torch.ones(z.shape[:2]), boundary))[0].tolist()


def test_a_chain_says_something_once_its_prefix_has_fired_in_order_at_its_lags():
    A, B, C, none = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 2.0], [0, 0, 0]
    assert said([A, B, none, none, C]) == [0, 0.5, 0, 0, 0.75]
    assert said([A, none, B, none, C]) == [0, 0, 0.5, 0, 0]  # C comes after two tokens, not three
    assert said([B, A, C, C, C]) == [0] * 5  # each fires, in no order of the chain
    assert said([none, B, none, none, C]) == [0] * 5  # a single link without its beginning
    assert said([A, B, none, none, [0, 0, 1.0]]) == [0, 0.5, 0, 0, 0]  # not above its q
    assert said([A, B, none, none, C], [[3, 0, 3, 0, 0]]) == [0, 0.5, 0, 0, 0]  # another document


def test_gate_values_are_checked():
    with pytest.raises(ValueError, match="score='mean'"):
        GateConfig(score="mean")
    with pytest.raises(ValueError, match="false_positive_rate"):
        GateConfig(false_positive_rate=1.0)
    with pytest.raises(ValueError, match="2 chosen"):
        Clamp(identity(), [0, 1], q_K=torch.ones(1))
