"""From a static SAE to a variant: whose weights can be taken over, and how they are.

Any SAE that encodes a token with ``(x - b_dec) W_enc + b_enc`` can be the start of another.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsae.errors import CheckpointError
from tsae.files import read_json
from tsae.kernels.sparse import Codes
from tsae.saes.base import SAE, Encoding, SAEConfig, Tokens
from tsae.saes.registry import build, load, name_of

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


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


def origin(directory: str) -> dict[str, Any]:
    """World and fingerprint of the store that the SAE in ``directory`` was trained on, as far as
    it can be read; a child built from it carries them until it has a store of its own."""
    try:
        meta = read_json(Path(directory) / "cfg.json", CheckpointError).get("meta", {})
    except (CheckpointError, AttributeError):
        return {}
    return {key: meta[key] for key in ("world", "fingerprint") if key in meta}


def load_static(directory: str, child: SAEConfig, device: torch.device) -> SAE:
    """The frozen static SAE in ``directory``; raises :class:`CheckpointError`."""
    if (Path(directory) / "sae_weights.safetensors").exists():
        raise CheckpointError(
            f"{directory} is a SAELens directory, in the units of the raw residual: save "
            "tsae.interop.load_saelens(directory, store) and give that directory."
        )
    with torch.random.fork_rng(devices=[]):  # a resumed run loads it at another moment
        sae = check_static(load(directory, str(device)), child, f"The checkpoint {directory}")
    return sae.requires_grad_(False)


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
    """A variant that can begin as a trained static SAE: one that :meth:`from_static` is given, or
    the one in the directory that its config names in the field ``start``."""

    start: str

    def __init__(self, cfg: SAEConfig):
        super().__init__(cfg)
        self.given: list[SAE] = []  # a list, so that it is no part of this module's state

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
        made.meta, made.given = dict(sae.meta), [sae]
        return made.to(sae.W_dec.device)

    @property
    def grows(self) -> bool:
        """Whether there is such a parent."""
        return bool(self.given) or getattr(self.cfg, self.start) is not None

    def parent(self) -> SAE:
        """It; read from its directory when first asked for."""
        if not self.given:
            self.given = [load_static(getattr(self.cfg, self.start), self.cfg, self.W_dec.device)]
        return self.given[0]

    @torch.no_grad()
    def initialise(self, mean_D: Tensor) -> None:
        """b_dec at the mean activation, or the whole static part from the parent."""
        if self.grows:
            copy_static(self.parent(), self)
        else:
            super().initialise(mean_D)


def match(student: SAE, teacher: SAE, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
    """``mean_t |z - z_T|^2 / d`` + ``mean_t |x_hat - x_hat_T|^2 / d`` against the teacher T.

    ``enc`` is the student's. Both are 0 when act and k are the teacher's, whose codes are then kept
    to the bit.
    """
    with torch.no_grad():
        teacher.eval()
        sparse = isinstance(enc.codes, Codes)
        goal = teacher.encoding(Tokens(teacher, x_BTD, enc.context, sparse=sparse))
        goal_ND = teacher.decoded(goal.codes) + teacher.b_dec
    x_hat_ND = student.decoded(enc.codes) + student.b_dec
    unit = enc.n * student.cfg.d_in
    missed = (x_hat_ND - goal_ND) * enc.mask_N[:, None]
    return {
        "match_codes": (enc.z_NF - goal.z_NF).square().sum() / unit,
        "match_output": missed.square().sum() / unit,
    }
