"""Held detectors, logistic evidence, followed chains, attacks and picked settings, by hand."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from lab.edits import Adaptive, ChainConfig, DetectorConfig, Text, calibrate, follow
from lab.edits.chain import Link
from lab.edits.following import edge_table, tracked
from lab.measures.unlearning.attacks import disguised, turn
from lab.measures.unlearning.choice import best_settings, chosen_documents, chosen_rows
from lab.measures.unlearning.config import UnlearnConfig
from lab.measures.unlearning.unlearning import Plan
from lab.worlds.knowledge import Question
from tsae import saes
from tsae.saes import SequenceContext


def identity(d=4):
    """z = relu(x), x_hat = z."""
    sae = saes.build("l1", d_in=d, d_sae=d, k=1).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
        sae.W_dec.copy_(torch.eye(d))
    return sae


def text(rows):
    x = torch.tensor([rows], dtype=torch.float32)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    return Text(x, SequenceContext(mask, None), mask)


# ---- adaptive -----------------------------------------------------------------------------------


def test_hold_sets_silent_latents_until_the_score_has_faded():
    retained = [text([[0.0, 0, 0, 1]] * 20)]
    raw = torch.zeros(1, 6, 4)
    raw[0, 2, 0] = 4.0
    raw[0, 1:, 3] = 1.0
    edited = {}
    for hold in (False, True):
        cfg = DetectorConfig(decay=0.5, false_positive_rate=0.0, latent_rate=0.0, hold=hold)
        detector = calibrate(identity(), torch.tensor([0, 1]), retained, cfg)
        object.__setattr__(detector, "threshold", 0.6)
        edit = Adaptive(identity(), [0, 1], 50, 1.0, detector=detector)
        out = edit(raw)
        edited[hold] = edit.touched_BT[0].nonzero()[:, 0].tolist()
        assert out[0, 2, 0] == pytest.approx(-1.0)  # 50 · sqrt(4) / 100
    # Scores from token 2 on: 2, 1, .5: above .6 at tokens 2 and 3 alone.
    assert edited == {False: [2], True: [2, 3]}


def test_logistic_evidence_finds_a_subject_that_no_latent_names():
    # Forget text: latents 0 and 1 together; retained: one of the two, equally often.
    forget = [text([[2.0, 2.0, 0, 0]] * 40)]
    retained = [text([[2.0, 0, 0, 0], [0, 2.0, 0, 0]] * 40)]
    cfg = DetectorConfig(
        evidence="logistic", hold=True, decay=0.0, false_positive_rate=0.0, latent_rate=0.0
    )
    none = torch.zeros(0, dtype=torch.long)
    detector = calibrate(identity(), none, retained, cfg, forget)
    w = detector.weights[0].tolist()
    assert w[0] == pytest.approx(w[1], rel=1e-3) and w[0] > 0 and w[2] == w[3] == 0
    score = detector.score(torch.tensor([[[2.0, 0, 0, 0], [2, 2, 0, 0]]]), SequenceContext(
        torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.uint8)
    ))  # fmt: skip
    assert score[0, 0] <= detector.threshold < score[0, 1]
    edit = Adaptive(identity(), [2], 50, 1.0, detector=detector)
    raw = torch.tensor([[[9.0, 9, 0, 0], [2, 0, 0, 0], [2, 2, 0, 0]]])
    assert edit(raw)[0, :, 2].tolist() == [0.0, 0.0, -1.0]
    assert edit.triggers.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="forget_batches"):
        calibrate(identity(), none, retained, cfg)


def test_a_detector_can_be_set_to_another_rate():
    rows = [[float(t), 0, 0, 0] for t in range(10)]
    cfg = DetectorConfig(decay=0.0, false_positive_rate=0.0, latent_rate=0.9)
    detector = calibrate(identity(), torch.tensor([0]), [text(rows)], cfg)
    # Scores on retained text: 0 … 9 (codes at or below the 10% quantile, 0, add nothing).
    assert (detector.threshold, detector.measured_rate) == (9.0, 0.0)
    wider = detector.at(0.3)
    assert (wider.threshold, wider.measured_rate) == (6.0, pytest.approx(0.3))
    assert wider.cfg.false_positive_rate == 0.3


# ---- chains -------------------------------------------------------------------------------------


def test_links_follow_what_the_tracker_saw():
    # 0 → 1 after two tokens, always; 3 is everywhere, but not among the allowed latents.
    period = [[1.0, 0, 0, 1], [0, 0, 0, 1], [0, 1.0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    cfg = ChainConfig(window=3, rank=2, lr=0.0)
    tracker = tracked(identity(), [text(period * 8)] * 4, cfg)
    among = torch.tensor([0, 1])
    table = edge_table(tracker, among)
    assert set(zip(table["source"], table["target"], table["lag"], strict=True)) == {
        (0, 1, 2),
        (1, 0, 3),
    }
    found = follow(tracker, torch.tensor([1]), among, cfg)
    assert [link[:3] for link in found] == [(0, 1, 2), (1, 0, 3)]
    # R is about 1 with W near 0. Eight pairs a text, of which rates alone give 8 · 8 / 40, and four
    # texts count as 1 + .98 + .98² + .98³ = 3.88.
    lift = math.log((8 * 3.88 + 4) / (1.6 * 3.88 + 4))
    assert found[0].strength == pytest.approx(lift, rel=0.1)
    assert isinstance(found[0], Link)
    assert follow(tracker, torch.tensor([2]), torch.tensor([2]), cfg) == []


def test_tracking_leaves_the_global_generator_alone():
    sae = identity()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tracked(sae, [text([[1.0, 0, 0, 0]] * 4)], ChainConfig(window=2, rank=2))
    assert torch.equal(torch.rand(2), expected)


def test_each_gamma_is_a_setting_of_its_own():
    bench = SimpleNamespace(config=UnlearnConfig(chain_gammas=[0.5]), sae=identity(), options={})
    bench.options["scale"] = 1.0
    link = (Link(0, 1, 2, 0.5),)
    for gamma, expected in ((0.5, 0.5), (None, 0.7)):
        made = Plan("chain", "n=1", torch.tensor([1]), links=link, gamma=gamma).edit(bench, 100)
        assert (made.gamma, made.beta, made.multiplier) == (expected, 1.0, 100)


# ---- attacks ------------------------------------------------------------------------------------


def question(prompt, form="plain", fact=0):
    return Question("forget", "venoms", prompt, ((1,), (2,), (3,), (4,)), 0, fact, form)


def test_prompts_are_diluted_split_and_paraphrased():
    levels = torch.zeros(20, dtype=torch.uint8)
    levels[9] = 1  # a sentence starts after token 9
    asked = [question((0, 5, 9, 6, 7)), question((0, 5, 6, 7), "paraphrase")]
    run = (11, 12)
    diluted = disguised(asked, "dilution", [run], levels)
    assert [q.prompt for q in diluted] == [(0, 11, 12, 5, 9, 6, 7)]
    assert [q.prompt for q in disguised(asked, "split", [run], levels)] == [(0, 5, 9, 11, 12, 6, 7)]
    assert [q.form for q in disguised(asked, "paraphrase", [run], levels)] == ["paraphrase"]
    assert turn((0, 5, 9), levels) is None  # nothing is asked after the last token
    # All orders of one fact get the same text, so that they can be right under every order.
    many = disguised([question((0, 5, 9, 6))] * 3, "dilution", [(11,), (12,), (13,)], levels)
    assert len({q.prompt for q in many}) == 1


# ---- picked settings ----------------------------------------------------------------------------


def documents(shares):
    """Facts 0–3 in each neighbourhood; ``shares``: group → (forget, near, far) right facts."""
    rows = []
    for group, right in shares.items():
        for name, facts in zip(("forget", "near", "far"), right, strict=True):
            for doc in range(4):
                rows.append((doc, f"unlearn_{name}_accuracy", group, float(doc in facts), 1.0))
    return pd.DataFrame(rows, columns=["doc", "metric", "group", "num", "den"])


ALL = {0, 1, 2, 3}


def test_a_setting_is_judged_on_facts_that_it_was_not_picked_on():
    made = documents(
        {
            # Facts 0 and 2 are one half. On it setting a forgets all and keeps all; on the other
            # it forgets nothing and breaks near fact 1.
            "clamp|a": ({1, 3}, {0, 2, 3}, ALL),
            "clamp|b": ({0, 2}, ALL, ALL),
            "random|c": (ALL, set(), ALL),
        }
    )
    chosen = chosen_documents(made)
    rows = chosen_rows(chosen, n_boot=50)
    value = {(r["metric"], r["group"]): r["value"] for r in rows}
    # Picked on 0 and 2: a, judged on 1 and 3 (both right). Picked on 1 and 3: b (a breaks near),
    # judged on 0 and 2 (both right).
    assert value["unlearn_chosen_forget_accuracy", "clamp"] == 1.0
    assert value["unlearn_chosen_near_accuracy", "clamp"] == 3 / 4
    # No setting of random keeps enough: the model is left as it is.
    assert value["unlearn_chosen_near_accuracy", "random"] == 1.0
    assert value["unlearn_difference", "random|near"] == pytest.approx(1 / 4)
    assert value["unlearn_difference_lo", "random|near"] <= 1 / 4
    assert ("unlearn_difference", "clamp|near") not in value
    assert sorted(best_settings(made)) == ["clamp|b", "random|c"]


def test_logistic_strategies_are_named_apart():
    from lab.paper.figures.strategies import front, ordered, title

    names = ["random", "probe-random", "chain", "probe", "clamp"]
    assert ordered(names) == ["clamp", "random", "probe", "probe-random", "chain"]
    assert title("probe-random") == "adaptive, logistic, held, random latents"
    points = pd.DataFrame({"forget": [0.5, 0.2, 0.4], "near": [0.9, 0.8, 0.7]})
    assert front(points, "near")["forget"].tolist() == [0.2, 0.5]
