"""What changes along a training: the learning rate, and which parameters move in which phase."""

from tsae.errors import UserError
from tsae.saes.base import SAE, Phase
from tsae.saes.config import require


def learning_rate(step: int, config) -> float:
    """Rate of step ``step`` (from 0): linear warm-up, plateau, linear decay to ``lr / n_decay``."""
    rise = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    n_decay = config.decay_share * config.steps
    fall = min(1.0, (config.steps - step) / n_decay) if n_decay else 1.0
    return config.lr * rise * fall


def phase_ends(phases: tuple[Phase, ...], steps: int) -> list[int]:
    """The step at which each phase ends: cumulative shares x ``steps``, rounded.

    Raises :class:`UserError` if a phase would get no step.
    """
    total = sum(phase.share for phase in phases)
    ends = [
        round(steps * sum(p.share for p in phases[: i + 1]) / total) for i in range(len(phases))
    ]
    for phase, start, end in zip(phases, [0, *ends], ends, strict=False):
        if end == start:
            raise UserError(f"Phase {phase.name!r} gets none of {steps} steps: ask for more steps.")
    return ends


def set_trainable(sae: SAE, phase: Phase, learnable: list[str]) -> None:
    """Freeze all parameters but those of ``learnable`` whose name starts as the phase says.

    Raises ``ValueError`` when a prefix fits no parameter.
    """
    names = [name for name, _ in sae.named_parameters()]
    for prefix in (*(phase.trainable or ()), *phase.frozen):
        fits = any(name.startswith(prefix) for name in names)
        require(fits, "trainable", prefix, f"a prefix of one of {', '.join(names)}")
    for name, parameter in sae.named_parameters():
        inside = phase.trainable is None or name.startswith(phase.trainable)
        inside = inside and not name.startswith(phase.frozen)
        parameter.requires_grad_(inside and name in learnable)
