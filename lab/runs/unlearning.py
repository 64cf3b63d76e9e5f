"""Unlearning with trained dictionaries, as tidy tables."""

from collections.abc import Mapping

import pandas as pd

from lab.measures.unlearning.config import UnlearnConfig
from lab.measures.unlearning.unlearning import unlearn
from lab.results.rows import label_rows
from lab.runs.setting import Setting
from tsae.saes import SAE
from tsae.saes.config import require_fields
from tsae.training.runs import keys_of


def run_unlearning(
    setting: Setting,
    found: Mapping[str, SAE],
    *,
    device: str = "cpu",
    progress: bool = True,
    **options,
) -> dict[str, pd.DataFrame]:
    """``results`` and ``documents`` of unlearning with each SAE, over the grid of settings.

    ``options`` are the fields of :class:`lab.measures.unlearning.config.UnlearnConfig`. Raises
    :class:`UserError` when the world has no questions or its model answers too few of them.
    """
    require_fields(UnlearnConfig, options)
    config = UnlearnConfig(**options)
    frames: dict[str, list[pd.DataFrame]] = {"results": [], "documents": []}
    for sae in found.values():
        given = sae, setting.store, setting.world, config
        rows, documents = unlearn(*given, device=device, progress=progress)
        keys = keys_of(sae)
        frames["results"].append(label_rows(rows, **keys))
        frames["documents"].append(documents.assign(**keys)[[*keys, *documents.columns]])
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
