"""Pattern detection from codes: which latents stand for which step, and which edges hold between.

A step is matched by where it *begins*: the conjunction of up to :data:`MEMBERS` latents, each above
a threshold of its own, that tells best at which tokens that is. Edges (of
:mod:`lab.measures.succession.edges`) are then measured on other documents, between the matched
events and between the true labels, the ceiling of the analysis itself; in a world without true
arrows, between all latents.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.succession.edges import LEVEL, dependencies, direct, false_discovery
from lab.measures.succession.events import Activity
from lab.measures.succession.steps import (
    KIND,
    LABEL,
    MEMBERS,
    Text,
    arrows,
    match,
    matched_events,
    matching_split,
    pattern_detection,
    read,
)
from lab.worlds.base import ChainEdge, World

Group = tuple[Activity, dict[str, int]]
"""Events, and the column of each class among them."""
MAX_EDGES = 600


def named(
    kept: pd.DataFrame, columns: Mapping[str, int], chains: Iterable[ChainEdge]
) -> pd.DataFrame:
    """``kept`` with the classes of both ends (``a/b`` where two share an event), and whether an
    arrow is true."""
    names: dict[int, str] = {}
    for name, column in columns.items():
        names[column] = f"{names[column]}/{name}" if column in names else name
    known = {(columns.get(e.source), columns.get(e.target)) for e in chains}
    ends = {f"{end}_name": kept[end].map(names) for end in ("source", "target")}
    true = [pair in known for pair in zip(kept["source"], kept["target"], strict=True)]
    return kept.assign(**ends, true=true)


def token_names(text: Text, latents: Iterable[int], to_strings: Any, n: int = 2) -> dict[str, int]:
    """Each latent by the ``n`` tokens on which its codes sum highest, joined by "/", and its id."""
    codes, names = text.codes.active_NF, {}
    for latent in sorted(set(map(int, latents))):
        part = slice(codes.indptr[latent], codes.indptr[latent + 1])
        total = np.bincount(text.id_N[codes.indices[part]], weights=codes.data[part])
        tokens = to_strings(np.argsort(-total, kind="stable")[:n].tolist())
        names[f"{'/'.join(tokens)} ({latent})"] = latent
    return names


@register("dependencies")
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    longest: int = 12,
    edge_tokens: int = 120_000,
    shifts: int = 400,
    unchained: int = 0,
) -> dict[str, Measured]:
    """Edges between matched latents, or over all latents; see the module.

    Rows, by group ``labels`` (true classes as codes), ``single`` (one latent a class) and ``joint``
    (up to :data:`MEMBERS`): those of :func:`pattern_detection`, over all of the world's arrows;
    without arrows ``dependency_found``, group ``all``: edges found of those tested. ``unchained``:
    of how many texts without chains :func:`false_discovery` is measured, on every group but
    ``single`` and on ``latents`` (where each latent begins).

    Steps are matched on validation, or on test in a store that has none; edges of up to ``longest``
    tokens are measured on ``edge_tokens`` of the train split, against ``shifts`` shifts and
    documents of the same kind, where the store has it. Table ``edges``: source_name, target_name,
    source, target, lag, C, te, p, q, direct, true, group.
    """
    chains, specs, out = arrows(world), reading.store.label_specs, {}
    lags, seed = range(1, longest + 1), reading.seed
    for name, sae in saes.items():
        text = read(sae, reading, "train", LABEL if chains else None, edge_tokens)
        starts = text.codes.begins()
        kind_N = np.zeros(len(text.id_N), int)
        if KIND in specs:
            kind_N = read(sae, reading, "train", KIND, edge_tokens).label_N
        groups: dict[str, Group] = {"all": (starts, {})}
        if chains:
            classes = specs[LABEL].classes
            chosen = read(sae, reading, matching_split(reading), LABEL)
            groups = {"labels": (text.steps(len(classes)), {c: i for i, c in enumerate(classes)})}
            for group, many in (("single", 1), ("joint", MEMBERS)):
                if matches := match(chosen, len(classes), many):
                    events, at = matched_events(text, matches)
                    groups[group] = events, {classes[c]: column for c, column in at.items()}
        rows, tables = [], []
        for group, (events, columns) in groups.items():
            table = dependencies(
                events, lags=lags, kind_N=kind_N, max_edges=MAX_EDGES, shifts=shifts, seed=seed
            )
            kept = direct(table[table["q"] <= LEVEL])
            if group == "all":
                rows.append(row("dependency_found", group, len(kept), len(table)))
                if world is not None:
                    ends = [*kept["source"], *kept["target"]]
                    columns = token_names(text, ends, world.to_strings)
            kept = named(kept, columns, chains)
            tables.append(kept.assign(group=group))
            if chains:
                firm = pattern_detection(kept[kept["direct"]], chains, columns, classes)
                rows += [{**r, "group": group} for r in firm]
        if unchained:
            for group, (events, _) in (groups | {"latents": (starts, {})}).items():
                if group not in ("single", "all"):
                    rows += false_discovery(events, kind_N, unchained, group, lags, seed)
        out[name] = Measured(rows, None, {"edges": pd.concat(tables, ignore_index=True)})
    return out
