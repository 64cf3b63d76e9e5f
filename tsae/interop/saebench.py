r"""A trained SAE as SAEBench expects one, sequences kept; SAEBench itself is not imported.

    encode(raw [B, T, d]) = encode_tsae(s · raw) / s,    decode(z) = z W_dec + b_dec / s

in units of the raw residual, on a dictionary of unit norm, as :mod:`tsae.interop.saelens`. SAEBench
hands whole sequences [B, T, d] to ``encode`` in its core evaluation, so a temporal encoder sees its
context. Rows without a sequence [N, d] are encoded each as the first token of a document.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tsae.saes import SAE
from tsae.sequences import SequenceContext

ALWAYS: dict[str, Any] = {
    "dtype": "float32", "device": "cpu", "hook_head_index": None, "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False, "normalize_activations": "none", "activation_fn_str": "",
    "activation_fn_kwargs": {}, "prepend_bos": True, "model_from_pretrained_kwargs": {},
    "dataset_path": "", "dataset_trust_remote_code": False, "seqpos_slice": (None,),
    "training_tokens": -1, "sae_lens_training_version": None, "neuronpedia_id": None,
}  # fmt: skip
"""Fields that SAEBench reads of an SAE's ``cfg`` and that are the same for all SAEs here."""


class BenchConfig(SimpleNamespace):
    """The fields that SAEBench reads of an SAE's ``cfg``; it adds attributes of its own."""

    def to_dict(self) -> dict[str, Any]:
        """The fields alone."""
        return {name: value for name, value in vars(self).items() if name in self.fields}

    def __init__(self, **own: Any):
        super().__init__(**own, **ALWAYS)
        self.fields = {*own, *ALWAYS}


class BenchSAE(nn.Module):
    """``sae`` behind SAEBench's interface: encode, decode, forward, W_enc, W_dec, b_enc, b_dec.

    ``massive_norm``: raw norm above which a token counts as massive (the store's rule: 10 times its
    median norm). Such a token, which training never saw, is kept out of its neighbours' context,
    and encoded alone. Raises ValueError for an SAE in training mode.
    """

    def __init__(
        self,
        sae: SAE,
        *,
        model_name: str | None = None,
        layer: int | None = None,
        massive_norm: float = float("inf"),
        context_size: int = 128,
    ) -> None:
        super().__init__()
        if sae.training:
            raise ValueError(
                "sae.training is True; allowed is an SAE in eval mode, call sae.eval()"
            )
        self.sae = sae
        self.scale = float(sae.meta.get("scale", 1.0))
        self.massive_norm = massive_norm
        layer = int(sae.meta.get("layer", 0)) if layer is None else layer
        self.cfg = BenchConfig(
            model_name=model_name or str(sae.meta.get("world", "")),
            d_in=sae.cfg.d_in,
            d_sae=sae.cfg.d_sae,
            hook_layer=layer,
            hook_name=f"blocks.{layer}.hook_resid_post",
            architecture=getattr(sae, "name", type(sae).__name__),
            context_size=context_size,
        )
        self.device, self.dtype = sae.W_dec.device, sae.W_dec.dtype

    @property
    def W_enc(self) -> Tensor:
        """[d, F]; of a temporal encoder the part that reads the current token."""
        return self.sae.W_enc

    @property
    def W_dec(self) -> Tensor:
        """[F, d], rows of norm 1."""
        return self.sae.W_dec

    @property
    def b_enc(self) -> Tensor:
        """[F], in raw units."""
        return self.sae.b_enc / self.scale

    @property
    def b_dec(self) -> Tensor:
        """[d], in raw units."""
        return self.sae.b_dec / self.scale

    def encode(self, raw: Tensor) -> Tensor:
        """Codes of raw residuals, [B, T, d] → [B, T, F] or [N, d] → [N, F]."""
        dtype = raw.dtype
        x = raw.to(self.sae.W_enc) * self.scale
        if raw.ndim == 2:
            return self._alone(x).to(dtype)
        mask_BT = raw.float().norm(dim=-1) <= self.massive_norm
        z_BTF = self.sae.encode(x, SequenceContext(mask_BT)) / self.scale
        if not bool(mask_BT.all()):
            z_BTF[~mask_BT] = self._alone(x[~mask_BT])
        return z_BTF.to(dtype)

    def _alone(self, x_ND: Tensor) -> Tensor:
        return self.sae.encode(x_ND[:, None])[:, 0] / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Raw residuals of codes, [..., F] → [..., d]."""
        return (z.to(self.W_dec) @ self.W_dec + self.b_dec).to(z.dtype)

    def forward(self, raw: Tensor) -> Tensor:
        """The reconstruction of raw residuals."""
        return self.decode(self.encode(raw))

    def to(self, *args: Any, **kwargs: Any) -> "BenchSAE":
        """As ``nn.Module.to``, with ``device``, ``dtype`` and the config following.

        The weights stay float32, so that a half-precision model does not change the codes.
        """
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.dtype):
                self.dtype = value
                self.cfg.dtype = str(value).removeprefix("torch.")
            elif isinstance(value, str | torch.device):
                self.device = torch.device(value)
                self.cfg.device = str(self.device)
        super().to(device=self.device)
        return self

    @torch.no_grad()
    def check_decoder_norms(self) -> bool:
        """Whether every row of the dictionary has norm 1, to 1e-5."""
        return bool(((self.W_dec.norm(dim=1) - 1).abs() <= 1e-5).all())
