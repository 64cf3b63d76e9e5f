"""Pattern detection from codes: which latents stand for which step, and which edges hold between.

A step is matched by where it *begins*: the conjunction of up to ``members`` latents, each above a
threshold of its own, that tells best at which tokens that is. Edges (of
:mod:`lab.measures.succession.edges`) are then measured on other documents, between the matched
events, over all latents, and between the true labels, the ceiling of the analysis itself.
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
    Text,
    arrows,
    match,
    matched_events,
    pattern_detection,
    read,
)
from lab.worlds.base import ChainEdge, World


def found_edges(activity: Activity, **options: Any) -> tuple[pd.DataFrame, int]:
    """The significant edges with ``direct``, and how many were tested."""
    table = dependencies(activity, **options)
    return direct(table[table["q"] <= LEVEL]), len(table)


def named(
    kept: pd.DataFrame, columns: Mapping[str, int], chains: Iterable[ChainEdge]
) -> pd.DataFrame:
    """``kept`` with the classes of both ends (``a/b`` where two share an event), and whether an
    arrow is true, with its lags (−1 where it is not)."""
    names: dict[int, str] = {}
    for name, column in columns.items():
        names[column] = f"{names[column]}/{name}" if column in names else name
    at = {(columns.get(e.source), columns.get(e.target)): e for e in chains}
    true = [at.get(pair) for pair in zip(kept["source"], kept["target"], strict=True)]
    return kept.assign(
        source_name=kept["source"].map(names),
        target_name=kept["target"].map(names),
        lag_min=[e.lag_min if e else -1 for e in true],
        lag_max=[e.lag_max if e else -1 for e in true],
        true=[e is not None for e in true],
    )


def token_names(text: Text, latents: Iterable[int], to_strings: Any, n: int = 2) -> dict[int, str]:
    """The ``n`` tokens on which a latent's codes sum highest, joined by "/"."""
    codes, names = text.codes.active_NF, {}
    for latent in sorted(set(map(int, latents))):
        part = slice(codes.indptr[latent], codes.indptr[latent + 1])
        total = np.bincount(text.id_N[codes.indices[part]], weights=codes.data[part])
        names[latent] = "/".join(to_strings(np.argsort(-total, kind="stable")[:n].tolist()))
    return names


@register("dependencies")
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    label: str = "step",
    members: int = 3,
    longest: int = 12,
    edge_tokens: int = 120_000,
    max_edges: int = 600,
    shifts: int = 400,
    everything: bool = True,
    unchained: int = 0,
    kind: str = "domain",
) -> dict[str, Measured]:
    """Edges between matched latents and over all latents; see the module.

    Rows, by group ``labels`` (true classes as codes), ``single`` (one latent a class) and ``joint``
    (up to ``members``): those of :func:`pattern_detection`, over all of the world's arrows;
    ``dependency_match_f1`` (mean over classes matched). ``dependency_tested``,
    ``dependency_found``: edges, group ``all`` over all latents. ``unchained``: of how many texts
    without chains :func:`false_discovery` is measured, on groups ``labels``, ``joint`` and
    ``latents`` (where each latent begins); ``kind``: the label that
    exchanged documents share, here and in the null, where the store has it.

    Steps are matched on validation, or on test in a store that has none; edges are measured on
    ``edge_tokens`` of the train split. Table ``edges``: source_name, target_name, source, target,
    lag, C, te, p, q, direct, true, lag_min, lag_max, group. Without true arrows only ``all``.
    """
    chains, out = arrows(world, label), {}
    lags, seed = range(1, longest + 1), reading.seed
    options: dict[str, Any] = {"lags": lags, "seed": seed, "max_edges": max_edges, "shifts": shifts}
    for name, sae in saes.items():
        text = read(sae, reading, "train", label if chains else None, edge_tokens)
        starts = text.codes.begins()
        if kind in reading.store.label_specs:
            options["kind_N"] = read(sae, reading, "train", kind, edge_tokens).label_N
        rows, tables = [], []
        if chains:
            classes = reading.store.label_specs[label].classes
            split = "test" if reading.choices == "train" else reading.choices
            chosen = read(sae, reading, split, label)
            groups: dict[str, tuple[Activity, dict[str, int]]]
            groups = {"labels": (text.steps(len(classes)), {c: i for i, c in enumerate(classes)})}
            for group, many in (("single", 1), ("joint", members)):
                matches = match(chosen, len(classes), many)
                if not matches:
                    continue
                f1 = np.mean([m.f1 for m in matches.values()])
                rows.append(row("dependency_match_f1", group, f1, len(matches)))
                events, at = matched_events(text, matches)
                groups[group] = events, {classes[c]: column for c, column in at.items()}
            for group, (events, columns) in groups.items():
                kept, _ = found_edges(events, **options)
                kept = named(kept, columns, chains)
                firm = kept[kept["direct"]]
                detected = pattern_detection(firm, chains, columns, classes)
                rows += [{**r, "group": group} for r in detected]
                tables.append(kept.assign(group=group))
            if unchained:
                groups["latents"] = starts, {}
                for group, (activity, _) in groups.items():
                    if group == "single":
                        continue
                    rows += false_discovery(
                        activity, options["kind_N"], unchained, group, lags, seed
                    )
        if everything:
            kept, tested = found_edges(starts, **options)
            rows.append(row("dependency_tested", "all", tested, len(text.id_N)))
            rows.append(row("dependency_found", "all", len(kept), tested))
            ends = [*kept["source"], *kept["target"]]
            names = token_names(text, ends, world.to_strings) if world is not None else {}
            for end in ("source", "target"):
                kept[f"{end}_name"] = [names.get(int(i), str(i)) for i in kept[end]]
            tables.append(kept.assign(true=False, lag_min=-1, lag_max=-1, group="all"))
        edges = {"edges": pd.concat(tables, ignore_index=True)} if tables else {}
        out[name] = Measured(rows, None, edges)
    return out
