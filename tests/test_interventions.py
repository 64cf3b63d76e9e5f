"""Ranking, clamping, its random control and the adaptive clamp, against numbers found by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from lab.edits import (
    Adaptive,
    Clamp,
    DetectorConfig,
    Text,
    calibrate,
    frequency,
    labelled,
    random_control,
    rank,
    select,
)
from lab.edits.adaptive import exceeded_at_most, running
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


# ---- clamp ------------------------------------------------------------------------------------

RAW = torch.tensor(
    [[[3.0, 1, 0, 0], [2, -1, 0, 0.1], [-1, 2, 0, 0], [1, 0, 5, -3], [4, 0, 0, 0]]]
)  # fmt: skip


def test_clamp_by_hand_edits_only_where_the_latent_fires():
    # d = 4: unit = 2/100, so m = 50 sets the code to -1 in normalised units, -1/scale in raw ones.
    edit = Clamp(identity(), [0], 50, scale=0.5)
    out = edit(RAW)
    expected = RAW.clone()
    expected[0, [1, 3, 4], 0] = -2.0  # position 0 is BOS, at position 2 latent 0 is silent
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    assert edit.touched_BT.tolist() == [[False, True, False, True, True]]
    assert edit.touched_share == 3 / 4  # of the 4 tokens that are not BOS
    untouched = ~edit.touched_BT[0]
    assert torch.equal(out[0, untouched], RAW[0, untouched])


def test_relative_clamp_scales_with_the_token():
    out = Clamp(identity(), [0], 50, scale=0.5, relative=True)(RAW)
    norms = RAW[0].norm(dim=-1)
    for t in (1, 3, 4):
        assert out[0, t, 0].item() == pytest.approx(-0.5 * norms[t].item(), rel=1e-6)
    # Scaling the token scales the edit, which the absolute clamp does not do.
    torch.testing.assert_close(Clamp(identity(), [0], 50, 0.5, relative=True)(7 * RAW), 7 * out)


def test_unit_scale_is_a_raw_code():
    for scale in (0.5, 3.0):
        out = Clamp(identity(), [0], 25, scale, unit=scale)(RAW)
        assert out[0, [1, 3, 4], 0].tolist() == pytest.approx([-25.0] * 3, rel=1e-5)


def test_masked_massive_and_bos_are_never_edited():
    edit = Clamp(identity(), [0], 50, scale=1.0, massive_norm=3.9)
    out = edit.within(context([[1, 1, 1, 0, 1]]))(RAW)
    # token 3 is masked and also too long, token 4 has norm 4 > 3.9
    assert edit.touched_BT.tolist() == [[False, True, False, False, False]]
    assert (edit.touched, edit.seen) == (1, 2)
    assert torch.equal(out[0, [0, 2, 3, 4]], RAW[0, [0, 2, 3, 4]])
    edit.within(context([[1, 1, 0, 0, 0]]))
    edit.reset()
    edit(RAW)
    assert (edit.touched, edit.seen) == (1, 1)


def test_context_grows_with_generated_text_and_must_fit():
    edit = Clamp(identity(), [0], 50, scale=1.0).within(context([[1, 1, 0]], [[0, 0, 1]]))
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
    edit = Clamp(sae, range(0, 48, 3), 80, scale).within(within)
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
        ({"multiplier": 0}, "multiplier"),
        ({"scale": float("nan")}, "scale"),
        ({"unit": -1.0}, "unit"),
    ],
)
def test_bad_values_are_named(options, field):
    good = {"latents": [0], "multiplier": 50, "scale": 1.0}
    with pytest.raises(ValueError, match=field):
        Clamp(identity(), **{**good, **options})


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        Clamp(identity().train(), [0], 50, 1.0)


# ---- ranking ----------------------------------------------------------------------------------


def text(rows, keep=None):
    """One sequence from rows of codes; all valid, all kept unless told."""
    x = torch.tensor([rows], dtype=torch.float32)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    keep_BT = mask if keep is None else torch.tensor([keep], dtype=torch.bool)
    return Text(x, SequenceContext(mask, None), keep_BT)


def test_frequency_and_rank_by_hand():
    forget = [
        text([[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]),
        text([[1, 1, 1, 1]] * 2, [True, False]),
    ]
    measured = frequency(identity(), forget)
    assert measured.n == 4
    assert measured.share_F.tolist() == [3 / 4, 2 / 4, 1 / 4, 2 / 4]
    retain = [text([[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])]
    # retain shares: 0, 1/4, 0, 2/4; ties in the forget share go to the lower id
    assert rank(identity(), forget, retain, 0.2).tolist() == [0, 2]
    assert rank(identity(), forget, retain, 0.25).tolist() == [0, 1, 2]
    assert rank(identity(), forget, retain, 0.5).tolist() == [0, 1, 3, 2]


def test_rank_within_a_group():
    forget_F, retain_F = torch.tensor([0.1, 0.4, 0.3, 0.0]), torch.zeros(4)
    assert select(forget_F, retain_F, 0.01).tolist() == [1, 2, 0]
    assert select(forget_F, retain_F, 0.01, torch.tensor([0, 2, 3])).tolist() == [2, 0]
    assert rank(
        identity(), [text([[1, 0, 0, 0]])], [text([[0, 0, 0, 0]])], group="all"
    ).tolist() == [0]
    with pytest.raises(ValueError, match="group='fast'.*all"):
        rank(identity(), [], [], group="fast")
    with pytest.raises(ValueError, match="empty"):
        rank(identity(), [], [text([[0, 0, 0, 0]])])
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


# ---- adaptive ---------------------------------------------------------------------------------


def test_running_scores_by_hand():
    mass = torch.tensor([[9.0, 4, 0, 8, 4, 2]])
    where = context([[0, 1, 1, 0, 1, 1]], [[3, 3, 0, 0, 0, 3]])
    ema = running(mass, where, DetectorConfig(score="ema", decay=0.5), 0.0)
    # reset, 4/2, 2/2, masked: stands still, (1 + 4)/2, reset: 2/2
    assert ema.tolist() == [[0.0, 2.0, 1.0, 1.0, 2.5, 1.0]]
    cusum = running(mass, where, DetectorConfig(score="cusum"), 1.5)
    # reset, 4 - 1.5, 2.5 - 1.5, masked, 1 + 4 - 1.5, reset: 2 - 1.5
    assert cusum.tolist() == [[0.0, 2.5, 1.0, 1.0, 3.5, 0.5]]


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


@pytest.mark.parametrize("score", ["ema", "cusum"])
@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_adaptive_hits_its_false_positive_rate_on_retained_text(score, rate):
    sae, latents = identity(), torch.tensor([0, 2])
    cfg = DetectorConfig(score=score, false_positive_rate=rate, latent_rate=0.3)
    detector = calibrate(sae, latents, noise_batches(0), cfg)
    n = sum(int(t.keep_BT.sum()) for t in noise_batches(0))
    above = sum(
        int(
            detector.above(sae.encode(t.x_BTD, t.context)[..., latents], t.context)[t.keep_BT].sum()
        )
        for t in noise_batches(0)
    )
    assert rate - 1 / n < above / n <= rate
    assert detector.measured_rate == pytest.approx(above / n)
    z = torch.cat([sae.encode(t.x_BTD, t.context)[t.keep_BT] for t in noise_batches(0)])
    beyond = (z[:, latents] > detector.q_K).double().mean(0)
    assert ((beyond <= 0.3) & (beyond > 0.3 - 1 / n)).all()


def test_adaptive_waits_for_evidence_and_sets_what_clamp_would():
    sae = identity()
    # Retained text: latent 0 fires weakly and alone on 1 token in 20.
    rows = [[1.0 if t % 20 == 0 else 0.0, 0, 0, 1] for t in range(100)]
    cfg = DetectorConfig(decay=0.5, false_positive_rate=0.0, latent_rate=0.0)
    detector = calibrate(sae, torch.tensor([0, 1]), [text(rows)], cfg)
    assert detector.q_K.tolist() == [1.0, 0.0]  # the largest values on the retained text
    assert detector.threshold == 0.0
    raw = torch.tensor(
        [[[9.0, 9, 0, 0], [1, 0, 0, 0], [2, 3, 0, 0], [0.5, 0, 0, 0], [4, -1, 0, 0]]]
    )
    options = {"detector": detector}
    edit = Adaptive(sae, [0, 1], 50, 1.0, **options)
    expected = raw.clone()
    expected[0, 2, :2] = -1.0  # unit = 2/100; both are above their own thresholds
    expected[0, 4, 0] = -1.0  # 1 at token 1 and 0.5 at token 3 are not
    torch.testing.assert_close(edit(raw), expected)
    higher = calibrate(sae, torch.tensor([0, 1]), [text(rows)], cfg)
    object.__setattr__(higher, "threshold", 3.0)
    # scores: 0, 5/2 = 2.5, 1.25, (1.25 + 4)/2 = 2.625: never above 3
    assert torch.equal(Adaptive(sae, [0, 1], 50, 1.0, detector=higher)(raw), raw)


@pytest.mark.parametrize("score", ["ema", "cusum"])
def test_adaptive_is_causal(score):
    sae, latents = identity(), torch.tensor([0, 2])
    cfg = DetectorConfig(score=score, false_positive_rate=0.2, latent_rate=0.4)
    edit = Adaptive(sae, latents, 50, 1.0, detector=calibrate(sae, latents, noise_batches(0), cfg))
    raw = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(5))
    out = edit(raw)
    assert 0 < edit.touched_share < 0.5
    later = raw.clone()
    later[:, 20:] += 3.0
    changed = edit(later)
    assert torch.equal(changed[:, :20], out[:, :20])
    assert not torch.equal(changed[:, 20:] - later[:, 20:], out[:, 20:] - raw[:, 20:])


def test_detector_values_are_checked():
    with pytest.raises(ValueError, match="score='mean'"):
        DetectorConfig(score="mean")
    with pytest.raises(ValueError, match="false_positive_rate"):
        DetectorConfig(false_positive_rate=1.0)
    with pytest.raises(ValueError, match="empty"):
        calibrate(identity(), torch.tensor([0]), [])
    detector = calibrate(identity(), torch.tensor([0]), noise_batches(0))
    with pytest.raises(ValueError, match="2 chosen"):
        Adaptive(identity(), [0, 1], 50, 1.0, detector=detector)
