"""What every variant can be told, checked when it is made."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from tsae.saes import activations


class Phase(NamedTuple):
    """A stretch of training: its name, its share of the steps, and what moves in it.

    ``trainable``: prefixes of the parameters that move, None for all; ``frozen``: of those that do
    not. ``codes``: whether codes are trained, or made, and cost, as at inference. ``anneal``, of
    a first phase: k at its start over k, falling to 1 along a cosine.
    """

    name: str
    share: float
    trainable: tuple[str, ...] | None = None
    frozen: tuple[str, ...] = ()
    codes: bool = True
    anneal: float = 1.0


ALL = (Phase("train", 1.0),)


def require(ok: bool, field: str, value: Any, allowed: str) -> None:
    """Raise ``ValueError`` with the field, its value and what is allowed, unless ``ok``."""
    if not ok:
        raise ValueError(f"{field}={value!r} is not allowed; {field} must be {allowed}.")


def require_fields(config: type, options: Mapping[str, Any]) -> None:
    """Raise ``ValueError``, listing what there is, for an option that is no field of ``config``."""
    allowed = [field.name for field in fields(config)]
    for name in options:
        if name not in allowed:
            raise ValueError(
                f"{name} is not an option of {config.__name__}; allowed are {', '.join(allowed)}"
            )


@dataclass(frozen=True)
class SAEConfig:
    """What every variant can be told; a variant's config adds its own fields."""

    d_in: int
    """Width of the residual stream."""
    d_sae: int
    """Number of latents in the dictionary."""
    act: str = "topk"
    """Activation: relu, topk, batchtopk or jumprelu."""
    k: int = 32
    """Active latents per token: exact for topk, mean for batchtopk, target for the others."""
    l1: float = 0.04
    """Starting weight of the sparsity term of relu and jumprelu."""
    match_l0: bool = True
    """Whether that weight is steered until the batch L0 is k (else it stays at l1)."""
    sparsity_warmup: float = 0.1
    """Share of the steps over which the sparsity weight rises from 0."""
    aux: float = 1 / 32
    """Weight of AuxK, the reconstruction of the error by dead latents."""
    dead_after: int = 200_000
    """Tokens without firing after which a latent counts as dead."""
    threshold_ema: float = 0.99
    """EMA rate of the inference threshold of batchtopk."""
    bandwidth: float = 0.1
    """Width of the rectangle estimator of jumprelu."""
    threshold_start: float = 0.1
    """Threshold of every latent of jumprelu before training; Adam moves log θ by about lr a step,
    so that a short run reaches a small L0 only from a start not far below its own."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The stretches of training, whose shares sum to 1."""
        return ALL

    def __post_init__(self) -> None:
        for field in ("d_in", "d_sae", "k", "dead_after"):
            value = getattr(self, field)
            require(isinstance(value, int) and value > 0, field, value, "a whole number above 0")
        require(self.k <= self.d_sae, "k", self.k, f"at most d_sae={self.d_sae}")
        require(
            self.act in activations.NAMES,
            "act",
            self.act,
            f"one of {', '.join(activations.NAMES)}",
        )
        for field in ("l1", "aux"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "at least 0")
        require(0 <= self.sparsity_warmup <= 1, "sparsity_warmup", self.sparsity_warmup, "in [0,1]")
        require(0 < self.threshold_ema < 1, "threshold_ema", self.threshold_ema, "between 0 and 1")
        for field in ("bandwidth", "threshold_start"):
            require(getattr(self, field) > 0, field, getattr(self, field), "above 0")
        for field in (known.name for known in fields(self)):  # JSON turns tuples into lists
            if isinstance(getattr(self, field), list):
                object.__setattr__(self, field, tuple(getattr(self, field)))


def split_by_shares(total: int, shares: tuple[float, ...]) -> list[int]:
    """Whole parts of ``total`` in proportion to ``shares``, each at least 1."""
    parts = [max(1, round(total * share)) for share in shares[1:]]
    return [total - sum(parts), *parts]
