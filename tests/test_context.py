"""Order, isolation and capability on cases worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from eval_cases import Store, read, value

from lab.measures.fidelity import capability
from lab.measures.fidelity.capability import by_fact, by_item, spliced
from lab.measures.time import order
from lab.measures.time.order import scores
from lab.measures.unlearning import isolation
from lab.measures.unlearning.questions import prompt_context
from lab.worlds.knowledge import Question
from tsae import saes


def test_order_is_worth_nothing_to_a_static_sae():
    torch.manual_seed(0)
    sae = saes.build("topk", d_in=8, d_sae=16, k=3).eval()
    rows = order.measure({"a": sae}, read(Store()), None, windows=(4,))["a"].rows
    assert {r["metric"] for r in rows} >= {"shuffle_gap_fve", "shuffle_gap_ap_document"}
    assert all(r["value"] == pytest.approx(0.0, abs=1e-6) for r in rows)


def test_order_gap_is_the_difference_of_two_scores():
    torch.manual_seed(0)
    sae = saes.build("conv", d_in=8, d_sae=16, k=4, window=4).eval()
    with torch.no_grad():
        sae.B_lag.normal_()
    reading = read(Store())
    rows = order.measure({"a": sae}, reading, None, windows=(4,))["a"].rows
    gap = (
        scores(sae, reading, None)["fve"][0]
        - scores(order.ShuffledNull(sae, 4, 0), reading, None)["fve"][0]
    )
    assert value(rows, "shuffle_gap_fve", "shuffle=4") == pytest.approx(gap)
    assert abs(gap) > 1e-3


def test_isolation_is_the_most_that_a_group_alone_forgets_beyond_its_cost():
    # At m=50 .5 is forgotten and .1 lost, at m=90 all is.
    rows = [
        {"metric": f"unlearn_{name}", "group": f"always/clamp|t=0.01|n=5|m={m}", "value": v, "n": 1}
        for m, values in ((50, (0.5, 0.9)), (90, (0.0, 0.1)))
        for name, v in zip(("forget_accuracy", "retained"), values, strict=True)
    ]
    rows.append({"metric": "unlearn_score", "group": "always/clamp", "value": 0.8, "n": 1})
    (found,) = isolation.gaps(rows, "slow")
    assert found["group"] == "slow|always/clamp" and found["value"] == pytest.approx(0.4)


def test_right_under_every_order_and_the_margin():
    """Fact 0 is right in one of two orders, fact 1 in both; margins are means over orders."""
    ask = [
        Question("forget", "a", (0, 1), ((2,), (3,)), i, f, "plain") for f in (0, 1) for i in (0, 1)
    ]
    scores_QC = np.array([[-1.0, -2.0], [-1.0, -4.0], [-1.0, -3.0], [-5.0, -1.0]])
    items = by_item(ask, scores_QC)
    assert items["accuracy"].tolist() == [0.0, 1.0]
    assert items["margin"].tolist() == [-1.0, 3.0]  # (1 - 3) / 2 and (2 + 4) / 2
    facts = by_fact(items)
    assert facts["num"].tolist() == [0.0, 1.0] and facts["den"].tolist() == [1.0, 1.0]


def test_splicing_leaves_bos_padding_and_massive_tokens():
    context = prompt_context(torch.tensor([[5, 7, 2, 0]]), torch.tensor([0] * 7 + [2]).byte())
    assert context.mask_BT.tolist() == [[True, True, True, False]]
    assert context.boundary_BT.tolist() == [[0, 0, 2, 0]]
    raw = torch.ones(1, 4, 2)
    raw[0, 2] = 1e6
    new = spliced(None, context, SimpleNamespace(median_norm=1.0, scale=1.0))(raw)
    assert new[0, 1].tolist() == [0.0, 0.0]
    assert torch.equal(new[0, [0, 2, 3]], raw[0, [0, 2, 3]])


def test_worlds_without_questions_have_no_capability():
    world = SimpleNamespace(questions=lambda: [])
    assert capability.measure({"a": None}, read(Store()), world) == {}
    assert isolation.measure({"a": None}, None, world) == {}
