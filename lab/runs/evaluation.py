"""Evaluation and ablation of trained dictionaries, as tidy tables."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lab import measures
from lab.measures.reading import Sizes
from lab.results.rows import label_rows
from lab.runs.matched import match_own
from lab.runs.setting import Setting
from tsae.saes import SAE
from tsae.training.runs import keys_of, run_training


def run_evaluation(
    setting: Setting,
    found: Mapping[str, SAE],
    *,
    nulls: bool = True,
    null_window: int = 8,
    match: bool = False,
    match_tokens: int = 30_000,
    families: Sequence[str] | None = None,
    family_options: Mapping[str, Mapping[str, Any]] | None = None,
    limit_tokens: int = Sizes.test,
    selection_tokens: int = Sizes.choose,
    splice_tokens: int = Sizes.splice,
    n_context_sequences: int = Sizes.sequences,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """``results``, ``documents`` and ``dwell`` of several SAEs and, with ``nulls``, of ``shuffled``
    of every temporal one that is no ablation.

    ``match``: bring each SAE to the L0 of its own k on ``match_tokens`` training tokens first (see
    :mod:`lab.runs.matched`). A row a run of metric ``l0_as_trained`` then tells how: its group is
    how, its value the L0 before.
    """
    found = {label: sae.to(device) for label, sae in found.items()}
    matches = {}
    if match:
        matches = {k: match_own(sae, setting.store, match_tokens) for k, sae in found.items()}
        found = {label: made.sae for label, made in matches.items()}
    whole = {k: sae for k, sae in found.items() if nulls and not sae.meta.get("ablation")}
    everything = {**found, **shuffled(whole, null_window)}
    sizes = Sizes(limit_tokens, selection_tokens, splice_tokens, n_context_sequences)
    reading = measures.Reading(setting.store, sizes, device=device, progress=progress)
    tables = measures.measure(
        everything, reading, setting.world, families=families or (), options=family_options
    )
    for label, made in matches.items():
        said = {"metric": "l0_as_trained", "group": made.how, "value": made.before}
        tables[label].rows.append({**said, "n": match_tokens, "reading": "own"})
    return join(everything, tables) | {"heatmap": heatmap_rows(setting, found, tables)}


def run_ablations(
    setting: Setting,
    directory: str | Path,
    grid: Iterable[Mapping[str, Any]],
    *,
    families: Sequence[str] = (),
    family_options: Mapping[str, Mapping[str, Any]] | None = None,
    limit_tokens: int = Sizes.test,
    selection_tokens: int = Sizes.choose,
    null_window: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Train every run of ``grid`` in a directory of its own and evaluate it.

    Each entry holds the arguments of :func:`run_training`; its ``ablation`` names what differs
    from the base run. ``families``: by default core, temporal and, where there are labels,
    recovery; ``null_window``: also measure every temporal one shuffled in windows of so many
    tokens. Returns ``results``, ``documents`` and the further tables of the families.
    """
    found: dict[str, Any] = {}
    for number, run in enumerate(grid):
        given = {"device": device, "progress": progress, **run}
        sae = run_training(setting.store, Path(directory) / f"run-{number:02d}", **given).sae
        found[f"{number:02d}-{sae.name}-{run.get('ablation', '')}"] = sae
    if null_window:
        found |= shuffled(found, null_window)
    reading = measures.Reading(
        setting.store, Sizes(limit_tokens, selection_tokens), device=device, progress=progress
    )
    labelled = ("recovery",) if setting.store.label_specs else ()
    families = families or ("core", "temporal", *labelled)
    tables = measures.measure(
        found, reading, setting.world, families=families, options=family_options
    )
    return join(found, tables)


def shuffled(found: Mapping[str, SAE], window: int) -> dict[str, Any]:
    """The nulls of those that look back; shuffling does nothing to the others."""
    nulls = {k: measures.ShuffledNull(sae, window) for k, sae in found.items() if sae.looks_back}
    return {f"shuffled({label})": null for label, null in nulls.items()}


def join(
    found: Mapping[str, Any], tables: Mapping[str, measures.Measured]
) -> dict[str, pd.DataFrame]:
    """The tables of all SAEs one below the other, each row with the keys of its run."""
    frames: dict[str, list[pd.DataFrame]] = {}
    for label, sae in found.items():
        keys, here = keys_of(sae), tables[label]
        frames.setdefault("results", []).append(label_rows(here.rows, **keys))
        for name, table in {"documents": here.documents, **(here.tables or {})}.items():
            if table is not None and len(table):
                whole = table.assign(**keys)[[*keys, *table.columns]]
                frames.setdefault(name, []).append(whole)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}


@torch.no_grad()
def heatmap_rows(
    setting: Setting,
    found: Mapping[str, Any],
    tables: Mapping[str, measures.Measured],
    n_tokens: int = 64,
) -> pd.DataFrame:
    """Codes of the first tokens of two test sequences under the first run of each variant.

    One row per active (token, latent); ``name`` is the label class that the latent recovers best,
    empty where it is nobody's best.
    """
    batch = setting.store.batch("test", [0, 1])
    strings = [setting.world.to_strings(row.tolist()) for row in batch.tokens_BT]
    boundary_BT, rows, seen = batch.context.boundary_BT.tolist(), [], set()
    for label, sae in found.items():
        keys = keys_of(sae)
        if keys["variant"] in seen or keys["ablation"]:
            continue
        seen.add(keys["variant"])
        best = (tables[label].tables or {}).get("latents")
        best_rows = [] if best is None else best.itertuples()
        names = {row.latent: row.group.split(":", 1)[-1] for row in best_rows}
        here = batch.to(sae.b_dec.device)
        z_BTF = sae.encode(here.x_BTD, here.context)[:, : n_tokens + 1].cpu()
        for b, t, i in (z_BTF > 0).nonzero().tolist():
            if t > 0:
                of = (strings[b][t], boundary_BT[b][t], i, names.get(i, ""), float(z_BTF[b, t, i]))
                rows.append((keys["world"], keys["variant"], b, t, *of))
    columns = ["world", "variant", "sequence", "position", "token", "boundary"]
    return pd.DataFrame(rows, columns=[*columns, "latent", "name", "value"])
