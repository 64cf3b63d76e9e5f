"""What a tracker's own C says of the true chains, for several settings over the same codes.

Without feedback an SAE's codes do not depend on its tracker, so one trained SAE serves all
settings: each gets a fresh tracker that reads the same text in the same order. Steps are matched to
conjunctions of latents on other documents (:mod:`lab.measures.succession.steps`); the strength of a pair of
steps at a lag is the mean of C_ℓ[j→i] over the members j of the one and i of the other. Only lags
up to the tracker's window can be read, while true arrows span up to 12 tokens.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from tqdm.auto import tqdm

from lab.edits.following import kept_codes
from lab.edits.ranking import Text
from lab.measures.succession.chains import pattern_detection
from lab.measures.succession.steps import Match, match, read
from lab.measures.tokens import Measured, row
from tsae.tracking import TemporalCorrelationTracker, track

BASE = {"window": 8, "rank": 64, "alpha": 0.005, "tau": 0.1, "bits": 8, "learning": "logistic"}
SETTINGS: tuple[dict[str, Any], ...] = (
    *({"window": w} for w in (2, 4, 12)),
    *({"alpha": alpha} for alpha in (0.02,)),
    *({"tau": tau} for tau in (0.5, 1.0)),
    *({"rank": rank} for rank in (16, 32)),
    {"bits": 32},
    {"learning": "norm"},
)
"""What is changed of :data:`BASE`, one setting each."""


def between_steps(
    tracker: TemporalCorrelationTracker, found: Mapping[int, Match], rate_F: np.ndarray
) -> pd.DataFrame:
    """Columns source, target (places in ``found``), lag, C and lift, for C above 0.

    ``rate_F``: the share of tokens at which each latent is active; lift divides C by the members'.
    """
    members = [m.latents for m in found.values()]
    at = np.repeat(np.arange(len(members)), [len(m) for m in members])
    share = np.concatenate([np.full(len(m), 1 / len(m)) for m in members])
    columns = np.concatenate(members)
    shape = (len(members), tracker.n_latents)
    mean_KF = scipy.sparse.csr_array((share, (at, columns)), shape)
    rate_K = np.maximum(mean_KF @ rate_F, 1e-9)
    frames = []
    for lag in range(1, tracker.window + 1):
        C = (mean_KF @ tracker.matrix(lag) @ mean_KF.T).tocoo()
        frames.append(
            pd.DataFrame(
                {"source": C.row, "target": C.col, "lag": lag, "C": C.data,
                 "lift": C.data / rate_K[C.col]}
            )
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def named(setting: Mapping[str, Any]) -> str:
    """``alpha=0.05``; base for none."""
    return ", ".join(f"{key}={value}" for key, value in setting.items()) or "base"


def measure(
    saes: Mapping[str, Any],
    store: Any,
    world: Any,
    *,
    limit_tokens: int,
    selection_tokens: int,
    batch_size: int,
    seed: int,
    device: str,
    progress: bool,
    label: str = "step",
    members: int = 3,
    track_tokens: int = 240_000,
    lr: float = 0.03,
    settings: Iterable[Mapping[str, Any]] = ({}, *SETTINGS),
) -> dict[str, Measured]:
    """Rows by group = setting (``base``, ``window=2``, …): ``tracker_ap`` (average precision of
    the true pairs ranked by C), ``tracker_lift_ap`` (by C over the target's rate),
    ``tracker_lag_accuracy`` and ``tracker_lift_lag_accuracy`` (of the true pairs with C > 0, the
    share whose strongest lag is right), ``tracker_recall`` (true pairs with C > 0),
    ``tracker_ap_chance``, and ``tracker_mib``, the memory of C and W.

    Steps are matched on ``limit_tokens`` of the test split, trackers read ``track_tokens`` of the
    train split. Nothing is measured in a world without true chains.
    """
    chains = [e for e in world.chains() or [] if e.label == label] if world is not None else []
    if not chains:
        return {}
    classes, out = store.label_specs[label].classes, {}
    for key, sae in saes.items():
        chosen = read(sae, store, "test", label, limit_tokens, batch_size, device)
        found = match(chosen, len(classes), members)
        ids = {classes[c]: place for place, c in enumerate(found)}
        rate_F = (chosen.values_NF > 0).mean(0)
        codes, seen = [], 0
        for batch in store.batches("train", batch_size):
            batch = batch.to(device)
            codes.append(kept_codes(sae, Text(batch.x_BTD, batch.context, batch.context.mask_BT)))
            seen += int(batch.context.mask_BT.sum())
            if seen >= track_tokens:
                break
        rows = []
        for setting in tqdm(list(settings), desc=f"trackers of {key}", disable=not progress):
            options = {**BASE, **setting}
            learning = options.pop("learning")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                tracker = TemporalCorrelationTracker(sae.cfg.d_sae, **options)
                track(tracker.to(device), codes, lr=lr, learning=learning)
            table = between_steps(tracker, found, np.asarray(rate_F).ravel()).assign(q=0.0)
            group = named(setting)
            wanted = {
                "C": {"chain_ap": "tracker_ap", "chain_ap_chance": "tracker_ap_chance",
                      "chain_recall": "tracker_recall",
                      "chain_lag_accuracy": "tracker_lag_accuracy"},
                "lift": {"chain_ap": "tracker_lift_ap",
                         "chain_lag_accuracy": "tracker_lift_lag_accuracy"},
            }  # fmt: skip
            for score, names in wanted.items():
                for r in pattern_detection(table, chains, ids, score=score):
                    if r["metric"] in names:
                        rows.append(row(names[r["metric"]], group, r["value"], r["n"]))
            rows.append(row("tracker_mib", group, tracker.nbytes / 2**20, 1))
        out[key] = Measured(rows)
    return out
