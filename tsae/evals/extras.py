"""Families that run only when asked for: one file each, one signature.

    measure(saes, store, world, *, limit_tokens, selection_tokens, batch_size, seed, device,
            progress, **options) -> {name: Measured}

``saes``: SAEs or nulls by name; ``options``: what the profile's ``family_options`` give. A family
that says nothing about an SAE (a group's measure for a static one) leaves it out.
"""

from collections.abc import Callable

EXTRAS: dict[str, Callable] = {}
