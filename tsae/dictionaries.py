r"""Trained dictionaries that come with the package, one line each.

    from tsae import load
    sae = load("smollm2/slowfast")
    z = sae.encode(x)      # x [B, T, d], the raw residual stream; z [B, T, F]

A dictionary was trained on x scaled to E|x - mean|^2 = d; what is loaded does the scaling itself,
so that it reads and writes raw residuals, while codes stay in the units of training.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tsae import saes
from tsae.errors import CheckpointError
from tsae.saes.stream import Stream
from tsae.sequences import SequenceContext

FOLDER = Path(__file__).parent / "pretrained"
"""``WORLD/VARIANT`` folders, written by ``python -m lab.runs.pretrained``."""


@dataclass(frozen=True)
class Pretrained:
    """A trained dictionary that reads the raw residual stream."""

    sae: saes.SAE
    """The dictionary itself, which reads ``scale * x``."""
    card: str
    """What it was trained on, how long, what it measures, its licence, as Markdown."""

    @property
    def scale(self) -> float:
        """What a raw residual is multiplied by."""
        return float(self.sae.meta["scale"])

    def encode(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        """Codes z [B, T, F] of the raw residual x [B, T, d]. Raises ``ValueError``."""
        return self.sae.encode(self.scale * x_BTD, context)

    def decode(self, z_BTF: Tensor) -> Tensor:
        """The raw residual that the codes stand for [B, T, d]."""
        return self.sae.decode(z_BTF) / self.scale

    def stream(self, batch_size: int) -> Stream:
        """A token-by-token encoder, whose tokens must be multiplied by ``scale``."""
        return self.sae.stream(batch_size)


def available() -> list[str]:
    """The names that :func:`load` knows, such as ``smollm2/slowfast``."""
    found = (file.parent for file in FOLDER.glob("*/*/cfg.json"))
    return sorted(f"{path.parent.name}/{path.name}" for path in found)


def load(name: str, device: str = "cpu") -> Pretrained:
    """The dictionary ``name``, in ``eval`` mode.

    Raises :class:`CheckpointError` for a name that is not there, listing those that are, and
    :class:`UserError` for a device that is not there.
    """
    known = available()
    if name not in known:
        listed = f"there are {', '.join(known)}" if known else "this installation has none"
        raise CheckpointError(f"no dictionary {name!r} comes with tsae: {listed}.")
    sae = saes.load(FOLDER / name, device)
    card = FOLDER / name / "README.md"
    return Pretrained(sae, card.read_text(encoding="utf-8") if card.exists() else "")
