"""Token-by-token encoding, as a deployed model would need it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsae.saes.encoding import State, Tokens
from tsae.sequences import FilledContext, SequenceContext

if TYPE_CHECKING:
    from tsae.saes.base import SAE


class Stream:
    """Encodes B parallel texts one token at a time.

    ``state`` is what the variant remembers: it is laid out at the first token and keeps its size.
    ``beside``: the parts [B, d] of the last token's reconstruction that no code accounts for;
    ``features``: its codes [B, F'] of further levels.
    """

    def __init__(self, sae: "SAE", batch_size: int):
        self.sae = sae
        self.batch_size = batch_size
        self.state: State = {}
        self.beside: dict[str, Tensor] = {}
        self.features: dict[str, Tensor] = {}
        self.started = False

    @torch.no_grad()
    def step(
        self, x_BD: Tensor, boundary_B: Tensor | None = None, mask_B: Tensor | None = None
    ) -> Tensor:
        """Codes [B, F] of the next token. ``boundary_B`` uint8, ``mask_B`` bool (None: valid).

        The first token always starts a document. Raises ``ValueError`` on a wrong shape or type.
        """
        if tuple(x_BD.shape) != (self.batch_size, self.sae.cfg.d_in):
            raise ValueError(
                f"x has shape {tuple(x_BD.shape)}; this stream reads [{self.batch_size}, "
                f"{self.sae.cfg.d_in}]."
            )
        given = (None if part is None else part[:, None] for part in (mask_B, boundary_B))
        x_B1D = x_BD[:, None]
        context = self.sae.checked(x_B1D, SequenceContext(*given))
        if self.started:  # ``filled`` has made the token a document's first
            zero_B = torch.zeros(len(x_BD), device=x_BD.device)
            given_B = zero_B if boundary_B is None else boundary_B.to(x_BD.device)
            context = FilledContext(context.mask_BT, given_B.to(torch.uint8)[:, None])
        self.started = True
        enc = self.sae.encoding(Tokens(self.sae, x_B1D, context), self.state)
        self.beside, self.features = enc.beside, self.sae.features(enc, self.state)
        return enc.z_NF
