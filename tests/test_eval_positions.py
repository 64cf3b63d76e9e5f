"""Metrics by position against hand-worked numbers."""

import eval_cases
import pytest
import torch
from eval_cases import Batch, Fake, Store, value

from lab import measures as evals
from lab.measures.fidelity import positions
from tsae.sequences import SequenceContext


class Two:
    """Two sequences of 8 positions: BOS, then one document (0) or two (1, and 2 from position 5)."""

    seq_len = 8

    def n_sequences(self, split):
        return 2

    def batches(self, split, batch_size):
        x = torch.tensor([[9.0, 1, 1, 1, -1, -1, -1, -1], [9.0, 1, 1, 1, -1, -1, -1, -1]])
        doc = torch.tensor([[-1] + 7 * [0], [-1] + 4 * [1] + 3 * [2]])
        boundary = torch.zeros(2, 8, dtype=torch.uint8)
        boundary[:, 0] = boundary[1, 5] = 3
        for b in range(2):
            rows = slice(b, b + 1)
            context = SequenceContext(doc[rows] >= 0, boundary[rows])
            yield Batch(x_BTD=x[rows, :, None], doc_BT=doc[rows], context=context, labels={})


def codes(x, context=None):
    """Right below position 4, half of it from there; a second latent is always on with 2."""
    z = torch.cat([x, torch.full_like(x, 2.0)], 2)
    z[:, 4:, 0] *= 0.5
    return z


def measured(**options):
    sae = Fake(codes, 2, torch.tensor([[1.0], [0.0]]))
    return positions.measure({"sae": sae}, eval_cases.read(Two(), batch=1), None, **options)["sae"]


def test_rows_by_hand():
    # 14 valid tokens, 6 at 1 and 8 at -1: mean -1/7. sse: 0, and 1/4 a token from position 4.
    rows = measured(bins=4).rows
    assert value(rows, "position_fve", "p=0-1") == pytest.approx(1)
    beyond = 1 - 0.25 / (6 / 7) ** 2
    assert value(rows, "position_fve", "p=6-7") == pytest.approx(beyond)
    assert value(rows, "position_gap_fve") == pytest.approx(beyond - 1)
    groups = [r["group"] for r in rows if r["metric"] == "position_fve"]
    assert groups == ["p=0-1", "p=2-3", "p=4-5", "p=6-7"]
    assert [r["n"] for r in rows if r["metric"] == "position_fve"] == [2, 4, 4, 4]


def test_uneven_bins_hold_every_position_once():
    groups = [r["group"] for r in measured(bins=3).rows if r["metric"] == "position_fve"]
    assert groups == ["p=0-2", "p=3-5", "p=6-7"]


def test_documents_have_both_halves_and_give_the_gap():
    found = measured(bins=4)
    table = found.documents.set_index(["doc", "group"])
    assert len(table) == 6 and set(table["metric"]) == {"position_fvu"}
    assert table.loc[(2, "half=first"), ["num", "den"]].tolist() == [0, 0]
    assert table.loc[(1, "half=second"), "num"] == pytest.approx(0.25)
    first, second = (
        found.documents[found.documents["group"] == f"half={h}"].assign(group="all")
        for h in ("first", "second")
    )
    interval = evals.paired_bootstrap(first, second, n_boot=50)
    assert interval.diff == pytest.approx(value(found.rows, "position_gap_fve"))


def test_bins_sum_to_the_whole_and_nulls_are_left_out():
    store = Store(6)
    sae = Fake(lambda x, context=None: x.clamp_min(0.5), 8)
    saes = {"sae": sae, "null": evals.ShuffledNull(sae)}
    tables = eval_cases.measured(saes, store, families=("core", "positions"))
    assert not any(r["metric"].startswith("position") for r in tables["null"].rows)
    documents = tables["sae"].documents
    fvu = documents[documents["metric"] == "position_fvu"]
    assert 1 - fvu["num"].sum() / fvu["den"].sum() == pytest.approx(
        value(tables["sae"].rows, "fve")
    )


@pytest.mark.parametrize("bins", [1, 9])
def test_bad_values_say_what_is_allowed(bins):
    with pytest.raises(ValueError, match=f"bins={bins}"):
        measured(bins=bins)
