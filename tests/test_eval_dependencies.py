"""Steps read from conjunctions of latents, edges between them, and what the figures need of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from eval_cases import read

from lab.measures.succession.dependencies import measure
from lab.measures.succession.events import Activity
from lab.measures.succession.steps import Text, match, matched_events
from lab.paper.register import draw
from lab.worlds.base import ChainEdge
from tsae.saes import SequenceContext
from tsae.saes.base import SAEOutput
from tsae.sequences import LabelSpec

STEPS = ("a", "b", "c")


def text(values, label):
    codes = scipy.sparse.csc_array(np.array(values, float))
    n = len(values)
    return Text(Activity(codes, np.zeros(n, int)), np.arange(n), np.array(label))


def test_two_latents_say_together_what_neither_says():
    # Class 0 begins where latents 0 and 1 are both on; each is on as often without the other.
    values = [[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]] * 10
    made = text(values, [0, -1, -1, -1] * 10)
    alone, both = match(made, 1, 1)[0], match(made, 1, 2)[0]
    assert alone.f1 == pytest.approx(2 / 3)  # 10 of 20 onsets: 2 · 10 / (20 + 10)
    assert (both.f1, sorted(both.latents)) == (1.0, [0, 1])
    assert match(made, 1, 1, min_count=11) == {}
    activity, columns = matched_events(made, {0: both, 5: both})
    assert columns == {0: 0, 5: 0} and activity.active_NF.shape == (40, 1)  # one event, two names
    assert np.flatnonzero(activity.active_NF.toarray()[:, 0]).tolist() == list(range(0, 40, 4))


def test_a_threshold_belongs_to_the_match():
    # Latent 0 is weakly on everywhere and strongly on where the class begins.
    made = text([[4.0 if t % 4 == 0 else 1.0] for t in range(80)], [0, -1, -1, -1] * 20)
    found = match(made, 1, 1)[0]
    assert found.f1 == 1.0 and 1.0 <= found.thresholds[0] < 4.0


class Store:
    """a → b after 3 tokens and b → c after 2, over documents of random tokens."""

    label_specs = {"step": LabelSpec("step", "token", STEPS)}

    def n_sequences(self, split):
        return 64

    def batches(self, split, batch_size):
        rng = np.random.default_rng(["train", "test", "validation"].index(split))
        for _ in range(8):
            step = np.full((8, 41), -1)
            for b in range(8):
                for start in (2, 14, 26):
                    start += rng.integers(0, 4)
                    if rng.random() < 0.7:
                        step[b, start], step[b, start + 3], step[b, start + 5] = 0, 1, 2
                    else:
                        step[b, start + rng.integers(0, 6)] = rng.integers(0, 3)
            mask = torch.ones(8, 41, dtype=torch.bool)
            mask[:, 0] = False
            boundary = torch.zeros(8, 41, dtype=torch.uint8)
            boundary[:, :2] = 3
            batch = SimpleNamespace(
                x_BTD=torch.from_numpy(step)[..., None].float(),
                tokens_BT=torch.from_numpy(step) + 1,
                doc_BT=torch.zeros(8, 41, dtype=torch.long),
                context=SequenceContext(mask, boundary),
                labels={"step": torch.from_numpy(step).to(torch.int16)},
            )
            batch.to = lambda device, batch=batch: batch
            yield batch


class World:
    """The arrows of :class:`Store`."""

    def chains(self):
        return [ChainEdge("step", "a", "b", 3, 3, 1.0), ChainEdge("step", "b", "c", 2, 2, 1.0)]

    def to_strings(self, ids):
        return [("-", *STEPS)[i] for i in ids]


class Codes:
    """Latents 0–2 tell step i only together with latent 3, which is on at every step."""

    def encode(self, x_BTD, context):
        step_BT = x_BTD[..., 0].long()
        own = (step_BT[..., None] == torch.arange(3)).float()
        lure = (step_BT[..., None] == -1).float() * (torch.arange(41) % 5 == 0)[None, :, None]
        return torch.cat([own + lure, (step_BT >= 0).float()[..., None]], -1)

    def __call__(self, x_BTD, context):
        return SAEOutput(x_BTD, self.encode(x_BTD, context), None, {})


def test_edges_are_found_from_conjunctions_with_their_lags():
    options = {"longest": 6, "edge_tokens": 3000, "shifts": 200}
    found = measure({"s": Codes()}, read(Store(), choose=2000, batch=8), World(), **options)["s"]
    value = {(r["metric"], r["group"]): r["value"] for r in found.rows}
    for group in ("labels", "joint"):
        # Steps that are read without an error give what the true labels give.
        assert value["chain_ap", group] == value["chain_ap", "labels"] > 0.5
        assert value["chain_recall", group] == value["chain_lag_accuracy", group] == 1.0
    edges = found.tables["edges"]
    joint = edges[(edges["group"] == "joint") & edges["true"]]
    assert {(r.source_name, r.target_name, r.lag) for r in joint.itertuples()} >= {
        ("a", "b", 3),
        ("b", "c", 2),
    }
    assert set(edges["group"]) == {"labels", "joint"}  # one latent alone has no edge
    assert set(found.tables) == {"edges"}
    keys = {"world": "microworld", "variant": "topk", "act": "topk", "seed": 0, "ablation": ""}
    tables = {name: table.assign(**keys) for name, table in found.tables.items()}
    assert draw("chain_graph", True, edges=tables["edges"]).axes


def test_without_arrows_all_latents_are_asked():
    """As on a real model: edges between latents alone, named by their tokens."""
    world = World()
    world.chains = lambda: None
    options = {"longest": 6, "edge_tokens": 3000, "shifts": 200}
    found = measure({"s": Codes()}, read(Store(), choose=2000, batch=8), world, **options)["s"]
    (row,) = found.rows
    edges = found.tables["edges"]
    assert (row["metric"], row["value"]) == ("dependency_found", len(edges)) and len(edges) > 0
    assert set(edges["group"]) == {"all"} and not edges["true"].any()
    assert {name.rsplit(" ", 1)[1] for name in edges["source_name"]} <= {f"({i})" for i in range(4)}
