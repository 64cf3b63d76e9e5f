"""What a tracker's own C says of the true arrows, beside what is known without learning.

Without feedback an SAE's codes do not depend on its tracker, so one trained SAE serves all
settings: each gets a fresh tracker that reads the same text in the same order; ``own`` is the one
with which a ``causal`` SAE was trained. Steps are matched to conjunctions of latents on other
documents; the strength of a pair of steps at a lag is the mean of C_ℓ[j→i] over the members j of
the one and i of the other. Only lags up to the window can be read; true arrows span up to 12 tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.succession.events import Activity, exchanged, shuffled
from lab.measures.succession.steps import Match, arrows, match, pattern_detection, read
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
METRICS = {
    "chain_ap": "tracker_ap",
    "chain_ap_chance": "tracker_ap_chance",
    "chain_recall": "tracker_recall",
    "chain_lag_accuracy": "tracker_lag_accuracy",
}


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


def batches(codes: Activity, slots: int, tokens: int = 1024) -> Iterator[tuple[Active, Tensor]]:
    """The text in parts: its strongest codes, and each token's document."""
    values_NF, document_N = codes.active_NF.tocsr(), torch.from_numpy(codes.piece_N)
    for first in range(0, len(document_N), tokens):
        part = torch.from_numpy(values_NF[first : first + tokens].toarray()).float()
        yield strongest(part, slots), document_N[first : first + tokens]


def trained(
    codes: Activity, slots: int, seed: int, lr: float, **setting: Any
) -> TemporalCorrelationTracker:
    """A fresh tracker of :data:`BASE` and ``setting`` that has read the text."""
    options = {**BASE, **setting}
    learning = options.pop("learning")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tracker = TemporalCorrelationTracker(codes.active_NF.shape[1], **options)
        return track(tracker, batches(codes, slots), lr=lr, learning=learning)


def false_discovery(
    codes: Activity,
    kind_N: np.ndarray,
    found: Mapping[int, Match],
    texts: int,
    fit: Any,
    rng: np.random.Generator,
) -> tuple[float, list[dict[str, Any]]]:
    """The C that one exchanged text in twenty exceeds, and how often other texts do.

    Rows ``tracker_false_texts``, groups shuffled and exchanged: the share of ``texts`` in which a
    pair of steps, all of one's latents in the one half and all of the other's in the other, has a
    larger C. The threshold is the .95 quantile of the largest C over ``2 texts`` of their own.
    """
    mean_KF = mean_over(found, codes.active_NF.shape[1])

    def largest(name: str) -> float:
        moved_F = rng.permutation(mean_KF.shape[1]) % 2 == 0
        text = shuffled(codes, rng)
        if name == "exchanged":
            text, _ = exchanged(codes, kind_N, moved_F, rng)
        share_K = mean_KF @ moved_F.astype(float)
        table = between_steps(fit(text), mean_KF)
        ends = share_K[table["source"]] + 2 * share_K[table["target"]]
        apart = np.isclose(ends, 1) | np.isclose(ends, 2)
        half = np.isclose(share_K, 0.5)[table["source"]] | np.isclose(share_K, 0.5)[table["target"]]
        return float(table["C"][apart & ~half].max()) if (apart & ~half).any() else 0.0

    reached = [largest("exchanged") for _ in range(2 * texts)]
    threshold = float(np.quantile(reached, 0.95, method="higher"))
    rows = []
    for name in ("shuffled", "exchanged"):
        false = np.mean([largest(name) > threshold for _ in range(texts)])
        rows.append(row("tracker_false_texts", name, false, texts))
    return threshold, rows


@register("tracking")
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    label: str = "step",
    kind: str = "domain",
    members: int = 3,
    track_tokens: int = 240_000,
    lr: float = 0.003,
    settings: Sequence[Mapping[str, Any]] = SETTINGS,
    unchained: int = 0,
) -> dict[str, Measured]:
    """Rows by group = setting (``base``, ``window=2``, …, ``own``): ``tracker_ap`` (average
    precision of the true pairs ranked by C), ``tracker_ap_chance``, ``tracker_recall`` (true pairs
    with C > 0), ``tracker_lag_accuracy`` (of those, the share whose strongest lag is right) and
    ``tracker_mib``, the memory of the tracker.

    ``unchained``: texts of :func:`false_discovery`, with which come ``tracker_firm_recall`` and
    ``tracker_firm_precision``, of the pairs above its threshold. Steps are matched on validation,
    or on test in a store that has none; trackers read ``track_tokens`` of the train split. Nothing
    is measured in a world without true arrows.
    """
    chains = arrows(world, label)
    if not chains:
        return {}
    classes, out = reading.store.label_specs[label].classes, {}
    split = "test" if reading.choices == "train" else reading.choices
    for key, sae in saes.items():
        found = match(read(sae, reading, split, label), len(classes), members)
        if not found:
            continue
        columns = {classes[c]: place for place, c in enumerate(found)}
        text = read(sae, reading, "train", kind if unchained else None, track_tokens)
        codes, mean_KF = text.codes, mean_over(found, sae.cfg.d_sae)
        slots = min(int(np.diff(codes.active_NF.tocsr().indptr).max()), 2 * sae.cfg.k)
        fit: dict[str, Any] = {"slots": max(1, sae.cfg.k // 2), "seed": reading.seed, "lr": lr}
        rows, whole = [], None
        for setting in tqdm(settings, desc=f"trackers of {key}", disable=not reading.progress):
            group = ", ".join(f"{name}={value}" for name, value in setting.items()) or "base"
            if setting.get("learning") == "rates":
                rate_K = mean_KF @ (codes.active_NF > 0).mean(0)
                source, target = np.nonzero(np.ones((len(rate_K), len(rate_K))))
                rates = {"source": source, "target": target, "lag": 1}
                table = pd.DataFrame({**rates, "C": rate_K[source] * rate_K[target]})
            else:
                asked = {**setting, "slots": slots} if "slots" in setting else setting
                tracker = trained(codes, **{**fit, **asked})
                table = between_steps(tracker, mean_KF)
                rows.append(row("tracker_mib", group, tracker.nbytes / 2**20, 1))
            whole = table if group == "base" else whole
            rows += detected(table, chains, columns, classes, group)
        if hasattr(sae, "tracker"):
            rows += detected(between_steps(sae.tracker, mean_KF), chains, columns, classes, "own")
        if unchained and whole is not None:
            threshold, more = false_discovery(
                codes, text.label_N, found, unchained,
                lambda changed, fit=fit: trained(changed, **fit), np.random.default_rng(reading.seed),
            )  # fmt: skip
            firm = pattern_detection(
                whole[whole["C"] > threshold], chains, columns, classes, score="C"
            )
            firm = [
                row(f"tracker_firm_{r['metric'][6:]}", "base", r["value"], r["n"])
                for r in firm
                if r["metric"] in ("chain_recall", "chain_precision")
            ]
            rows += [*more, *firm]
        out[key] = Measured(rows)
    return out


def detected(
    table: pd.DataFrame, chains: Any, columns: Mapping[str, int], classes: Any, group: str
) -> list[dict[str, Any]]:
    """Rows of :func:`pattern_detection` by C under the names of :data:`METRICS`."""
    return [
        row(METRICS[r["metric"]], group, r["value"], r["n"])
        for r in pattern_detection(table, chains, columns, classes, score="C")
        if r["metric"] in METRICS
    ]
