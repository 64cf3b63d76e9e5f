"""Buffer, quantisation and the sparse running correlation, against hand-worked numbers and the
dense definition."""

import math

import pytest
import torch

from tsae.kernels.sparse import Codes
from tsae.tracking import (
    Active,
    CircularFeatureBuffer,
    Relation,
    TemporalCorrelationTracker,
    history,
    strongest,
)
from tsae.tracking.quantise import dequantise, quantise


def active(*tokens):
    """From one {latent: value} a token."""
    M = max(1, max(map(len, tokens)))
    ids, values = torch.zeros(len(tokens), M, dtype=torch.long), torch.zeros(len(tokens), M)
    for n, token in enumerate(tokens):
        for slot, (latent, value) in enumerate(token.items()):
            ids[n, slot], values[n, slot] = latent, value
    return Active(ids, values)


def dense(part, F):
    out = torch.zeros(len(part.ids_NM), F)
    return out.scatter_add(1, part.ids_NM, part.values_NM)


def random_active(N, M, F, seed, silent=0.2):
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(F, generator=g)[:M] for _ in range(N)])
    values = torch.rand(N, M, generator=g) * 3 + 0.1
    return Active(ids, values * (torch.rand(N, M, generator=g) > silent))


def matrices(tracker):
    return torch.stack(
        [
            torch.tensor(tracker.matrix(lag).toarray(), dtype=torch.float32)
            for lag in range(1, tracker.window + 1)
        ]
    )


def counts(tracker):
    """n of every lag [L, F, F], aged to now."""
    aged = (
        tracker.count_LFS
        * torch.stack([tracker.decay(i) for i in range(tracker.window)])[..., None]
    )
    out = torch.zeros(*aged.shape[:2], tracker.n_latents)
    return out.scatter_add(2, tracker.successors_LFS.long(), aged)


# ---- codes --------------------------------------------------------------------------------------


def test_quantised_codes_by_hand():
    levels, scale = quantise(torch.tensor([[2.55, 1.0, 0.004, 0.0]]))
    assert levels.dtype == torch.uint8
    assert levels.tolist() == [[255, 100, 1, 0]]  # 0.004 rounds to 0 but stays active
    assert scale.tolist() == pytest.approx([0.01])
    assert dequantise(levels, scale)[0].tolist() == pytest.approx([2.55, 1.0, 0.01, 0.0])
    assert quantise(torch.zeros(2, 3))[0].sum() == 0


def test_quantisation_error_is_bounded():
    z = torch.rand(500, 20, generator=torch.Generator().manual_seed(0)) ** 8
    z[::7] = 0
    levels, scale = quantise(z)
    error = (dequantise(levels, scale) - z).abs()
    large = z >= scale[:, None] / 2
    assert (error <= scale[:, None] * torch.where(large, 0.5001, 1.0)).all()
    assert torch.equal(levels > 0, z > 0)


def test_strongest_of_sparse_and_dense_codes_agree():
    g = torch.Generator().manual_seed(1)
    z = torch.rand(9, 12, generator=g) * (torch.rand(9, 12, generator=g) > 0.6)
    z[4] = 0
    rows, cols = z.nonzero(as_tuple=True)
    crow = torch.cat([torch.zeros(1, dtype=torch.long), (z > 0).sum(1).cumsum(0)])
    codes = Codes(z[rows, cols], rows, cols, crow, (9, 12))
    for m in (2, 6, 12):
        kept = z.topk(m).values
        for part in (strongest(codes, m), strongest(z, m)):
            assert part.ids_NM.shape == (9, m)
            torch.testing.assert_close(part.values_NM, kept)
            picked = z.gather(1, part.ids_NM)
            assert torch.equal(picked * (part.values_NM > 0), part.values_NM)


# ---- buffer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 32])
def test_buffer_wraps_and_forgets(bits):
    buffer = CircularFeatureBuffer(batch_size=2, slots=1, window=3, bits=bits)
    before = [t.data_ptr() for t in (buffer.ids_WBM, buffer.codes_WBM, buffer.scale_WB)]
    for t in range(5):
        buffer.push(Active(torch.tensor([[t], [10 + t]]), torch.tensor([[t + 1.0], [0.5]])))
    for lag, t in ((1, 4), (2, 3), (3, 2)):
        part = buffer.at(lag)
        assert part.ids_NM.tolist() == [[t], [10 + t]]
        assert part.values_NM[:, 0].tolist() == pytest.approx([t + 1.0, 0.5])
    buffer.clear(torch.tensor([True, False]))
    assert buffer.at(1).values_NM[:, 0].tolist() == pytest.approx([0.0, 0.5])
    assert buffer.at(3).values_NM[:, 0].tolist() == pytest.approx([0.0, 0.5])
    assert [t.data_ptr() for t in (buffer.ids_WBM, buffer.codes_WBM, buffer.scale_WB)] == before
    assert buffer.nbytes == 3 * 2 * (4 + bits // 8 + 4)
    with pytest.raises(ValueError, match="lag=4"):
        buffer.at(4)


@pytest.mark.parametrize("bits", [8, 32])
def test_buffer_equals_the_history_of_the_whole_text(bits):
    codes, document = random_active(20, 4, 15, seed=2), torch.arange(20) // 8
    buffer = CircularFeatureBuffer(1, 4, window=3, bits=bits)
    seen = {}
    for t in range(20):
        buffer.clear(torch.tensor([t % 8 == 0]))
        for lag in (1, 2, 3):
            seen[t, lag] = dense(buffer.at(lag), 15)[0]
        buffer.push(Active(*(part[t : t + 1] for part in codes)))
    expected = dict.fromkeys(seen, torch.zeros(15))
    for lagged in history(codes, document, 3, bits):
        past = dense(lagged.past, 15)
        expected |= {(int(t), lagged.lag): past[n] for n, t in enumerate(lagged.rows_n)}
    for key, value in seen.items():
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize(
    ("options", "needle"), [({"bits": 4}, "8 or 32"), ({"window": 0}, "least 1")]
)
def test_bad_buffers_are_named(options, needle):
    with pytest.raises(ValueError, match=needle):
        CircularFeatureBuffer(1, 1, **options)


# ---- relation -----------------------------------------------------------------------------------


def small(F=4, window=2, alpha=0.5, tau=0.0, successors=64, **options):
    """A tracker whose W is 0, so that R = 1 on every active pair."""
    tracker = TemporalCorrelationTracker(F, window, 2, alpha, tau, successors, **options)
    with torch.no_grad():
        tracker.relation.s_LR.zero_()
    return tracker


def test_relation_lives_on_active_pairs_alone():
    torch.manual_seed(0)
    relation = Relation(5, window=2, rank=3, spread=1.0)
    past, now = active({0: 2.0, 3: 1.0}), active({1: 0.5})
    now = Active(torch.tensor([[1, 4]]), torch.tensor([[0.5, 0.0]]))
    W = relation.U_FR @ torch.diag(relation.s_LR[1]) @ relation.V_FR.t()
    R = relation(past, now, lag=2)[0]
    assert R[:, 1].tolist() == [0.0, 0.0]  # not exp(0) = 1
    expected = [torch.exp(W[1, j] * z).clamp(max=16).item() for j, z in ((0, 2.0), (3, 1.0))]
    assert R[:, 0].tolist() == pytest.approx(expected)


def test_norm_loss_is_the_mean_square_of_W():
    torch.manual_seed(0)
    relation = Relation(7, window=2, rank=3)
    with torch.no_grad():
        relation.s_LR.normal_()
    square = 0.0
    for s in relation.s_LR:
        square += (relation.U_FR @ torch.diag(s) @ relation.V_FR.t()).square().sum()
    assert relation.norm_loss().item() == pytest.approx(square.item() / 49, rel=1e-5)


def learned(ids, document, steps=300, learning="logistic", **options):
    """W of the first lag, [later, earlier], once learned from one latent a token."""
    torch.manual_seed(0)
    codes = Active(ids, torch.ones(ids.shape))
    relation = Relation(int(ids.max()) + 1, window=1, rank=6, **options)
    optimizer = torch.optim.Adam(relation.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = relation.norm_loss()
        if learning == "logistic":
            loss = relation.logistic_loss(codes, codes, document, 4000)
        loss.backward()
        optimizer.step()
    return ((relation.U_FR * relation.s_LR[0]) @ relation.V_FR.t()).detach()


@pytest.mark.parametrize("learning", ["logistic", "norm"])
def test_logistic_learning_finds_the_successor_and_the_naive_norm_does_not(learning):
    """Latent 1 always follows latent 0; all other pairs are by chance. The optimum of W_10 is the
    log of the pair's lift."""
    torch.manual_seed(0)
    kind = torch.randint(0, 4, (4000,))
    ids = torch.where(kind == 0, 0, kind + 1)[:, None]
    ids[1:][ids[:-1] == 0] = 1
    W = learned(ids, torch.arange(4000) // 20, learning=learning)
    if learning == "norm":
        assert W.abs().max() < 0.02
        return
    share = (ids[1:, 0] == 1).float().mean()
    assert W[1, 0] == pytest.approx(-math.log(share), abs=0.2)
    assert W[2:5, 0].max() < -1.5  # nothing else follows a 0
    assert W[2:5, 2:5].abs().max() < 0.8


def test_what_comes_at_a_place_of_every_document_is_no_dependence():
    """0 then 1 at the start of every document: frequent, early and in order, as everywhere."""
    torch.manual_seed(0)
    ids = torch.randint(2, 5, (200, 20))
    ids[:, 0], ids[:, 1] = 0, 1
    W = learned(ids.view(-1, 1), torch.arange(4000) // 20)
    assert W[1, 0].abs() < 0.3  # at that place of other documents there is 1 as well


def test_a_source_that_only_goes_with_the_cause_is_explained_away():
    """2 follows 0 alone; 1 is on with 0 half of the time, and on as often without it."""
    torch.manual_seed(0)
    N = 6000
    on = torch.rand(N, 3) < torch.tensor([0.2, 0.2, 0.1])
    on[:, 1] |= on[:, 0] & (torch.rand(N) < 0.5)
    on[1:, 2] |= on[:-1, 0] & (torch.rand(N - 1) < 0.8)
    codes = Active(torch.arange(3).expand(N, 3).clone(), on.float())
    relation = Relation(3, window=1, rank=3)
    optimizer = torch.optim.Adam(relation.parameters(), lr=0.03)
    document = torch.arange(N) // 50
    for _ in range(300):
        optimizer.zero_grad()
        relation.logistic_loss(codes, codes, document, 6000).backward()
        optimizer.step()
    W = ((relation.U_FR * relation.s_LR[0]) @ relation.V_FR.t()).detach()
    pairs = on[:-1, 1] & on[1:, 2]
    lift = math.log(pairs.float().mean() / (on[:-1, 1].float().mean() * on[1:, 2].float().mean()))
    assert W[2, 0] > 1.0 and lift > 0.3  # counted alone, 1 → 2 looks like an arrow too
    assert W[2, 1] < 0.5 * lift


# ---- running counts and their log-lift ----------------------------------------------------------


def test_update_by_hand():
    tracker = small(alpha=0.5, tau=-9.0)
    # Latent 0 at tokens 0 and 2; 1 follows once at lag 1; token 3 starts another document.
    codes = active({0: 1.0}, {1: 2.0}, {0: 1.0}, {1: 1.0})
    tracker.update(codes, torch.tensor([0, 0, 0, 1]))
    n, C = counts(tracker), matrices(tracker)
    # Lag 1: 0→1 and 1→0, once each; token 2 has no successor in its document. Lag 2: 0→0 once.
    assert n.nonzero().tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]] and n.max() == 1
    assert tracker.sources_LF.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    # 1 fires at 2 of 4 tokens, so e = 1 · ½: C = log (1 + κ) / (½ + κ) with κ = 4.
    assert C[0, 0, 1].item() == pytest.approx(math.log(5 / 4.5), abs=1e-6)
    assert C[1, 0, 0].item() == pytest.approx(math.log(5 / 4.5), abs=1e-6)
    assert tracker.usual(codes).values_NM[:, 0].tolist() == pytest.approx([1, 4 / 3, 1, 2 / 3])


def test_untouched_rows_age():
    tracker = small(window=1, alpha=0.5)
    pair, other = active({0: 1.0}, {1: 1.0}), active({2: 1.0}, {3: 1.0})
    document = torch.zeros(2, dtype=torch.long)
    tracker.update(pair, document)
    held = tracker.count_LFS[0, 0].clone()
    for _ in range(3):
        tracker.update(other, document)
    assert torch.equal(tracker.count_LFS[0, 0], held)  # lazily: the row was not written
    assert counts(tracker)[0, 0, 1] == pytest.approx(0.5**3)
    assert tracker.sources_LF[0, 0] == pytest.approx(0.5**3)
    tracker.update(pair, document)
    assert counts(tracker)[0, 0, 1] == pytest.approx(1 + 0.5**4)
    assert counts(tracker)[0, 2, 3] == pytest.approx((1 + 0.5 + 0.25) * 0.5)
    assert tracker.tokens == pytest.approx(2 * (1 - 0.5**5) / 0.5)


def test_lifts_at_or_below_tau_do_not_count():
    codes, document = active({0: 1.0}, {1: 1.0}), torch.zeros(2, dtype=torch.long)
    lift = math.log(5 / 4.5)
    for tau, n in ((lift - 0.01, 1), (lift + 0.01, 0)):
        tracker = small(window=1, tau=tau)
        tracker.update(codes, document)
        assert tracker.matrix(1).nnz == n and counts(tracker)[0, 0, 1] == 1


def test_what_is_frequent_alone_has_no_strength():
    """0 and 1 fire independently, often; 2 → 3 is rare and sure. P(1|0) is above P(3 at all)."""
    g = torch.Generator().manual_seed(0)
    tokens = [{i: 1.0 for i in (0, 1) if torch.rand((), generator=g) < 0.5} for _ in range(2000)]
    for t in range(0, 1900, 19):
        tokens[t] |= {2: 1.0}
        tokens[t + 1] |= {3: 1.0}
    tracker = small(window=1, alpha=0.1, tau=0.3)
    tracker.update(active(*tokens), torch.arange(2000) // 100)
    C = matrices(tracker)[0]
    assert C.nonzero().tolist() == [[2, 3]]
    n, e = counts(tracker)[0, 2, 3], 100 * 100 / 2000
    assert C[2, 3].item() == pytest.approx(math.log((n + 4) / (e + 4)), abs=1e-2)


def test_row_cap_keeps_the_largest():
    tracker = small(F=8, window=1, alpha=0.5, successors=2)
    # 0 is followed by 1 three times, by 2 twice, by 3, 4 and 5 once.
    tokens, document = [], []
    for n, follower in enumerate([1, 1, 1, 2, 2, 3, 4, 5]):
        tokens += [{0: 1.0}, {follower: 1.0}]
        document += [n, n]
    tracker.update(active(*tokens), torch.tensor(document))
    assert counts(tracker)[0, 0].tolist() == [0, 3, 2, 0, 0, 0, 0, 0]
    # Ones that now follow twice take the place of the smaller, aged to 1.
    tracker.update(active(*[{0: 1.0}, {7: 1.0}] * 2), torch.tensor([0, 0, 1, 1]))
    assert counts(tracker)[0, 0].tolist() == [0, 1.5, 0, 0, 0, 0, 0, 2]


@torch.no_grad()
def dense_update(n_LFF, codes, document_N, tracker):
    """n in F x F matrices, token by token; W, the usual codes and settings are the tracker's, which
    has read the same tokens."""
    L, F, S = tracker.count_LFS.shape
    new_LFF, relation = (1 - tracker.alpha) * n_LFF, tracker.relation
    for lagged in history(codes, document_N, L, tracker.bits):
        W_FF = relation.U_FR @ torch.diag(relation.s_LR[lagged.lag - 1]) @ relation.V_FR.t()
        z_NF, past_NF = dense(lagged.now, F), dense(tracker.usual(lagged.past), F)
        for z_F, past_F in zip(z_NF, past_NF, strict=True):
            R_FF = (W_FF * past_F).exp().clamp(max=16) * (z_F > 0)[:, None] * (past_F > 0)
            new_LFF[lagged.lag - 1] += R_FF.t()
    order = new_LFF.argsort(dim=-1, descending=True, stable=True)[..., :S]
    return torch.zeros_like(new_LFF).scatter(-1, order, new_LFF.gather(-1, order))


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("successors", [30, 5])
def test_sparse_counts_equal_the_dense_definition(successors, bits):
    torch.manual_seed(3)
    F, window = 30, 3
    tracker = TemporalCorrelationTracker(F, window, 4, 0.1, -99.0, successors, bits, spread=1.0)
    n = torch.zeros(window, F, F)
    for step in range(6):
        # Different latents take part at each step, so that rows age.
        codes = random_active(40, 6, F, seed=step)
        codes = Active((codes.ids_NM // (1 + step % 2)) % F, codes.values_NM)
        distinct = torch.tensor([len(set(r.tolist())) == 6 for r in codes.ids_NM])
        codes = Active(codes.ids_NM, codes.values_NM * distinct[:, None])
        document = torch.arange(40) // (7 + step)
        tracker.update(codes, document)
        n = dense_update(n, codes, document, tracker)
        torch.testing.assert_close(counts(tracker), n, atol=1e-4, rtol=1e-4)
    e = tracker.sources_LF[..., None] * tracker.fired_F / tracker.tokens
    C = torch.where(n > 0, ((n + 4) / (e + 4)).log(), 0.0)
    torch.testing.assert_close(matrices(tracker), C, atol=1e-4, rtol=1e-4)
    full = (n > 0).sum(-1)
    assert full.max() == min(successors, int(full.max())) and C.max() > 0.05
    if successors == 5:
        assert (full == 5).float().mean() > 0.5  # the cap was at work


def plainly(tracker):
    """The update in plain torch, as on an accelerator."""

    def update(codes, document):
        for lagged in history(codes, document, tracker.window, tracker.bits):
            tracker.follow(lagged)

    return update


@pytest.mark.parametrize(
    ("F", "successors", "silent"), [(40, 5, 0.2), (90, 64, 0.0), (33, 33, 0.5)]
)
def test_compiled_update_equals_the_plain_one_bit_for_bit(F, successors, silent, monkeypatch):
    """With 8 slots: torch's exp differs in its last bit between full vectors and what is left over
    at the end of a tensor, and 64 pairs a token leave nothing over."""
    torch.manual_seed(5)
    made = [
        TemporalCorrelationTracker(F, 3, 4, 0.1, 0.1, successors, 8, spread=2.0) for _ in range(2)
    ]
    made[1].load_state_dict(made[0].state_dict())
    for step in range(8):
        codes = random_active(150, 8, F - 8 * (step % 3), step, silent)  # rows of any age
        document = torch.arange(150) // (5 + 40 * (step % 2))
        made[0].update(codes, document)  # on a CPU: compiled
        monkeypatch.setattr(made[1], "follow_compiled", plainly(made[1]))
        made[1].update(codes, document)
        for a, b in zip(made[0].state_dict().values(), made[1].state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert (made[0].count_LFS > 0).any(-1).all()


def test_compiled_ties_go_to_the_lowest_ids():
    """Equal values, of which two may stay: as in the plain update."""
    tracker = small(F=8, window=1, alpha=0.5, successors=2)
    tracker.update(active({0: 1.0}, {7: 1.0, 3: 1.0, 5: 1.0}), torch.zeros(2, dtype=torch.long))
    assert counts(tracker)[0, 0].nonzero()[:, 0].tolist() == [3, 5]


def test_prior_equals_the_dense_product():
    torch.manual_seed(4)
    F = 20
    tracker = TemporalCorrelationTracker(F, 2, 3, 0.2, 0.05, 6)
    codes, document = random_active(30, 5, F, seed=9), torch.arange(30) // 10
    for _ in range(3):
        tracker.update(codes, document)
    tracker.updates += 4  # rows have an age
    C, z = matrices(tracker), dense(codes, F)
    out, expected = torch.zeros(30, F), torch.zeros(30, F)
    for lagged in history(codes, document, 2):
        tracker.add_prior(out, lagged.rows_n, lagged.past, lagged.lag)
    for t in range(30):
        for lag in (1, 2):
            if t >= lag and document[t] == document[t - lag]:
                expected[t] += z[t - lag] @ C[lag - 1]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_state_is_fixed_in_size_and_small():
    with torch.device("meta"):
        tracker = TemporalCorrelationTracker(16384, window=4, rank=64, successors=64)
    # ids and counts 8 bytes x 4 lags x 16384 x 64; ages and sources 4 + 4 a lag; firings and sums
    # of codes; U, V; s; tokens and the step.
    expected = 8 * 4 * 16384 * 64 + 8 * 4 * 16384 + 8 * 16384
    expected += 2 * 4 * 16384 * 64 + 4 * 4 * 64 + 4 + 8
    assert tracker.nbytes == expected < 256 * 2**20
    assert all(b.numel() < 16384**2 for b in tracker.buffers())
    small_one = small()
    shapes = {name: t.shape for name, t in small_one.state_dict().items()}
    small_one.update(active({0: 1.0}, {1: 1.0}), torch.zeros(2, dtype=torch.long))
    assert {name: t.shape for name, t in small_one.state_dict().items()} == shapes
    again = small()
    again.load_state_dict(small_one.state_dict())
    assert torch.equal(matrices(again), matrices(small_one))


def test_too_many_latents_are_named():
    with pytest.raises(ValueError, match="at most 1048576"), torch.device("meta"):
        TemporalCorrelationTracker(2**20 + 1)
