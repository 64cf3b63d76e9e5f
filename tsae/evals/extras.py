"""Families that run only when asked for: one file each, one signature.

    measure(saes, store, world, *, limit_tokens, selection_tokens, batch_size, seed, device,
            progress, **options) -> {name: Measured}

``saes``: SAEs or nulls by name; ``options``: what the profile's ``family_options`` give. A family
that says nothing about an SAE (a group's measure for a static one) leaves it out.
"""

from collections.abc import Callable

from tsae.evals import (
    absorption,
    adaptation,
    autointerp,
    capability,
    composition,
    dependencies,
    effects,
    gates,
    isolation,
    lifetimes,
    order,
    perturbation,
    positions,
    probing,
    temporal_probing,
    traces,
)

EXTRAS: dict[str, Callable] = {}
EXTRAS["adaptation"] = adaptation.measure
EXTRAS["positions"] = positions.measure
EXTRAS["probing"] = probing.measure
EXTRAS["perturbation"] = perturbation.measure
EXTRAS["absorption"] = absorption.measure
EXTRAS["autointerp"] = autointerp.measure
EXTRAS["composition"] = composition.measure
EXTRAS["dependencies"] = dependencies.measure
EXTRAS["temporal_probing"] = temporal_probing.measure
EXTRAS["traces"] = traces.measure
EXTRAS["capability"] = capability.measure
EXTRAS["isolation"] = isolation.measure
EXTRAS["gates"] = gates.measure
EXTRAS["order"] = order.measure
EXTRAS["effects"] = effects.measure
EXTRAS["lifetimes"] = lifetimes.measure
