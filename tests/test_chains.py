"""Chains by maximum flow, their names, and the edit that follows them: all by hand."""

import pandas as pd
import pytest
import torch
from edit_cases import identity

from lab.edits.chain import ChainClamp, Link
from lab.edits.edit import Edit
from lab.measures.succession.paths import find_chains, upstream
from tsae.saes import SequenceContext


def table(*edges):
    return pd.DataFrame(edges, columns=["source", "target", "lag", "C"])


DIAMOND = table((1, 2, 1, 0.5), (1, 3, 2, 0.3), (2, 4, 2, 0.4), (3, 4, 1, 0.9), (4, 5, 1, 2.0))


def test_flow_is_taken_apart_into_its_chains():
    found = find_chains(DIAMOND, [5])
    # Through 2: min(.5, .4); through 3: min(.3, .9).
    assert [(c.latents, c.lags) for c in found] == [
        ((1, 2, 4, 5), (1, 2, 1)),
        ((1, 3, 4, 5), (2, 1, 1)),
    ]
    assert [c.flow for c in found] == pytest.approx([0.4, 0.3])


def test_a_narrow_end_limits_the_sum():
    narrow = DIAMOND.assign(C=[0.5, 0.3, 0.4, 0.9, 0.6])
    found = find_chains(narrow, [5])
    assert sum(c.flow for c in found) == pytest.approx(0.6)  # the minimum cut is 4 → 5


def test_edges_at_several_lags_are_several_chains():
    found = find_chains(table((1, 2, 3, 0.2), (1, 2, 5, 0.6)), [2])
    assert [(c.lags, round(c.flow, 6)) for c in found] == [((5,), 0.6), ((3,), 0.2)]


def test_time_is_respected():
    chain = table((1, 2, 4, 0.5), (2, 3, 4, 0.5))
    assert find_chains(chain, [3], horizon=7) == []  # the chain takes 8 tokens
    assert find_chains(chain, [3], horizon=8)[0].lags == (4, 4)
    assert find_chains(table((3, 2, 1, 0.5)), [3]) == []  # the arrow points away


def test_sources_and_cycles():
    loop = table((1, 2, 1, 0.5), (2, 1, 1, 0.5), (2, 3, 1, 0.4))
    assert upstream(loop, [3]) == [1, 2]  # no beginning: all before the target
    assert upstream(DIAMOND, [5]) == [1]
    assert find_chains(DIAMOND, [5], sources=[3])[0].latents == (3, 4, 5)
    assert find_chains(DIAMOND, [5], sources=[9]) == []
    assert len(find_chains(DIAMOND, [5], limit=1)) == 1


def test_bad_graphs_are_named():
    with pytest.raises(ValueError, match="horizon=0"):
        find_chains(DIAMOND, [5], horizon=0)
    with pytest.raises(ValueError, match="at least 0 in every edge"):
        find_chains(DIAMOND.assign(C=-1.0), [5])


# ---- the edit -----------------------------------------------------------------------------------


LINKS = [Link(0, 1, 1, 0.5), Link(0, 1, 2, 0.25), Link(1, 2, 1, 1.0)]
RAW = torch.zeros(1, 7, 4)
RAW[0, 0, 0] = 9.0  # BOS
RAW[0, 2, 0] = 4.0
RAW[0, 3, 1] = 3.0
RAW[0, 5, 3] = 1.0


def clamp(m=100, scale=1.0, matched=False, **options):
    sae = identity()
    return Edit(sae, ChainClamp(sae, LINKS, **options), m, scale, matched=matched)


def test_chain_edit_by_hand():
    edit = clamp(scale=0.5)
    out = edit(RAW)
    # Codes: z_0[2] = 2, z_1[3] = 1.5 (raw / 2). Members 1 and 2.
    # v_1[3] = −.7 · .5 · 2 = −.7;  v_1[4] = −.49 · .25 · 2 = −.245;  v_2[4] = −.7 · 1 · 1.5.
    expected = RAW.clone()
    expected[0, 3, 1] = -0.7 / 0.5
    expected[0, 4, 1] = -0.245 / 0.5
    expected[0, 4, 2] = -1.05 / 0.5
    torch.testing.assert_close(out, expected)
    assert edit.touched_BT[0].nonzero()[:, 0].tolist() == [3, 4]
    assert edit.push.latents.tolist() == [1, 2]
    # BOS, whose code is masked, starts nothing at token 1 or 2.


def test_gamma_and_multiplier():
    code = [
        [edit(RAW)[0, t, 1].item() for t in (3, 4)]
        for edit in (clamp(), clamp(200), clamp(gamma=1.0))
    ]
    assert code[0] == pytest.approx([-0.7 * 0.5 * 4, -0.49 * 0.25 * 4])
    assert code[1] == pytest.approx([2 * v for v in code[0]])
    assert code[2] == pytest.approx([-0.5 * 4, -0.25 * 4])


def test_matched_edit_scales_with_the_token():
    out = clamp(50, matched=True)(RAW)
    # At token 3 latent 1 alone goes down, from 3 by half of ‖x[3]‖ = 3.
    assert out[0, 3, 1].item() == pytest.approx(1.5)
    # Token 4 is zero: what is asked for scales to nothing.
    assert out[0, 4].abs().max() == 0


def test_nothing_crosses_a_document_or_an_invalid_token():
    boundary = torch.zeros(1, 7, dtype=torch.uint8)
    boundary[0, 3] = 3
    edit = clamp().within(SequenceContext(None, boundary))
    out = edit(RAW)
    assert torch.equal(out[0, 3], RAW[0, 3])  # the upstream token lies in the other document
    assert out[0, 4, 1] == 0 and out[0, 4, 2] < 0
    mask = torch.ones(1, 7, dtype=torch.bool)
    mask[0, 2] = False
    edit = clamp().within(SequenceContext(mask))
    out = edit(RAW)
    assert torch.equal(out[0, :4], RAW[0, :4]) and out[0, 4, 2] < 0


def test_edit_is_causal():
    edit = clamp()
    torch.manual_seed(0)
    raw = torch.randn(2, 9, 4)
    later = raw.clone()
    later[:, 5:] += 3.0
    assert torch.equal(edit(later)[:, :5], edit(raw)[:, :5])
    assert torch.equal(edit(raw[:, :5]), edit(raw)[:, :5])


@pytest.mark.parametrize(
    ("made", "options", "needle"),
    [
        ([], {}, "at least one edge"),
        ([Link(0, 9, 1, 0.5)], {}, "distinct ids from 0 to 3"),
        (LINKS, {"gamma": 0.0}, "gamma=0.0"),
    ],
)
def test_bad_edits_are_named(made, options, needle):
    with pytest.raises(ValueError, match=needle):
        ChainClamp(identity(), made, **options)
