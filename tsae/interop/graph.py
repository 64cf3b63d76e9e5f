"""An encoder as a ``torch.export`` program: one file that runs without this package."""

from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from tsae.errors import UserError
from tsae.files import atomic
from tsae.saes import SAE
from tsae.saes.base import SequenceContext


class Encoder(nn.Module):
    """(raw [B, T, d], mask bool [B, T], boundary uint8 [B, T]) → codes [B, T, F] in raw units."""

    def __init__(self, sae: SAE) -> None:
        super().__init__()
        self.sae = sae
        self.scale = float(sae.meta.get("scale", 1.0))

    def forward(self, raw_BTD: Tensor, mask_BT: Tensor, boundary_BT: Tensor) -> Tensor:
        context = SequenceContext(mask_BT, boundary_BT)
        return self.sae.encode(raw_BTD * self.scale, context) / self.scale


def export_encoder(sae: SAE, path: str | Path, n_tokens: int = 128) -> Path:
    """Write the encoder for sequences of ``n_tokens`` tokens, any number at once, as a .pt2 file.

    ``torch.export.load(path).module()`` gives a function of raw residuals [B, n_tokens, d], a
    validity mask and boundary levels. Raises ValueError for an SAE in training mode,
    :class:`UserError` for a variant whose control flow depends on its data, which torch.export
    cannot hold, and on a full disk.
    """
    if sae.training:
        raise ValueError("sae.training is True; allowed is an SAE in eval mode, call sae.eval()")
    encoder = Encoder(sae).eval()
    example = (
        torch.zeros(2, n_tokens, sae.cfg.d_in),
        torch.ones(2, n_tokens, dtype=torch.bool),
        torch.zeros(2, n_tokens, dtype=torch.uint8),
    )
    batch = {0: torch.export.Dim("batch", min=1, max=65536)}
    try:
        with torch.no_grad():
            program = torch.export.export(encoder, example, dynamic_shapes=(batch, batch, batch))
    except Exception as error:  # torch's own errors here share no base class
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"The {getattr(sae, 'name', 'given')!r} encoder cannot be exported ({reason}); "
            "save_saelens gives a form of it that reads one token."
        ) from error
    # Through memory: torch's own writer ends the whole process on a full disk.
    held = BytesIO()
    torch.export.save(program, held)
    path = Path(path)
    with atomic(path) as unfinished:
        unfinished.write_bytes(held.getbuffer())
    return path
