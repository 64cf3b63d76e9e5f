"""Families that run only when asked for: one file each, one signature.

    measure(saes, store, world, *, limit_tokens, selection_tokens, batch_size, seed, device,
            progress, **options) -> {name: Measured}

``saes``: SAEs or nulls by name; ``options``: what the profile's ``family_options`` give. A family
that says nothing about an SAE (a group's measure for a static one) leaves it out.
"""

from collections.abc import Callable

from lab.measures.composition import composition
from lab.measures.concepts import absorption, autointerp, perturbation, probing, temporal_probing
from lab.measures.fidelity import capability, positions
from lab.measures.succession import dependencies, traces, tracking
from lab.measures.time import adaptation, effects, lifetimes, order
from lab.measures.truth import gates
from lab.measures.unlearning import isolation, known

EXTRAS: dict[str, Callable] = {
    "absorption": absorption.measure,
    "adaptation": adaptation.measure,
    "autointerp": autointerp.measure,
    "capability": capability.measure,
    "composition": composition.measure,
    "dependencies": dependencies.measure,
    "effects": effects.measure,
    "gates": gates.measure,
    "isolation": isolation.measure,
    "known": known.measure,
    "lifetimes": lifetimes.measure,
    "order": order.measure,
    "perturbation": perturbation.measure,
    "positions": positions.measure,
    "probing": probing.measure,
    "temporal_probing": temporal_probing.measure,
    "traces": traces.measure,
    "tracking": tracking.measure,
}
