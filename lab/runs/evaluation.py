"""The evaluation of trained dictionaries and of their nulls, as tidy tables."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lab import measures
from lab.measures.reading import Sizes
from lab.results.rows import label_rows
from lab.runs.matched import match_all
from lab.runs.setting import Setting
from tsae.saes import SAE
from tsae.training.runs import keys_of, run_training

ABLATION_FAMILIES = ("core", "temporal", "recovery")


def add_nulls(found: Mapping[str, SAE], window: int) -> dict[str, Any]:
    """The SAEs, plus ``shuffled`` of every temporal one."""
    everything: dict[str, Any] = dict(found)
    for label, sae in found.items():
        if sae.looks_back and not sae.meta.get("ablation"):  # else shuffling does nothing
            everything[f"shuffled({label})"] = measures.ShuffledNull(sae, window)
    return everything


def run_evaluation(
    setting: Setting,
    found: Mapping[str, Any],
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
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """``results``, ``documents`` and ``dwell`` of several SAEs and, with ``nulls``, of theirs.

    ``match``: bring each SAE to the L0 of its own k on ``match_tokens`` training tokens first (see
    :mod:`lab.runs.matched`). The table ``matched`` then tells how, and so does a row a run
    of metric ``l0_as_trained``: its group is how, its value the L0 before.
    """
    everything, records = dict(found), None
    if match:
        everything, records = match_all(found, setting.store, match_tokens)
    if nulls:
        everything = add_nulls(everything, null_window)
    sizes = Sizes(limit_tokens, selection_tokens, splice_tokens, n_context_sequences)
    reading = measures.Reading(setting.store, sizes, progress=progress)
    tables = measures.measure(
        everything, reading, setting.world, families=families or (), options=family_options
    )
    if records is not None:
        for label, record in zip(found, records.itertuples(), strict=True):
            said = {"metric": "l0_as_trained", "group": record.how, "value": record.before}
            tables[label].rows.append({**said, "n": match_tokens, "reading": "own"})
    joined = join(everything, tables)
    if records is not None:
        joined["matched"] = records
    joined["heatmap"] = heatmap_rows(setting, found, {k: named(t) for k, t in tables.items()})
    return joined


def run_ablations(
    setting: Setting,
    directory: str | Path,
    grid: Iterable[Mapping[str, Any]],
    *,
    families: tuple[str, ...] = ABLATION_FAMILIES,
    family_options: Mapping[str, Mapping[str, Any]] | None = None,
    limit_tokens: int = Sizes.test,
    selection_tokens: int = Sizes.choose,
    progress: bool = True,
    **train_options: Any,
) -> dict[str, pd.DataFrame]:
    """Train every run of ``grid`` in a directory of its own and evaluate it, nulls aside.

    Each entry holds the arguments of :func:`run_training`; its ``ablation`` names what differs
    from the base run. ``families``: what is measured. Returns ``results``, ``documents`` and the
    further tables of the families.
    """
    found = {}
    for number, run in enumerate(grid):
        given = {**train_options, **run}
        place = Path(directory) / f"run-{number:02d}"
        result = run_training(setting.store, place, progress=progress, **given)
        found[f"{number:02d}-{result.sae.name}-{run.get('ablation', '')}"] = result.sae
    sizes = Sizes(limit_tokens, selection_tokens)
    tables = measures.measure(
        found,
        measures.Reading(setting.store, sizes, progress=progress),
        setting.world,
        families=tuple(f for f in families if setting.store.label_specs or f != "recovery"),
        options=family_options,
    )
    return join(found, tables)


def named(measured: measures.Measured) -> dict[str, int]:
    """``scale:label=class`` → the latent that recovers it best on the tokens for choices."""
    table = (measured.tables or {}).get("latents")
    return {} if table is None else dict(zip(table["group"], table["latent"], strict=True))


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
    names: Mapping[str, Mapping[str, int]],
    sequences: tuple[int, ...] = (0, 1),
    n_tokens: int = 64,
) -> pd.DataFrame:
    """Codes of the first tokens of a few test sequences under the first run of each variant.

    One row per active (token, latent); ``name`` is the label class that the latent recovers best,
    empty where it is nobody's best.
    """
    batch = setting.store.batch("test", list(sequences))
    strings = [setting.world.to_strings(row.tolist()) for row in batch.tokens_BT]
    boundary_BT = batch.context.boundary_BT
    rows, seen = [], set()
    for label, sae in found.items():
        keys = keys_of(sae)
        if keys["variant"] in seen or keys["ablation"]:
            continue
        seen.add(keys["variant"])
        named = {latent: title.split(":", 1)[-1] for title, latent in names.get(label, {}).items()}
        z_BTF = sae.encode(batch.x_BTD, batch.context)[:, 1 : n_tokens + 1]
        for b, t, latent in (z_BTF > 0).nonzero().tolist():
            rows.append(
                {
                    "world": keys["world"],
                    "variant": keys["variant"],
                    "sequence": sequences[b],
                    "position": t + 1,
                    "token": strings[b][t + 1],
                    "boundary": int(boundary_BT[b, t + 1]),
                    "latent": latent,
                    "name": named.get(latent, ""),
                    "value": float(z_BTF[b, t, latent]),
                }
            )
    return pd.DataFrame(rows)
