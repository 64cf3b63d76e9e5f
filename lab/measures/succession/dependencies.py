"""Pattern detection from codes: which latent stands for which step, and which edges hold between.

A step is matched by where it *begins*: the conjunction of up to ``members`` latents, each above a
threshold of its own, that tells best (F1 on the matching documents) at which tokens that is. Edges
are then measured on other documents, between the matched events, over all latents, and between the
true labels (the ceiling of the analysis itself). Source of the edges: :mod:`lab.measures.succession.events`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from tqdm.auto import tqdm

from lab.measures.succession.chains import pattern_detection
from lab.measures.succession.events import Activity, dependencies, direct
from lab.measures.succession.paths import find_chains
from lab.measures.succession.steps import Match, Read, begins, match, matched_events, read
from lab.measures.succession.unchained import false_discovery
from lab.measures.tokens import Measured, row

LEVEL = 0.05


def rolled(activity: Activity, rng: np.random.Generator) -> Activity:
    """Every column moved in a circle over the whole text by an offset of its own: no edge left."""
    A = activity.active_NF
    n = A.shape[0]
    offset_F = rng.integers(n // 10, n - n // 10, A.shape[1])
    column = np.repeat(np.arange(A.shape[1]), np.diff(A.indptr))
    rows = (A.indices + offset_F[column]) % n
    moved = scipy.sparse.csc_array((A.data, (rows, column)), shape=A.shape)
    return Activity(moved, activity.piece_N)


def calibration(activity: Activity, nulls: int, **options: Any) -> float:
    """Share of ``nulls`` :func:`rolled` texts in which any edge has q ≤ .05."""
    rng = np.random.default_rng(options["seed"])
    found = [dependencies(rolled(activity, rng), **options)["q"] for _ in range(nulls)]
    return float(np.mean([bool((q <= LEVEL).any()) for q in found]))


def detection(
    activity: Activity, ids: Mapping[str, int], chains: Sequence[Any], group: str, **options: Any
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Rows of :func:`pattern_detection` and the significant edges; ``ids``: class → column."""
    found = dependencies(activity, **options)
    kept = direct(found[found["q"] <= LEVEL])
    true = {(e.source, e.target): e for e in chains if e.source in ids and e.target in ids}
    rows = []
    if true:
        rows += [{**r, "group": group} for r in pattern_detection(kept, chains, ids, q=LEVEL)]
    rows.append(row("chain_edges_matched", group, len(true) / len(chains), len(chains)))
    rows.append(row("dependency_tested", group, len(found), activity.active_NF.shape[0]))
    rows.append(row("dependency_found", group, len(kept), len(found)))
    named: dict[int, str] = {}
    for name, column in ids.items():
        named[column] = f"{named[column]}/{name}" if column in named else name
    kept["source_name"] = kept["source"].map(named)
    kept["target_name"] = kept["target"].map(named)
    at = {(ids[a], ids[b]): e for (a, b), e in true.items()}
    pairs = list(zip(kept["source"], kept["target"], strict=True))
    for end in ("lag_min", "lag_max"):
        kept[end] = [getattr(at[p], end) if p in at else -1 for p in pairs]
    return rows, kept.assign(true=kept["lag_min"] > 0, group=group)


def chain_firing(
    events: Activity, columns: list[int], names: list[str], edges: pd.DataFrame, reading: Read
) -> pd.DataFrame:
    """Where the members of the strongest long chain begin in one text: position, token id, member,
    place (its number in the chain) and on, for the document in which most members begin."""
    name_of = dict(zip(columns, names, strict=True))
    chains = find_chains(edges, edges["target"].unique().tolist(), horizon=40, limit=200)
    longest = max(chains, key=lambda c: (len(set(c.latents)), c.flow), default=None)
    if longest is None:
        return pd.DataFrame()
    members = list(dict.fromkeys(longest.latents))
    on_NM = events.active_NF[:, members].toarray()
    per_piece = scipy.sparse.csr_array(
        (np.ones(len(on_NM)), (reading.piece_N, np.arange(len(on_NM))))
    )
    best = int(((per_piece @ on_NM) > 0).sum(1).argmax())
    at = np.flatnonzero(reading.piece_N == best)
    active = np.flatnonzero(on_NM[at].any(1))
    if not len(active):
        return pd.DataFrame()
    at = at[max(0, active[0] - 2) : active[-1] + 3]
    parts = [
        {"position": i, "token": int(reading.tokens_N[n]), "member": name_of[m], "place": j,
         "on": bool(on_NM[n, j])}
        for i, n in enumerate(at)
        for j, m in enumerate(members)
    ]  # fmt: skip
    return pd.DataFrame(parts)


def token_names(
    reading: Read, latents: Iterable[int], to_strings: Any, n: int = 2
) -> dict[int, str]:
    """The ``n`` tokens on which a latent's codes sum highest, joined by "/"."""
    columns, names = reading.values_NF.tocsc(), {}
    for latent in sorted(set(map(int, latents))):
        part = slice(columns.indptr[latent], columns.indptr[latent + 1])
        total = np.bincount(reading.tokens_N[columns.indices[part]], weights=columns.data[part])
        names[latent] = "/".join(to_strings(np.argsort(-total, kind="stable")[:n].tolist()))
    return names


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
    min_f1: float = 0.5,
    longest: int = 12,
    edge_tokens: int = 120_000,
    max_edges: int = 600,
    shifts: int = 400,
    least: int = 0,
    nulls: int = 20,
    everything: bool = True,
    unchained: int = 0,
    kind: str = "domain",
) -> dict[str, Measured]:
    """Edges between matched latents, over all latents, and their calibration; see the module.

    Rows, by group ``labels`` (true classes as codes), ``single`` (one latent a class), ``joint``
    (up to ``members``) and ``matched`` (of ``joint``, the classes with F1 ≥ ``min_f1``):
    ``chain_ap``, ``chain_ap_chance``, ``chain_precision``, ``chain_recall``,
    ``chain_lag_accuracy``, ``chain_edges_matched`` (share of true edges between the group's
    classes); ``dependency_tested``, ``dependency_found`` (edges; group ``all`` is over all
    latents); ``dependency_match_f1`` (mean over classes). Group ``joint``:
    ``dependency_false_discovery``, the share of ``nulls`` texts, in which each event series is
    moved in a circle by an offset of its own, where an edge was found at q ≤ .05.

    ``unchained``: of how many texts without chains :func:`lab.measures.succession.unchained.false_discovery` is
    measured on groups ``labels``, ``joint`` and ``latents`` (where each latent begins); ``kind``: the
    label that exchanged documents share; ``least``: least offset of the null, as in
    :func:`lab.measures.succession.events.dependencies`.

    Matching reads ``limit_tokens`` of the test split, edges ``edge_tokens`` of the train split.
    Table ``edges``: source_name, target_name, source, target, lag, count, C, lift, te, p, q, direct,
    true, lag_min, lag_max, group. Without true chains only ``all`` is measured. SAEs alone:
    a null (``ema``, ``shuffled``) is measured like any other.
    """
    chains = [e for e in world.chains() or [] if e.label == label] if world is not None else []
    options: dict[str, Any] = {"lags": range(1, longest + 1), "seed": seed}
    options |= {"max_edges": max_edges, "shifts": shifts, "least": least}
    reading_false = {"lags": options["lags"], "seed": seed, "least": least}
    out, ceiling = {}, None
    for name, sae in tqdm(saes.items(), desc="dependencies", disable=not progress):
        reading = read(
            sae, store, "train", label if chains else None, edge_tokens, batch_size, device
        )
        rows, tables, firing = [], [], pd.DataFrame()
        found: dict[int, Match] = {}
        if chains:
            classes = store.label_specs[label].classes
            chosen = read(sae, store, "test", label, limit_tokens, batch_size, device)
            if ceiling is None:
                steps = Activity(reading.steps(len(classes)), reading.piece_N)
                ids = {name: i for i, name in enumerate(classes)}
                ceiling = detection(steps, ids, chains, "labels", **options)
                if unchained:
                    kind_N = read(
                        sae, store, "train", kind, edge_tokens, batch_size, device
                    ).label_N
                    false = false_discovery(steps, kind_N, unchained, "labels", **reading_false)
                    ceiling[0].extend(false)
            rows += ceiling[0]
            tables.append(ceiling[1])
            for group, many in (("single", 1), ("joint", members), ("matched", members)):
                if group == "matched":
                    found = {c: m for c, m in found.items() if m.f1 >= min_f1}
                else:
                    found = match(chosen, len(classes), many)
                if len(found) < 2:
                    continue
                f1 = [m.f1 for m in found.values()]
                rows.append(row("dependency_match_f1", group, np.mean(f1), len(f1)))
                events, at = matched_events(reading, found)
                ids = dict(zip((classes[c] for c in found), at, strict=True))
                more, table = detection(events, ids, chains, group, **options)
                rows += more
                tables.append(table)
                if group == "joint":
                    firing = chain_firing(events, at, [classes[c] for c in found], table, reading)
                    if nulls:
                        wrong = calibration(events, nulls, **options)
                        rows.append(row("dependency_false_discovery", group, wrong, nulls))
                    if unchained:
                        rows += false_discovery(events, kind_N, unchained, group, **reading_false)
        if unchained and chains:
            starts = Activity(begins(reading.on(), reading.piece_N), reading.piece_N)
            rows += false_discovery(starts, kind_N, unchained, "latents", **reading_false)
        if everything:
            activity = Activity(begins(reading.on(), reading.piece_N), reading.piece_N)
            edges = dependencies(activity, **options)
            kept = direct(edges[edges["q"] <= LEVEL])
            rows.append(row("dependency_tested", "all", len(edges), len(reading.piece_N)))
            rows.append(row("dependency_found", "all", len(kept), len(edges)))
            ends = [*kept["source"], *kept["target"]]
            names = token_names(reading, ends, world.to_strings) if world is not None else {}
            for end in ("source", "target"):
                kept[f"{end}_name"] = [names.get(int(i), str(i)) for i in kept[end]]
            tables.append(kept.assign(true=False, lag_min=-1, lag_max=-1, group="all"))
        further = {"edges": pd.concat(tables, ignore_index=True)}
        if len(firing):
            words = world.to_strings(firing["token"].tolist())
            further["firing"] = firing.assign(token=words)
        out[name] = Measured(rows, None, further)
    return out
