"""From a trained static SAE to a variant: whose weights can be taken over, and how they are.

Any SAE that encodes a token with ``(x - b_dec) W_enc + b_enc`` can be the start of another.
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tsae.errors import CheckpointError
from tsae.kernels.sparse import Codes
from tsae.saes.base import SAE, Encoding, SAEConfig, Tokens
from tsae.saes.registry import build, load, name_of

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True)
class GrowingConfig(SAEConfig):
    """The static config plus where the static part comes from."""

    teacher: str | None = None
    """Directory of a trained static SAE whose weights training starts from; a folder of SAELens is
    brought into the units of the store first (:func:`tsae.training.runs.run_training`)."""


def check_static(parent: SAE, child: SAEConfig, where: str = "The static SAE") -> SAE:
    """``parent``, if its weights fit ``child``.

    Raises :class:`CheckpointError` when it reads more than the token itself or has other sizes.
    """
    if parent.looks_back or type(parent).encoding is not SAE.encoding:
        raise CheckpointError(
            f"{where} is a {parent.name!r} SAE, whose encoder is not the static one: give a "
            "static one (l1, topk, batchtopk or jumprelu)."
        )
    for field in ("d_in", "d_sae"):
        theirs, ours = getattr(parent.cfg, field), getattr(child, field)
        if theirs != ours:
            raise CheckpointError(
                f"{where} has {field}={theirs}, but {ours} is asked for: ask for {field}={theirs}."
            )
    return parent


@lru_cache(maxsize=2)
def load_static(directory: str, child: SAEConfig, device: torch.device) -> SAE:
    """The frozen static SAE in ``directory``; raises :class:`CheckpointError`."""
    with torch.random.fork_rng(devices=[]):  # a resumed run loads it at another moment
        sae = check_static(load(directory, str(device)), child, f"The checkpoint {directory}")
    return sae.eval().requires_grad_(False)


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


class Growing(SAE):
    """A variant that can begin as a trained static SAE: the ``teacher`` of its config."""

    cfg: GrowingConfig

    @classmethod
    def from_static(cls, sae: SAE, **options: Any) -> Any:
        """The variant with the weights, the provenance and the shared options of ``sae``.

        ``options`` are config fields. Its codes are those of ``sae``, and training starts from
        these weights, b_dec included. Raises :class:`CheckpointError` when ``sae`` is not static,
        ``ValueError`` on a bad option.
        """
        shared = {field.name: getattr(sae.cfg, field.name) for field in fields(SAEConfig)}
        made: Any = build(name_of(cls), **{**shared, **options})
        copy_static(check_static(sae, made.cfg), made)
        made.meta = dict(sae.meta)
        return made.to(sae.W_dec.device)

    def teacher(self) -> SAE:
        """The static SAE in the directory of that name."""
        assert self.cfg.teacher is not None
        return load_static(self.cfg.teacher, self.cfg, self.W_dec.device)

    @torch.no_grad()
    def initialise(self, mean_D: Tensor) -> None:
        """The whole static part from the teacher, or as the base."""
        if self.cfg.teacher is not None:
            copy_static(self.teacher(), self)
        super().initialise(mean_D)

    def unmatched(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``mean_t |z - z_T|^2 / d`` + ``mean_t |x_hat - x_hat_T|^2 / d`` against the teacher T; 0 for
        a student that has its weights, activation and k."""
        teacher = self.teacher()
        with torch.no_grad():
            sparse = isinstance(enc.codes, Codes)
            goal = teacher.encoding(Tokens(teacher, x_BTD, enc.context, sparse=sparse))
            goal_ND = teacher.decoded(goal.codes) + teacher.b_dec
        missed_ND = (enc.aux["decoded"] + self.b_dec - goal_ND) * enc.mask_N[:, None]
        unit = enc.n * self.cfg.d_in
        return {
            "match_codes": (enc.z_NF - goal.z_NF).square().sum() / unit,
            "match_output": missed_ND.square().sum() / unit,
        }
