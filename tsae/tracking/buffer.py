"""The last few tokens' active codes of B parallel texts, in preallocated memory."""

import torch
from torch import Tensor

from tsae.tracking.active import Active
from tsae.tracking.quantise import BITS, dequantise, quantise


class CircularFeatureBuffer:
    """Ids (int32) and codes (8 bits and a scale a token, or float32) of the last ``window`` tokens.

    A token takes M slots; :meth:`push` overwrites the oldest one in O(M) for all B texts at once.
    Nothing is allocated after construction. Raises ``ValueError`` on a bad size.
    """

    def __init__(
        self,
        batch_size: int,
        slots: int,
        window: int = 4,
        bits: int = 8,
        device: str | torch.device = "cpu",
    ):
        for field, value in (("batch_size", batch_size), ("slots", slots), ("window", window)):
            if value < 1:
                raise ValueError(f"{field}={value!r} is not allowed; {field} must be at least 1.")
        if bits not in BITS:
            raise ValueError(f"bits={bits!r} is not allowed; bits must be 8 or 32.")
        self.window, self.bits = window, bits
        shape = (window, batch_size, slots)
        kind = torch.uint8 if bits == 8 else torch.float32
        self.ids_WBM = torch.zeros(shape, dtype=torch.int32, device=device)
        self.codes_WBM = torch.zeros(shape, dtype=kind, device=device)
        self.scale_WB = torch.zeros(shape[:2], device=device)
        self.pushed = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in (self.ids_WBM, self.codes_WBM, self.scale_WB))

    def push(self, active: Active) -> None:
        """Remember the next token of every text: ids and values [B, M]."""
        slot = self.pushed % self.window
        self.ids_WBM[slot] = active.ids_NM
        if self.bits == 8:
            self.codes_WBM[slot], self.scale_WB[slot] = quantise(active.values_NM)
        else:
            self.codes_WBM[slot] = active.values_NM
        self.pushed += 1

    def clear(self, texts_B: Tensor) -> None:
        """Forget the past of the texts in the mask ``texts_B``, where a new document starts."""
        self.codes_WBM[:, texts_B] = 0

    def at(self, lag: int) -> Active:
        """Codes of the token ``lag`` pushes ago (1: the last one); empty where there was none.

        Raises ``ValueError`` for a lag outside 1 … ``window``.
        """
        if not 1 <= lag <= self.window:
            raise ValueError(f"lag={lag!r} is not allowed; lag must be from 1 to {self.window}.")
        slot = (self.pushed - lag) % self.window
        codes = self.codes_WBM[slot]
        if self.bits == 8:
            codes = dequantise(codes, self.scale_WB[slot])
        return Active(self.ids_WBM[slot].long(), codes)
