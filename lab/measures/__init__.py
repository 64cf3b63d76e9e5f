"""What is measured, and how: a folder a topic, one file a metric family, one signature for all.

    @register("name", together=False, nulls=False, needs=())
    def measure(
        saes: Mapping[str, Encoder], reading: Reading, world: World | None, *, option: int = 1
    ) -> dict[str, Measured]:

``saes``: dictionaries by label (one, unless the family asks for all ``together``); ``reading``:
the store's tokens and every dictionary's codes of them (:class:`lab.measures.reading.Reading`);
``world``: the language model with its tasks, or None; the keyword options are the family's own and
a profile's ``family_options`` give them by family. A family returns a :class:`Measured` a label
and leaves out a dictionary of which it says nothing. Adding a metric is adding one file: families
are found by their ``register`` lines (:mod:`lab.measures.families`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from lab.measures.families import Family, check_options, family, modules, register
from lab.measures.nulls import ShuffledNull
from lab.measures.reading import Encoder, Measured, Reading, Sizes
from lab.measures.stats import Interval, paired_bootstrap
from lab.worlds import World
from tsae.store import ActivationStore

__all__ = [
    "DEFAULT",
    "Interval",
    "Measured",
    "Reading",
    "ShuffledNull",
    "Sizes",
    "evaluate",
    "measure",
    "modules",
    "paired_bootstrap",
    "register",
]

DEFAULT = ("core", "splice", "temporal", "consistency", "context", "switches", "recovery")
"""The families of an evaluation that names none."""


def evaluate(
    sae: Encoder, store: ActivationStore, world: World | None = None, **options: Any
) -> Measured:
    """One dictionary by the default families; ``options`` are those of :func:`measure`."""
    sizes = Sizes(**options.pop("sizes", {}))
    return measure({"sae": sae}, Reading(store, sizes), world, **options)["sae"]


@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None = None,
    *,
    families: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Measured]:
    """Every family for several dictionaries (or nulls) on the same tokens.

    ``families``: by default those of :data:`DEFAULT` whose needs the inputs meet; ``options``: by
    family. Raises ValueError for an unknown family or option, or a family without its input.
    """
    asked = {name: family(name) for name in families or DEFAULT}
    for name, given in (options or {}).items():
        check_options(name, given)
    lacks = {name: _lacking(f, reading.store, world) for name, f in asked.items()}
    for name in families:
        if lacks[name]:
            raise ValueError(f"family {name!r} needs {lacks[name]}; give it, or leave it out")
    asked = {name: f for name, f in asked.items() if not lacks[name]}
    for sae in saes.values():
        getattr(sae, "eval", lambda: None)()
    measured: dict[str, list[Measured]] = {label: [] for label in saes}

    def take(name: str, chosen: Mapping[str, Encoder]) -> None:
        f = asked[name]
        chosen = {k: s for k, s in chosen.items() if f.nulls or not isinstance(s, ShuffledNull)}
        if chosen:
            made = f.measure(chosen, reading, world, **dict((options or {}).get(name, {})))
            for label, said in made.items():
                measured[label].append(said)

    alone = [name for name, f in asked.items() if not f.together]
    for label, sae in tqdm(saes.items(), desc="dictionaries", disable=not reading.progress):
        for name in alone:
            take(name, {label: sae})
        reading.forget(sae)
    for name in tqdm(sorted(set(asked) - set(alone)), disable=not reading.progress):
        take(name, saes)
    for sae in saes.values():
        reading.forget(sae)
    return {label: _joined(parts) for label, parts in measured.items()}


def _lacking(f: Family, store: ActivationStore, world: World | None) -> str:
    if "model" in f.needs and world is None:
        return "a world, whose model it runs"
    return "labels in the store" if "labels" in f.needs and not store.label_specs else ""


def _joined(parts: Sequence[Measured]) -> Measured:
    """What several families say of one dictionary, as one."""
    import pandas as pd

    documents = [m.documents for m in parts if m.documents is not None and len(m.documents)]
    whole = pd.concat(documents, ignore_index=True) if documents else pd.DataFrame()
    if len(whole):
        whole["reading"] = whole.get("reading", pd.Series(dtype=str)).fillna("own")
    tables = {name: table for m in parts for name, table in (m.tables or {}).items()}
    return Measured([r for m in parts for r in m.rows], whole, tables)
