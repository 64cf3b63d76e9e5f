"""What a tracker's own C says of the true arrows, beside what is known without learning.

Without feedback an SAE's codes do not depend on its tracker, so one trained SAE serves all
settings: each gets a fresh tracker that reads the same text in the same order; ``own`` is the one
with which a ``causal`` SAE was trained. Steps are matched to conjunctions of latents on other
documents; the strength of a pair of steps at a lag is the mean of C_ℓ[j→i] over the members j of
the one and i of the other. Only lags up to the window can be read; true arrows span up to 12 tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.succession.events import Activity
from lab.measures.succession.steps import (
    LABEL,
    MEMBERS,
    Match,
    arrows,
    match,
    matching_split,
    pattern_detection,
    read,
)
from lab.worlds.base import World
from tsae.tracking import Active, TemporalCorrelationTracker, strongest, track

BASE = {"window": 8, "rank": 64, "alpha": 0.005, "tau": 0.1, "bits": 8, "learning": "logistic"}
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"learning": "norm"},
    {"learning": "rates"},
    {"slots": "all"},
    {"slots": "all", "learning": "norm"},
    *({"window": w} for w in (2, 4, 12)),
    *({"rank": rank} for rank in (16, 32)),
    {"alpha": 0.02},
    {"tau": 1.0},
    {"bits": 32},
)
"""What is changed of :data:`BASE`, one setting each. ``norm`` learns nothing, so that its C is the
counted log-lift; ``rates``: no C at all, but how often both are active. ``slots``: a token's
strongest k / 2 codes are read, or all."""
LR = 0.003


def mean_over(found: Mapping[int, Match], n_latents: int) -> scipy.sparse.csr_array:
    """[K, F] rows of 1 / members, so that M C Mᵀ is the mean over the members of two steps."""
    members = [m.latents for m in found.values()]
    at = np.repeat(np.arange(len(members)), [len(m) for m in members])
    share = np.concatenate([np.full(len(m), 1 / len(m)) for m in members])
    return scipy.sparse.csr_array((share, (at, np.concatenate(members))), (len(members), n_latents))


def between_steps(
    tracker: TemporalCorrelationTracker, mean_KF: scipy.sparse.csr_array
) -> pd.DataFrame:
    """Columns source, target (rows of ``mean_KF``), lag and C, for C above 0."""
    frames = []
    for lag in range(1, tracker.window + 1):
        C = (mean_KF @ tracker.matrix(lag) @ mean_KF.T).tocoo()
        columns = {"source": C.row, "target": C.col, "lag": lag, "C": C.data}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def trained(codes: Activity, slots: int, seed: int, **setting: Any) -> TemporalCorrelationTracker:
    """A fresh tracker of :data:`BASE` and ``setting`` that has read each token's strongest codes."""
    options = {**BASE, **setting}
    learning = options.pop("learning")
    values_NF, document_N = codes.active_NF.tocsr(), torch.from_numpy(codes.piece_N)

    def parts(tokens: int = 1024) -> Iterator[tuple[Active, Tensor]]:
        for first in range(0, len(document_N), tokens):
            part = torch.from_numpy(values_NF[first : first + tokens].toarray()).float()
            yield strongest(part, slots), document_N[first : first + tokens]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tracker = TemporalCorrelationTracker(codes.active_NF.shape[1], **options)
        return track(tracker, parts(), lr=LR, learning=learning)


@register("tracking")
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    track_tokens: int = 240_000,
    settings: Sequence[Mapping[str, Any]] = SETTINGS,
) -> dict[str, Measured]:
    """Rows by group = setting (``base``, ``window=2``, …, ``own``): ``tracker_ap`` (average
    precision of the true pairs ranked by C), ``tracker_ap_chance``, ``tracker_recall`` (true pairs
    with C > 0), ``tracker_lag_accuracy`` (of those, the share whose strongest lag is right) and
    ``tracker_mib``, the memory of the tracker.

    Trackers read ``track_tokens`` of the train split. Nothing is measured in a world without true
    arrows.
    """
    chains, out = arrows(world), {}
    for key, sae in saes.items() if chains else ():
        classes = reading.store.label_specs[LABEL].classes
        found = match(read(sae, reading, matching_split(reading), LABEL), len(classes), MEMBERS)
        if not found:
            continue
        columns = {classes[c]: place for place, c in enumerate(found)}
        text = read(sae, reading, "train", None, track_tokens)
        codes, mean_KF = text.codes, mean_over(found, sae.cfg.d_sae)
        slots = min(int(np.diff(codes.active_NF.tocsr().indptr).max()), 2 * sae.cfg.k)
        fit = partial(trained, slots=max(1, sae.cfg.k // 2), seed=reading.seed)
        rows, tables = [], dict[str, pd.DataFrame]()
        for setting in tqdm(settings, desc=f"trackers of {key}", disable=not reading.progress):
            group = ", ".join(f"{name}={value}" for name, value in setting.items()) or "base"
            if setting.get("learning") == "rates":
                rate_K = mean_KF @ (codes.active_NF > 0).mean(0)
                source, target = np.nonzero(np.ones((len(rate_K), len(rate_K))))
                ends = {"source": source, "target": target, "lag": 1}
                tables[group] = pd.DataFrame({**ends, "C": rate_K[source] * rate_K[target]})
                continue
            tracker = fit(codes, **{**setting, **({"slots": slots} if "slots" in setting else {})})
            tables[group] = between_steps(tracker, mean_KF)
            rows.append(row("tracker_mib", group, tracker.nbytes / 2**20, 1))
        if hasattr(sae, "tracker"):
            tables["own"] = between_steps(sae.tracker, mean_KF)
        truth = chains, columns, classes
        for group, table in tables.items():
            rows += detected(table, truth, group, ("ap", "ap_chance", "recall", "lag_accuracy"))
        out[key] = Measured(rows)
    return out


def detected(
    table: pd.DataFrame, truth: Any, group: str, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows ``tracker_…`` of those of :func:`pattern_detection` by C that are named."""
    chains, columns, classes = truth
    found = {r["metric"]: r for r in pattern_detection(table, chains, columns, classes, "C")}
    rows = {name: found[f"chain_{name}"] for name in names}
    return [row(f"tracker_{n}", group, r["value"], r["n"]) for n, r in rows.items()]
