"""Ranking, pushes, their random control and gates, against numbers found by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from edit_cases import context, identity, text

from lab.edits.clamp import Ablation, Clamp, Direction
from lab.edits.edit import Edit, context_of
from lab.edits.evidence import Path, Prefix, Votes, quantiles
from lab.edits.gate import SCORES, calibrate, running
from lab.edits.ranking import (
    Read,
    Text,
    coded,
    exceeded_at_most,
    frequency,
    random_control,
    select,
    stored,
)
from tsae import saes
from tsae.saes import SequenceContext


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


def test_masked_massive_and_bos_are_never_edited():
    edit = clamp(massive_norm=3.9)
    out = edit.within(context([[1, 1, 1, 0, 1]]))(RAW)
    # token 3 is masked and also too long, token 4 has norm 4 > 3.9
    assert edit.touched_BT.tolist() == [[False, True, False, False, False]]
    assert torch.equal(out[0, [0, 2, 3, 4]], RAW[0, [0, 2, 3, 4]])


def test_context_grows_with_generated_text_and_must_fit():
    given = context([[1, 1, 0]], [[0, 0, 1]])
    grown = context_of(given, RAW, math.inf)
    assert grown.mask_BT.tolist() == [[False, True, False, True, True]]
    assert grown.boundary_BT.tolist() == [[3, 3, 1, 0, 0]]
    for raw in (RAW[:, :2], RAW.expand(2, -1, -1)):
        with pytest.raises(ValueError, match=r"context=\(1, 3\) is not allowed"):
            clamp().within(given)(raw)


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
    z = edit.read(raw).z_BTF
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


def test_stored_text_keeps_valid_tokens_inside_the_classes_or_outside():
    store, given = LabelledStore(), {"domain": [0]}
    (inside,) = stored(store, "train", given, limit_tokens=9)
    assert inside.keep_BT.tolist() == [[False, True, True, False]]
    outside = [t.keep_BT[0].tolist() for t in stored(store, "train", {}, given, limit_tokens=9)]
    assert outside == [[False, False, False, True], [False, True, False, True]]
    assert len(list(stored(store, "train", {}, given, limit_tokens=1))) == 1
    assert sum(int(t.keep_BT.sum()) for t in stored(store, "train", limit_tokens=9)) == 5


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
    expected = {
        # reset, 4/2, 2/2, masked: stands still, (1 + 4)/2, reset: 2/2
        "ema": [0.0, 2.0, 1.0, 1.0, 2.5, 1.0],
        # reset, 4 - 1.5, 2.5 - 1.5, masked, 1 + 4 - 1.5, reset: 2 - 1.5
        "cusum": [0.0, 2.5, 1.0, 1.0, 3.5, 0.5],
        "token": u[0].tolist(),
        "window": [0.0, 4.0, 2.0, 2.0, 2.0, 2.0],  # the mean of the last two valid ones
        "share": [0.0, 1 / 5, 1 / 6, 1 / 6, 2 / 7, 1 / 5],
    }
    for score, values in expected.items():
        found = running(u, where, score, 1.5, decay=0.5, window=2)[0].tolist()
        assert found == pytest.approx(values), score


def test_benign_text_in_front_dilutes_a_share_and_nothing_else():
    subject = torch.tensor([0.0, 3, 3, 3])
    diluted = torch.cat([torch.zeros(40), subject])
    for score, same in (("share", False), ("ema", True), ("cusum", True), ("window", True)):
        ends = [
            running(u[None], context(torch.ones(1, len(u))), score, 0.5, window=3)[0, -1].item()
            for u in (subject, diluted)
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


def mass_gate(retain, latents, score, latent_rate=0.3):
    read, ids = coded(identity(), retain), torch.tensor(latents)
    votes = Votes(ids, quantiles(ids, read, latent_rate), torch.ones(len(ids)))
    return calibrate(votes, read, read, score)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_a_gate_hits_its_false_positive_rate_on_retained_text(score, rate):
    read = coded(identity(), noise_batches(0))
    gate = calibrate(lambda read: read.x_BTD[..., 0], read, read, score).at(rate)
    n = sum(int(t.keep_BT.sum()) for t in read)
    opens = [gate.open(t.read())[t.keep_BT] for t in read]
    share = float(torch.cat(opens).double().mean())
    assert rate - 1 / n < share <= rate or score == "share"  # shares have ties
    ids = torch.tensor([0, 2])
    beyond_K = (torch.cat([t.kept(ids) for t in read]) > quantiles(ids, read, 0.3)).double().mean(0)
    assert ((beyond_K <= 0.3) & (beyond_K > 0.3 - 1 / n)).all()


def test_a_latent_votes_by_how_much_more_often_it_fires_on_forget_text():
    forget = coded(identity(), [text([[1.0, 1, 0, 0]] * 8 + [[0.0, 1, 0, 0]] * 6)])
    retain = coded(identity(), [text([[0.0, 1, 0, 0]] * 6)])
    votes = Votes.of(torch.tensor([0, 1]), forget, retain)
    # Latent 0: 9 of 16 against 1 of 8; latent 1 never exceeds what it always is.
    assert votes.w_K.tolist() == pytest.approx([math.log(9 / 2), math.log(1 / 2)])
    said = votes(Read(*[torch.tensor([[[5.0, 1, 0, 0], [0, 0, 3, 0]]])] * 2, None))
    assert said[0].tolist() == pytest.approx([math.log(9 / 2), 0])


def test_a_gate_waits_for_evidence():
    # Retained text: latent 0 fires weakly and alone on 1 token in 20.
    rows = [[1.0 if t % 20 == 0 else 0.0, 0, 0, 1] for t in range(100)]
    gate = mass_gate([text(rows)], [0, 1], "ema", 0.0).at(0.0)
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
    # scores: 0, 2/5, 8/25, 32/125 + 1/5: never above 3
    assert torch.equal(clamp(latents=[0, 1], gate=gate)(raw), raw)


@pytest.mark.parametrize("score", SCORES)
def test_gates_are_causal(score):
    gate = mass_gate(noise_batches(0), [0, 2], score, 0.4).at(0.2)
    edit = clamp(latents=[0, 2], gate=gate)
    raw = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(5))
    out = edit(raw)
    assert 0 < edit.touched_BT.double().mean() < 0.7
    later = raw.clone()
    later[:, 20:] += 3.0
    assert torch.equal(edit(later)[:, :20], out[:, :20])


def test_a_gate_can_be_set_to_another_rate():
    retain = coded(identity(), [text([[float(t), 0, 0, 0] for t in range(10)])])
    gate = calibrate(lambda read: read.z_BTF[..., 0], retain, retain, "token")
    assert [gate.at(rate).threshold for rate in (0.0, 0.3)] == [9.0, 6.0]


def test_a_cusum_takes_the_drift_that_finds_most_of_the_forget_text():
    # Half of the retained tokens say 1.5, for long; forget documents say 2, three times.
    retain = coded(identity(), [text([[1.5, 0, 0, 0]] * 40), text([[0.0] * 4] * 40)])
    forget = coded(identity(), [text([[2.0, 0, 0, 0]] * 3)] * 5)
    gate = calibrate(lambda read: read.z_BTF[..., 0], forget, retain, "cusum")
    assert [trial[0] for trial in gate.trials] == [1.375, 1.6875, 2.0]  # from .75 to 2
    # At 1.375 the long document climbs to 5, and forget ones to 1.875; at 2 nothing climbs.
    assert (gate.at(0.1).drift, gate.at(0.1).threshold) == (1.6875, 0.0)


# ---- a chain as evidence ------------------------------------------------------------------------

ABC = Prefix((Path((0, 1, 2), ((1, 2), (3,)), (0.5, 0.25)),), {0: 0.0, 1: 0.0, 2: 1.0})


def said(codes, boundary=None):
    z = torch.tensor([codes], dtype=torch.float32)
    return ABC(Read(z, z, context(torch.ones(z.shape[:2]), boundary)))[0].tolist()


def test_a_chain_says_something_once_its_prefix_has_fired_in_order_at_its_lags():
    A, B, C, none = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 2.0], [0, 0, 0]
    assert said([A, B, none, none, C]) == [0, 0.5, 0, 0, 0.75]
    assert said([A, none, B, none, C]) == [0, 0, 0.5, 0, 0]  # C comes after two tokens, not three
    assert said([B, A, C, C, C]) == [0] * 5  # each fires, in no order of the chain
    assert said([none, B, none, none, C]) == [0] * 5  # a single link without its beginning
    assert said([A, B, none, none, [0, 0, 1.0]]) == [0, 0.5, 0, 0, 0]  # not above its q
    assert said([A, B, none, none, C], [[3, 0, 3, 0, 0]]) == [0, 0.5, 0, 0, 0]  # another document
