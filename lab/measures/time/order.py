"""What the order of tokens is worth: the same SAE on tokens shuffled within a window."""

from collections.abc import Mapping, Sequence

from lab.measures.families import register
from lab.measures.fidelity.core import Core
from lab.measures.nulls import ShuffledNull
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.measures.truth.codes import Codes
from lab.measures.truth.recovery import Recovery
from lab.worlds import World
from tsae.sequences import SCALES


@register("order")
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    windows: Sequence[int] = (4, 8),
    n_tokens: int | None = None,
) -> dict[str, Measured]:
    """``shuffle_gap_*``: intact minus shuffled, group ``shuffle=n`` for tokens permuted in windows
    of n (:class:`lab.measures.nulls.ShuffledNull`).

    ``shuffle_gap_fve``; with labels in the store ``shuffle_gap_ap_document``, ``_section`` and
    ``_token``: ``ap``, its latents chosen anew for the shuffled codes. A gap of 0 says that the
    variant gains from which tokens are near, not from their order. Exactly 0 for a static SAE.
    """
    found = {}
    for name, sae in saes.items():
        intact, rows = scores(sae, reading, n_tokens), []
        for window in windows:
            shuffled = scores(ShuffledNull(sae, window, reading.seed), reading, n_tokens)
            for metric, (value, n) in intact.items():
                gap = value - shuffled[metric][0]
                rows.append(row(f"shuffle_gap_{metric}", f"shuffle={window}", gap, n))
        found[name] = Measured(rows)
    return found


def scores(sae: Encoder, reading: Reading, limit: int | None) -> dict[str, tuple[float, int]]:
    """FVE and, with labels, AP by time scale, each with its number of cases."""
    core, rows = Core(reading.store.mean_D), []
    for t in reading.tokens(sae, "test", limit):
        core.update(t)
    if specs := reading.store.label_specs:
        splits = (reading.choices, "test")
        choices, test = (Codes(specs, reading.tokens(sae, split, limit)) for split in splits)
        recovery = Recovery(choices, test)
        recovery.own()
        rows = recovery.rows
    names = {("fve", "all"): "fve"} | {("ap", scale): f"ap_{scale}" for scale in SCALES}
    keyed = {(r["metric"], r["group"]): (r["value"], r["n"]) for r in core.rows() + rows}
    return {name: keyed[key] for key, name in names.items() if key in keyed}
