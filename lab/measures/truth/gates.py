"""A variant's learned gate over text, token by token, beside the true boundaries."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, row
from lab.worlds import World


@register("gates")
@torch.no_grad()
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    sequences: Sequence[int] = (0, 1),
    n_tokens: int = 64,
) -> dict[str, Measured]:
    """How far b_t in [0, 1] closes where sentences and sections truly start, and where not.

    For SAEs with ``gate="learned"``. Over the test text, document starts aside:
    ``gate_mean``, group ``boundary`` (a sentence or section starts at t), ``after`` (at t - 1),
    ``before`` (at t + 1), ``elsewhere`` and ``all``; tokens that are in several count in each but
    ``elsewhere``. How well its peaks match is ``boundary_f1``, group ``learned``, of the family
    temporal. Table ``gates``: sequence, position, token, boundary (true level), gate, for the
    first ``n_tokens`` tokens of the given test sequences.
    """
    found = {}
    chosen: dict[str, Any] = dict(saes)
    for name, sae in chosen.items():
        if getattr(sae.cfg, "gate", None) != "learned" or not hasattr(sae, "closed"):
            continue
        sums: dict[str, list[float]] = {}
        for batch in reading.batches("test"):
            context = batch.context
            gate_BT = sae.closed(sae.centred(batch.x_BTD, context), context)
            start_BT = (context.boundary_BT > 0) & (context.boundary_BT < 3)
            near = {
                "boundary": start_BT,
                "after": torch.nn.functional.pad(start_BT[:, :-1], (1, 0)),
                "before": torch.nn.functional.pad(start_BT[:, 1:], (0, 1)),
            }
            near["elsewhere"] = ~(near["boundary"] | near["after"] | near["before"])
            near["all"] = torch.ones_like(start_BT)
            counted_BT = context.mask_BT.bool() & (context.boundary_BT < 3)
            for group, of_BT in near.items():
                gates = gate_BT[of_BT & counted_BT]
                total = sums.setdefault(group, [0.0, 0])
                total[0] += float(gates.double().sum())
                total[1] += len(gates)
        rows = [
            row("gate_mean", group, total / n if n else float("nan"), n)
            for group, (total, n) in sums.items()
        ]
        table = shown(sae, reading, world, sequences, n_tokens)
        found[name] = Measured(rows, tables={"gates": table})
    return found


def shown(
    sae: Any, reading: Reading, world: World | None, sequences: Sequence[int], n_tokens: int
) -> pd.DataFrame:
    """The table ``gates`` of one SAE."""
    assert world is not None
    batch = reading.store.batch("test", list(sequences)).to(reading.device)
    gate_BT = sae.closed(sae.centred(batch.x_BTD, batch.context), batch.context)
    rows = []
    for b, sequence in enumerate(sequences):
        tokens = world.to_strings(batch.tokens_BT[b].tolist())
        last = min(n_tokens, len(tokens) - 1)
        for t in range(1, last + 1):  # BOS aside
            boundary, gate = int(batch.context.boundary_BT[b, t]), float(gate_BT[b, t])
            place = {"sequence": sequence, "position": t, "token": tokens[t]}
            rows.append({**place, "boundary": boundary, "gate": gate})
    return pd.DataFrame(rows)
