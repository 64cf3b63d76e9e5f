"""Temporal metrics by hand, and what must hold of them whatever the codes."""

import math

import pytest
import torch
from eval_cases import Batch, Fake, Store, TableModel, World, read, tokens, value
from eval_cases import measured as measured_by

from lab.measures.reading import Tokens
from lab.measures.time import context, switches
from lab.measures.time.consistency import LaggedCounts, repeats, successions
from lab.measures.time.context import jaccard
from lab.measures.time.temporal import Temporal
from lab.measures.truth.boundaries import boundary_f1, learned_boundaries
from tsae.sequences import SequenceContext


def groups(n, **more):
    return {"all": torch.arange(n), **{k: torch.tensor(v) for k, v in more.items()}}


def measured(t, n_latents, spread=None, **more):
    """Rows beside those of the shuffled tokens, and document rows."""
    own, null = (Temporal(groups(n_latents, **more), 128, spread) for _ in range(2))
    own.update(t)
    null.update(t.shuffled(torch.Generator().manual_seed(0)), whole=False)
    return own.measured(null)


def rows_of(t, n_latents, spread=None):
    return measured(t, n_latents, spread)[0]


def test_pieces_by_hand():
    """BOS, a document, a masked token inside it, and a second document."""
    batch = Batch(
        x_BTD=torch.zeros(1, 8, 1),
        doc_BT=torch.tensor([[-1, 1, 1, 1, 1, 1, 2, 2]]),
        context=SequenceContext(
            torch.tensor([[0, 1, 1, 0, 1, 1, 1, 1]]).bool(),
            torch.tensor([[3, 3, 1, 0, 0, 2, 3, 0]], dtype=torch.uint8),
        ),
        labels={},
    )
    t = Tokens.of(batch, torch.zeros(1, 8, 1), batch.x_BTD)
    assert t.piece_N.tolist() == [0, 0, 1, 1, 2, 2]
    assert t.boundary_N.tolist() == [3, 1, 0, 2, 3, 0]
    assert t.linked(1).tolist() == [True, False, True, False, True]


def test_smoothness_by_hand():
    # latent 0: 1/1 then 0/2 → 1; latent 1: 0/1 then 4/2 → 2; latent 2 never fires
    z = [[0, 0, 0], [1, 0, 0], [1, 4, 0], [9, 9, 9]]
    t = tokens(z, [[0.0], [1.0], [3.0], [4.0]], piece=[0, 0, 0, 1], doc=[7, 7, 7, 8])
    rows, documents = measured(t, 3, fast=[0], slow=[1, 2])
    assert value(rows, "smoothness") == pytest.approx(1.5)
    assert value(rows, "smoothness", "fast") == pytest.approx(1)
    assert value(rows, "smoothness", "slow") == pytest.approx(2)
    documents = documents.set_index(["metric", "group"])
    assert documents.loc[("smoothness", "all"), ["doc", "num", "den"]].tolist() == [7, 1.5, 1]
    # with s.d. 2 and 4: (1/2 + 2/4) / 2
    scaled = rows_of(t, 3, torch.tensor([2.0, 4.0, 1.0]))
    assert value(scaled, "smoothness_normalised") == pytest.approx(0.5)


def test_smoothness_of_scaled_codes():
    """Doubling codes doubles it; doubling codes and residuals together changes nothing."""
    g = torch.Generator().manual_seed(0)
    z = torch.rand(30, 4, generator=g) * (torch.rand(30, 4, generator=g) < 0.4)
    x = torch.randn(30, 3, generator=g)
    piece = torch.arange(30) // 10
    base, twice, both = (
        value(rows_of(tokens(a * z, b * x, piece=piece), 4), "smoothness")
        for a, b in ((1, 1), (2, 1), (2, 2))
    )
    assert twice == pytest.approx(2 * base, rel=1e-5) and both == pytest.approx(base, rel=1e-5)
    scale = torch.tensor([1.0, 5, 10, 0.1])  # no latent's size is in the normalised form
    found = [rows_of(tokens(v, x, piece=piece), 4, v.std(0)) for v in (z, z * scale)]
    one, other = (value(rows, "smoothness_normalised") for rows in found)
    assert one == pytest.approx(other, rel=1e-5)


def test_cosines_by_hand():
    """Sentences 0–1, 2–3; an empty code at 4; a section at 5; each document its own four tokens."""
    z = [[1, 0], [1, 1], [0, 1], [0, 2], [0, 0], [3, 0], [4, 0], [0, 1]]
    t = tokens(z, boundary=[3, 0, 1, 0, 0, 2, 0, 2], doc=[0] * 4 + [1] * 4)
    part = Temporal(groups(2), 128)
    part.update(t)
    inside = (1 / math.sqrt(2) + 1 + 1) / 3  # pairs 0–1, 2–3, 5–6; those with token 4 are left out
    across = (1 / math.sqrt(2) + 0) / 2  # pairs 1–2 (sentence) and 6–7 (section)
    contrast, n, influence, share = part.contrast("all")
    assert (contrast, n) == (pytest.approx(inside - across, abs=1e-6), 2)
    assert influence.sum() == pytest.approx(0, abs=1e-9)
    assert influence[1] == pytest.approx((1 - inside) / 3 - (0 - across) / 2, abs=1e-6)
    assert share.tolist() == [3 / 5, 2 / 5]


def sentences(n_sentences=400, length=5, n_latents=20, seed=0, noise=False):
    """Codes constant within a sentence (or new at every token), pieces of ten sentences."""
    g = torch.Generator().manual_seed(seed)
    n = n_sentences * length
    draw = torch.randint(0, n_latents, (n if noise else n_sentences,), generator=g)
    latent = draw if noise else draw.repeat_interleave(length)
    z = torch.nn.functional.one_hot(latent, n_latents).float()
    boundary = torch.zeros(n, dtype=torch.long)
    boundary[::length] = 1
    piece = torch.arange(n) // (10 * length)
    boundary[:: 10 * length] = 3
    return tokens(z, torch.randn(n, 3, generator=g), boundary=boundary, piece=piece, doc=piece)


def test_tss_is_high_for_sentences_and_zero_for_noise():
    rows, documents = measured(sentences(), 20)
    assert value(rows, "tss") > 0.8 and abs(value(rows, "tss_null")) < 0.05
    sums = documents.query("metric == 'tss'")[["num", "den"]].sum()
    assert sums["den"] == pytest.approx(1)
    assert sums["num"] == pytest.approx(value(rows, "tss"))
    assert abs(value(rows_of(sentences(n_sentences=4000, noise=True), 20), "tss")) < 0.02


def test_boundary_and_lifecycle_of_sentences():
    """Perfect sentence codes: every boundary is a peak (but for equal neighbours) and lives ≥ 5."""
    rows = rows_of(sentences(n_latents=500), 500)
    assert value(rows, "boundary_f1") > 0.97
    assert value(rows, "half_life") == 5
    assert value(rows, "smoothness_null") > value(rows, "smoothness")
    # nine changes in 49 links a piece
    assert value(rows, "births_per_100") == pytest.approx(100 * 9 / 49, rel=0.02)


def test_returns_and_silences_by_hand():
    """Latent 0 at 0, 1 and again at 3; latent 1 at 2, then alone in the second piece."""
    z = [[1, 0], [1, 0], [0, 1], [1, 0], [0, 1], [0, 0]]
    rows = rows_of(tokens(z, piece=[0, 0, 0, 0, 1, 1]), 2)
    # at a piece's first token nothing was silent before: births at 2 and 3, the latter a return
    assert value(rows, "returns") == 0.5 and value(rows, "reactivation_gap") == 1
    assert value(rows, "births_per_100") == 100 * 2 / 4


def test_nothing_crosses_a_piece():
    """Replacing one document's codes leaves every other document's rows alone."""
    g = torch.Generator().manual_seed(1)
    z = torch.rand(40, 6, generator=g).sub(0.5).clamp(min=0)
    other = z.clone()
    other[20:] = torch.rand(20, 6, generator=g)
    x = torch.randn(40, 3, generator=g)
    piece = torch.arange(40) // 20
    a, b = (measured(tokens(v, x, piece=piece, doc=piece), 6)[1] for v in (z, other))
    a, b = (f[f["metric"] != "tss"] for f in (a, b))
    assert a[a["doc"] == 0].equals(b[b["doc"] == 0])
    assert not a[a["doc"] == 1].equals(b[b["doc"] == 1])


def test_order_of_pieces_does_not_matter():
    t = sentences(n_sentences=40)
    order = torch.cat([torch.arange(100, 200), torch.arange(100)])
    parts = {"boundary": t.boundary_N[order], "piece": t.piece_N, "doc": t.doc_N[order]}
    swapped = tokens(t.z_NF[order], t.x_ND[order], **parts)
    for a, b in zip(rows_of(t, 20), rows_of(swapped, 20), strict=True):
        if not a["metric"].startswith("tss") and a["metric"] != "smoothness_null":
            assert (a["metric"], a["group"]) == (b["metric"], b["group"])
            assert a["value"] == pytest.approx(b["value"], abs=1e-6, nan_ok=True)


def test_boundary_f1_by_hand():
    score = torch.tensor([-1.0, 0, 0, 1, 5, 1, 0, 0, 0, 4])
    boundary = torch.tensor([3, 0, 0, 1, 0, 0, 0, 1, 0, 0])
    piece = torch.zeros(10, dtype=torch.long)
    # peaks 4 and 9; boundaries 3 and 7: one match of two
    assert boundary_f1(score, boundary, piece) == (pytest.approx(0.5), 2)
    assert boundary_f1(score, boundary, piece, tolerance=2)[0] == pytest.approx(1)
    assert boundary_f1(score, boundary, piece, tolerance=0)[0] == 0


def test_boundary_matches_stay_inside_a_piece():
    score = torch.tensor([-1.0, 0, 3, -1.0, 0, 0])
    boundary = torch.tensor([3, 0, 0, 3, 1, 0])
    same, apart = torch.zeros(6).long(), torch.tensor([0, 0, 0, 1, 1, 1])
    assert boundary_f1(score, boundary, apart, tolerance=2)[0] == 0
    assert boundary_f1(score, boundary, same, tolerance=2)[0] == 1


@pytest.mark.parametrize(("gate", "expected"), [("learned", 1.0), ("hard", None)])
def test_learned_boundaries_are_scored(gate, expected):
    """A gate that opens at sentence starts scores 1; one that is given them is not scored."""
    sae = Fake(lambda x, c: x, 8)
    sae.cfg.gate = gate
    sae.centred = lambda x, context: x
    sae.closed = lambda x, context: (context.boundary_BT >= 1).float()
    rows = learned_boundaries(sae, read(Store(4), batch=2))
    # 4 sequences × 2 documents × 3 sentence starts that are not the document's first token
    assert [(r["value"], r["n"]) for r in rows] == ([(expected, 24)] if expected else [])


def test_shuffled_null_keeps_every_pieces_tokens():
    t = sentences(n_sentences=20)
    s = t.shuffled(torch.Generator().manual_seed(0))
    for p in t.piece_N.unique():
        at = t.piece_N == p
        assert torch.equal(s.x_ND[at].sort(0).values, t.x_ND[at].sort(0).values)
        assert torch.equal(s.z_NF[at].sum(0), t.z_NF[at].sum(0))


def test_lagged_counts_and_phi_by_hand():
    # a fires at 0, 2, 5; b at 1, 3; pieces 0–3 and 4–6
    active = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1], [0, 0], [1, 0], [0, 0]]).bool()
    piece = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    counts = LaggedCounts(2, (1,))
    counts.update(active, piece)
    assert int(counts.pairs_L) == 5
    assert counts.together_LMM[0].tolist() == [[0, 2], [1, 0]]
    # a before: 0, 2, 5 → 3 of 5; b after: 2 of 5; together 2: φ = (5·2 − 3·2) / √(3·2·2·3)
    assert float(counts.phi()[0, 0, 1]) == pytest.approx(4 / 6)
    table = successions(counts, torch.tensor([10, 11]))
    first = table.iloc[0]
    assert (first["source"], first["target"], first["count"]) == (10, 11, 2)
    assert first["lift"] == pytest.approx((2 / 3) / (2 / 5))


def chained(order, seed=0, n=6000):
    """Latent order[i + 1] follows order[i] two times out of three, else any latent."""
    g = torch.Generator().manual_seed(seed)
    latent = torch.zeros(n, dtype=torch.long)
    for t in range(1, n):
        follow = torch.rand(1, generator=g) < 2 / 3
        latent[t] = order[latent[t - 1]] if follow else torch.randint(0, 8, (1,), generator=g)
    piece = torch.arange(n) // 50
    return tokens(torch.nn.functional.one_hot(latent, 8).float(), piece=piece, doc=piece)


def test_consistency_is_high_for_a_chain_and_zero_for_its_null():
    t = chained([1, 2, 3, 4, 5, 6, 7, 0])
    found = []
    for text in (t, t.shuffled(torch.Generator().manual_seed(0))):
        halves = [LaggedCounts(8, (1, 2, 4)) for _ in range(2)]
        for half, counts in enumerate(halves):
            at = text.doc_N // 2 % 2 == half
            counts.update(text.z_NF[at] > 0, text.piece_N[at])
        found.append(repeats(*halves)[0])
    assert found[0] > 0.6 and abs(found[1]) < 0.3
    arriving = LaggedCounts(8, (1,), arriving=True)
    arriving.update(t.z_NF > 0, t.piece_N)
    table = successions(arriving, torch.arange(8), 8)
    assert table["lift"].min() > 3
    assert ((table["source"] + 1) % 8 == table["target"]).all() and len(table) == 8


def test_jaccard_by_hand():
    a = torch.tensor([[1.0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    b = torch.tensor([[2.0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    assert jaccard(a, b).tolist() == [0.25, 1, 0]


def test_context_stability_counts_what_the_cut_removes(monkeypatch):
    """Static codes on a context-free residual never change; a code of the last 10 tokens does."""
    model = TableModel()
    monkeypatch.setattr(context, "models", model)
    monkeypatch.setattr(context, "CONTEXTS", (4, 16, 64))

    def window(x, context):
        assert (context.boundary_BT[:, :2] == 3).all() and not context.mask_BT[:, 0].any()
        z = torch.zeros_like(x)
        for j in range(min(10, x.shape[1])):
            z[:, j:] += x[:, : x.shape[1] - j].clamp(min=0)
        return z - 4

    saes = {"static": Fake(lambda x, c: x.clamp(min=0), 8), "window": Fake(window, 8)}
    out = context.measure(saes, read(Store(4), batch=2), World(model))
    # blocks of 8 from 1, 5, …, 33: 36 of 40 tokens have 4 or more before them; of 32 from 1 and 17
    for group, n in (("context=4", 4 * 36), ("context=16", 4 * 24)):
        assert value(out["static"].rows, "context_jaccard", group) == 1
        assert {r["n"] for r in out["static"].rows if r["group"] == group} == {n}
    assert value(out["window"].rows, "context_jaccard", "context=16") == 1
    assert value(out["window"].rows, "context_jaccard", "context=4") < 0.99
    assert not [r for r in out["static"].rows if r["group"] == "context=64"]  # two do not fit
    # two batches: the whole, and blocks of one length together (that from 17 ends early)
    assert model.calls["residual"] == 2 * (1 + 1 + 2)
    documents = out["window"].documents.query("group == 'context=4'")
    mean = documents["num"].sum() / documents["den"].sum()
    assert mean == pytest.approx(value(out["window"].rows, "context_jaccard", "context=4"))


def switching(slow):
    """The topic's direction alone (slow), or the topic at a third of the tokens and a token's own."""

    def codes(x, c):
        assert (c.boundary_BT[:, 1:] == 0).all()  # nothing tells where documents meet
        z = x.sub(1.5).clamp(min=0)
        if slow:
            return torch.cat([z[..., :3], 0 * z[..., 3:]], -1)
        return z * (torch.rand(z.shape, generator=torch.Generator().manual_seed(5)) < 1 / 3)

    return Fake(codes, 8)


def test_switches_are_seen_by_slow_latents(monkeypatch):
    """Documents of 20 tokens whose topics differ (the store's ids do): one switch a sequence."""
    for name, setting in {"K": 3, "W": 8, "LEAST": 0.01, "MOST": 0.9}.items():
        monkeypatch.setattr(switches, name, setting)
    saes = {"slow": switching(True), "fast": switching(False)}
    out = measured_by(saes, Store(48), families=("switches",))
    by = {(name, r["reading"], r["metric"]): r["value"] for name, m in out.items() for r in m.rows}
    assert by["slow", "own", "switch_auroc"] == pytest.approx(1)
    assert by["slow", "own", "switch_delay"] == 0
    assert by["fast", "own", "switch_auroc"] < 0.9
    assert by["fast", "ema", "switch_auroc"] > by["fast", "own", "switch_auroc"]
    assert by["fast", "own", "switch_delay"] > 2  # its quiet tokens reach 1 as well
    documents = out["fast"].documents.query("reading == 'own'")
    for metric, rows in documents.groupby("metric"):
        mean = rows["num"].sum() / rows["den"].sum()
        assert mean == pytest.approx(by["fast", "own", metric])
