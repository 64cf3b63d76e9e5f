"""From a static SAE to a variant: whose weights can be taken over, and how they are.

Any SAE that encodes a token with ``(x - b_dec) W_enc + b_enc`` can be the start of another.
"""

from dataclasses import fields
from typing import Any

import torch

from tsae.errors import CheckpointError
from tsae.saes.base import SAE, SAEConfig
from tsae.saes.registry import load

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


def check_static(parent: SAE, child: SAEConfig, where: str = "The static SAE") -> SAE:
    """``parent``, if its weights fit ``child``.

    Raises :class:`CheckpointError` when it reads more than the token itself or has other sizes.
    """
    if type(parent).features is not SAE.features:
        raise CheckpointError(
            f"{where} is a {parent.name!r} SAE, whose encoder sees more than one token: give a "
            "static one (l1, topk, batchtopk or jumprelu)."
        )
    for field in ("d_in", "d_sae"):
        theirs, ours = getattr(parent.cfg, field), getattr(child, field)
        if theirs != ours:
            raise CheckpointError(
                f"{where} has {field}={theirs}, but {ours} is asked for: ask for {field}={theirs}."
            )
    return parent


def load_static(directory: str, child: SAEConfig, device: torch.device) -> SAE:
    """The frozen static SAE in ``directory``; raises :class:`CheckpointError`."""
    with torch.random.fork_rng(devices=[]):  # a resumed run loads it at another moment
        sae = check_static(load(directory, str(device)), child, f"The checkpoint {directory}")
    return sae.requires_grad_(False)


def static_options(parent: SAE, **options: Any) -> dict[str, Any]:
    """The options that every variant shares, as ``parent`` has them, then ``options``."""
    shared = {field.name: getattr(parent.cfg, field.name) for field in fields(SAEConfig)}
    return {**shared, **options}


@torch.no_grad()
def copy_static(parent: SAE, child: SAE) -> None:
    """Copy dictionary, encoder and, for the same ``act``, thresholds, sparsity weight, idle counts.

    Every copied number keeps all its bits, so the codes are the parent's exactly.
    """
    for name in WEIGHTS:
        getattr(child, name).copy_(getattr(parent, name))
    if parent.cfg.act == child.cfg.act:
        child.act.load_state_dict(parent.act.state_dict())
        child.sparsity_weight.copy_(parent.sparsity_weight)
        child.idle_tokens.copy_(parent.idle_tokens)
