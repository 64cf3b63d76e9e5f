r"""Temporal Feature Analysis: a dense part predicted from context, a sparse part that is new.

    u    = x - b_dec,     z_in = relu(W_dec u / (4 sqrt d))
    z_p' = relu(attention(query z_in[t], keys and values z_in[<t]))    4 heads, one layer
    z_p  = z_p' <W_dec^T z_p', u> / |W_dec^T z_p'|^2,      x_p = z_p W_dec
    z    = act((u - x_p) W_enc + b_enc),      x_hat = x_p + z W_dec + b_dec

So it is the static SAE of ``x - x_p``: ``encode``, ``z``, the pre-activations, L0, sparsity and
AuxK are those of the sparse, new part, ``decode(z) = z W_dec + b_dec`` is its reconstruction, and
**x_hat = decode(z) + x_p**, of which ``forward`` gives ``beside["x_p"]`` [B, T, d]. z_p is dense
and does not count in L0, so equal L0 flatters this variant: report ``predicted_density`` (share of
z_p that is not 0) beside it. x_p does look at x[t]: its direction comes from the query and the
past, its length from a projection on u itself.
Keys are the valid tokens of the same document, at most ``window`` back, and an empty one (the
published shift by one token starts with a zero code) that is always there. ``n_heads=0`` is the
static SAE exactly.

Source: Lubana, Rager, Hindupur et al. (arXiv 2511.01836) and their code
(github.com/eslubana/TemporalFeatureAnalysis: sae/saeTemporal.py, sae/utils.py): width 4d, TopK 192,
AdamW 1e-3 (beta 0.9, 0.95; weight decay 1e-4), full query, key and value widths. Restated here:
their rows of D start with norm sqrt d and lambda = 1/(4d); with unit-norm rows the same z_in has
1/(4 sqrt d). Their keys' and values' biases are left out, which changes nothing: softmax is blind
to the first, the output's bias holds the second. The sparse part has its own encoder, as every
variant here has; theirs reuses lambda D.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsae.saes.base import SAE, Delta, Encoding, SAEConfig, State, Tokens
from tsae.saes.config import require
from tsae.saes.registry import register
from tsae.sequences import DOCUMENT, FilledContext, SequenceContext


@dataclass(frozen=True)
class PredictiveConfig(SAEConfig):
    """The static config plus the attention layer."""

    n_heads: int = 4
    """Heads of the attention layer; 0 switches the prediction off."""
    query_width: int | None = None
    """Width of all heads' queries and keys together; None for d_sae (published)."""
    value_width: int | None = None
    """Width of all heads' values together; None for d_sae (published)."""
    window: int = 128
    """Earlier tokens that attention may read, and so the size of a stream's cache."""

    def __post_init__(self) -> None:
        super().__post_init__()
        heads = self.n_heads
        require(isinstance(heads, int) and heads >= 0, "n_heads", heads, "a whole number >= 0")
        require(self.window >= 1, "window", self.window, "at least 1")
        for field in ("query_width", "value_width") if heads else ():
            value = getattr(self, field)
            width = self.d_sae if value is None else value
            allowed = f"a multiple of n_heads={heads} (None: d_sae={self.d_sae})"
            require(width > 0 and width % heads == 0, field, value, allowed)


def linear(n_in: int, n_out: int, row_norm: float, bias: bool) -> nn.Linear:
    """A layer whose rows start with norm ``row_norm`` (published start), bias 0."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(row_norm * nn.functional.normalize(torch.randn(n_out, n_in), dim=1))
        if bias:
            layer.bias.zero_()
    return layer


@register("predictive", PredictiveConfig)
class PredictiveSAE(SAE):
    """The predicted and the new part of the module's equations."""

    cfg: PredictiveConfig

    def __init__(self, cfg: PredictiveConfig):
        super().__init__(cfg)
        F, heads = cfg.d_sae, cfg.n_heads
        if heads:
            width = cfg.query_width or F
            value_width = cfg.value_width or F
            self.query = linear(F, width, (width // heads) ** -0.5, bias=True)
            self.key = linear(F, width, (width // heads) ** -0.5, bias=False)
            self.value = linear(F, value_width, (value_width // heads) ** -0.5, bias=False)
            self.output = linear(value_width, F, F**-0.5, bias=True)

    # ---- the predicted part ---------------------------------------------------------------

    def split(self, a_BTW: Tensor) -> Tensor:
        """[B, T, heads * w] -> [B, heads, T, w]."""
        return a_BTW.unflatten(-1, (self.cfg.n_heads, -1)).transpose(1, 2)

    def readable(self, context: FilledContext) -> Tensor:
        """[B, T, S]: may token t read token s: s earlier, valid, in t's document and window."""
        document_BT = (context.boundary_BT >= DOCUMENT).cumsum(1)
        t_T = torch.arange(document_BT.shape[1], device=document_BT.device)
        age_TS = t_T[:, None] - t_T
        near_TS = (age_TS > 0) & (age_TS <= self.cfg.window)
        same_BTS = document_BT[:, :, None] == document_BT[:, None]
        return near_TS & same_BTS & context.mask_BT[:, None]

    def attend(self, q_BHTW: Tensor, k_BHSW: Tensor, v_BHSV: Tensor, read_BTS: Tensor) -> Tensor:
        """Values [B, T, V] by softmax(q k / sqrt w) over the readable keys and the empty one."""
        scores = q_BHTW @ k_BHSW.transpose(-1, -2) / q_BHTW.shape[-1] ** 0.5
        scores = scores.masked_fill(~read_BTS[:, None], -torch.inf)
        # The empty key scores 0 and its value is 0: it only takes its share of the weight.
        scores = nn.functional.pad(scores, (1, 0))
        weights = scores.softmax(-1)[..., 1:]
        return (weights @ v_BHSV).transpose(1, 2).flatten(-2)

    def codes_in(self, u_BTD: Tensor) -> Tensor:
        """``z_in`` [B, T, F]."""
        return (u_BTD @ self.W_dec.t() / (4 * self.cfg.d_in**0.5)).relu()

    def projected(self, attended_BTV: Tensor, u_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """``z_p`` [B, T, F] and ``x_p`` [B, T, d] from what attention has read."""
        z_BTF = self.output(attended_BTV).relu()
        x_BTD = z_BTF @ self.W_dec
        along = (x_BTD * u_BTD).sum(-1, keepdim=True)
        scale = along / x_BTD.square().sum(-1, keepdim=True).clamp_min(1e-12)
        return z_BTF * scale, x_BTD * scale

    def parts(self, u_BTD: Tensor, context: FilledContext, state: State | None = None):
        """``z_p`` [B, T, F] and ``x_p`` [B, T, d] from ``x - b_dec``, zero at invalid tokens.

        A stream keeps the keys and values of the last ``window`` tokens in circular buffers.
        """
        z_in = self.codes_in(u_BTD)
        q, k, v = (layer(z_in) for layer in (self.query, self.key, self.value))
        if state is None:
            q, k, v = (self.split(part) for part in (q, k, v))
            attended = self.attend(q, k, v, self.readable(context))
            return self.projected(attended, u_BTD)
        S = self.cfg.window
        if not state:
            state["k"], state["v"] = (
                part.new_zeros(len(part), S, part.shape[2]) for part in (k, v)
            )
            state["read"] = context.mask_BT.new_zeros(len(k), S)
            state["slot"] = 0
        state["read"] &= context.boundary_BT < DOCUMENT
        keys, values = self.split(state["k"]), self.split(state["v"])
        attended = self.attend(self.split(q), keys, values, state["read"][:, None])
        now = {"k": k[:, 0], "v": v[:, 0], "read": context.mask_BT[:, 0]}
        for name, part in now.items():
            state[name][:, state["slot"]] = part
        state["slot"] = (state["slot"] + 1) % S
        return self.projected(attended, u_BTD)

    def predicted(
        self, x_BTD: Tensor, context: SequenceContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """``z_p`` [B, T, F] and ``x_p`` [B, T, d]; zero at invalid tokens and without heads."""
        context = self.checked(x_BTD, context)
        if not self.cfg.n_heads:
            return x_BTD.new_zeros(*x_BTD.shape[:2], self.cfg.d_sae), torch.zeros_like(x_BTD)
        return self.parts(self.centred(x_BTD, context), context)

    @property
    def looks_back(self) -> bool:
        return self.cfg.n_heads > 0

    def delta(self, tokens: Tokens, state: State | None) -> Delta:
        """The codes are those of the static SAE of ``x - x_p``."""
        if not self.cfg.n_heads:
            return Delta()
        z_p, x_p = self.parts(tokens.u_BTD, tokens.context, state)
        beside = {"x_p": x_p.flatten(0, 1)}
        return Delta(x_BTD=tokens.x_BTD - x_p, beside=beside, aux={"z_p": z_p})

    def reported(self, enc: Encoding) -> dict[str, Tensor]:
        """Also ``predicted_density``: the share of z_p that is not 0 at valid tokens."""
        z_p = enc.aux.get("z_p", enc.target.new_zeros(()))
        density = (z_p.detach() != 0).sum() / (enc.n * self.cfg.d_sae)
        return super().reported(enc) | {"predicted_density": density}
