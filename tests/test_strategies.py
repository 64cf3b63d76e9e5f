"""Probes as evidence, followed chains, attacks and picked settings, by hand."""

import math

import pandas as pd
import pytest
import torch
from edit_cases import identity, text

from lab.edits import chain
from lab.edits.chain import follow, tracker_of
from lab.edits.clamp import Clamp
from lab.edits.edit import Edit
from lab.edits.evidence import separating
from lab.edits.gate import calibrate
from lab.edits.ranking import coded
from lab.measures.unlearning.choice import (
    chosen_documents,
    chosen_rows,
    control,
    retained,
    score_rows,
)
from lab.measures.unlearning.questions import disguised, turn
from lab.worlds.knowledge import Question
from tsae import saes

# ---- probes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logistic", "residual"])
def test_a_probe_finds_a_subject_that_no_latent_names(kind):
    # Forget text: latents 0 and 1 together; retained: one of the two, equally often.
    sae = identity()
    forget = coded(sae, [text([[2.0, 2.0, 0, 0]] * 40)])
    retain = coded(sae, [text([[2.0, 0, 0, 0], [0, 2.0, 0, 0]] * 40)])
    probe = separating(kind, forget, retain)
    w = probe.w.tolist()
    assert w[0] == pytest.approx(w[1], rel=1e-3) and w[0] > 0
    if kind == "logistic":
        assert w[2] == w[3] == 0
    gate = calibrate(probe, forget, retain, "token").at(0.0)
    raw = torch.tensor([[[9.0, 9, 0, 0], [2, 0, 0, 0], [2, 2, 0, 0]]])
    edit = Edit(sae, Clamp(sae, [2], hold=True), 50, 1.0, gate=gate)
    # Latent 2 is silent where the gate opens: it is set all the same.
    assert edit(raw)[0, :, 2].tolist() == [0.0, 0.0, -1.0]


# ---- chains -------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(chain, "TRACKER", {**chain.TRACKER, "window": 3, "rank": 2})
    monkeypatch.setattr(chain, "LR", 0.0)


def test_links_follow_what_the_tracker_saw(small):
    # 0 → 1 after two tokens, always; 3 is everywhere, but not among the allowed latents.
    period = [[1.0, 0, 0, 1], [0, 0, 0, 1], [0, 1.0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    tracker = tracker_of(identity(), [text(period * 8)] * 4)
    found, paths = follow(tracker, torch.tensor([1]), torch.tensor([0, 1]))
    assert [link[:3] for link in found] == [(0, 1, 2), (1, 0, 3)]
    # R is about 1 with W near 0. Eight pairs a text, of which rates alone give 8 · 8 / 40, and four
    # texts count as 1 + .98 + .98² + .98³ = 3.88.
    lift = math.log((8 * 3.88 + 4) / (1.6 * 3.88 + 4))
    assert found[0].strength == pytest.approx(lift, rel=0.1)
    # The chain may be a token early or late, and weighs its C.
    first = next(path for path in paths if path.latents == (0, 1))
    assert first.lags == ((1, 2, 3),) and first.weights == (found[0].strength,)
    assert follow(tracker, torch.tensor([2]), torch.tensor([2])) == ([], [])


def test_tracking_leaves_the_global_generator_alone(small):
    sae = identity()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tracker_of(sae, [text([[1.0, 0, 0, 0]] * 4)])
    assert torch.equal(torch.rand(2), expected)


def test_an_sae_with_a_tracker_is_asked_for_its_own():
    sae = saes.build("causal", d_in=4, d_sae=8, k=2)
    assert tracker_of(sae, []) is sae.tracker


# ---- attacks ------------------------------------------------------------------------------------


def question(prompt, form="plain", fact=0):
    return Question("forget", "venoms", prompt, ((1,), (2,), (3,), (4,)), 0, fact, form)


def test_prompts_are_diluted_split_and_paraphrased():
    levels = torch.zeros(20, dtype=torch.uint8)
    levels[9] = 1  # a sentence starts after token 9
    asked = [question((0, 5, 9, 6, 7)), question((0, 5, 6, 7), "paraphrase")]
    run = (11, 12)
    diluted = disguised(asked, "dilution", [run], levels, 2)
    assert [q.prompt for q in diluted] == [(0, 11, 12, 5, 9, 6, 7)]
    split = disguised(asked, "split", [run], levels, 2)
    assert [q.prompt for q in split] == [(0, 5, 9, 11, 12, 6, 7)]
    # Runs are taken whole until there is enough.
    longer = disguised(asked, "dilution", [run], levels, 5)
    assert [q.prompt for q in longer] == [(0, *(11, 12) * 3, 5, 9, 6, 7)]
    assert disguised(asked, "perturbation", [], levels) == asked
    assert [q.form for q in disguised(asked, "paraphrase", [run], levels)] == ["paraphrase"]
    assert turn((0, 5, 9), levels) is None  # nothing is asked after the last token
    # All orders of one fact get the same text, so that they can be right under every order.
    many = disguised([question((0, 5, 9, 6))] * 3, "dilution", [(11,), (12,), (13,)], levels, 1)
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


def test_retained_is_the_smaller_of_near_and_far():
    assert retained(0.99, 0.98) == 0.98 and retained(0.9, 1.0) == 0.9


def test_a_setting_is_judged_on_facts_that_it_was_not_picked_on():
    made = documents(
        {
            # Facts 0 and 2 are one half. On it setting a forgets all and keeps all; on the other
            # it forgets nothing and breaks near fact 1.
            "ema-codes/hold|a": ({1, 3}, {0, 2, 3}, ALL),
            "ema-codes/hold|b": ({0, 2}, ALL, ALL),
            "ema-codes/hold-random|c": (ALL, set(), ALL),
        }
    )
    rows = chosen_rows(chosen_documents(made), n_boot=50)
    value = {(r["metric"], r["group"]): r["value"] for r in rows}
    # Picked on 0 and 2: a, judged on 1 and 3 (both right). Picked on 1 and 3: b (a breaks near),
    # judged on 0 and 2 (both right).
    assert value["unlearn_chosen_forget_accuracy", "ema-codes/hold"] == 1.0
    assert value["unlearn_chosen_near_accuracy", "ema-codes/hold"] == 3 / 4
    assert value["unlearn_chosen_near_accuracy_95", "ema-codes/hold"] == 3 / 4
    # No setting of random keeps enough: the model is left as it is.
    assert value["unlearn_chosen_near_accuracy", "ema-codes/hold-random"] == 1.0
    # The difference is from the random edit behind the same gate, and random has none.
    assert value["unlearn_difference", "ema-codes/hold|near"] == pytest.approx(-1 / 4)
    assert value["unlearn_difference_hi", "ema-codes/hold|near"] >= -1 / 4
    assert value["unlearn_difference_95", "ema-codes/hold|near"] == pytest.approx(-1 / 4)
    assert ("unlearn_difference", "ema-codes/hold-random|near") not in value


def test_the_control_of_an_edit_stands_behind_its_own_gate():
    have = ["always/hold-random", "ema-codes/hold-random", "ema-codes/mean-random"]
    assert control("ema-codes/mean", have) == "ema-codes/mean-random"
    assert control("ema-codes/chain", have) == "ema-codes/hold-random"
    assert control("weights/rmu", have) is None and control("ema-codes/mean-random", have) is None


@pytest.mark.parametrize(
    "settings, score, qualifying",
    [
        ([(0, 3, 4), (1, 4, 3)], 0.0, 0),  # both neighbourhoods have to be kept
        ([(1, 4, 4), (0, 4, 3)], 3 / 4, 1),
        ([(3, 4, 4), (2, 4, 4), (0, 2, 2)], 1 / 2, 2),
    ],
)
def test_score_by_hand(settings, score, qualifying):
    made = documents(
        {f"always/clamp|{m}": tuple(set(range(n)) for n in ns) for m, ns in enumerate(settings)}
    )
    value = {(r["metric"], r["group"]): r["value"] for r in score_rows(made)}
    for column in ("", "_95"):
        assert value[f"unlearn_score{column}", "always/clamp"] == pytest.approx(score)
        assert value[f"unlearn_qualifying{column}", "always/clamp"] == qualifying
