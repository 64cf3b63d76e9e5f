r"""Temporal Feature Analysis: a dense part predicted from context, a sparse part that is new.

    u    = x - b_dec,     z_in = relu(W_dec u / (4 sqrt d))
    z_p' = relu(attention(query z_in[t], keys and values z_in[<t]))    4 heads, one layer
    z_p  = z_p' <W_dec^T z_p', u> / |W_dec^T z_p'|^2,      x_p = z_p W_dec
    z    = act((u - x_p) W_enc + b_enc),      x_hat = x_p + z W_dec + b_dec

So it is the static SAE of ``x - x_p``: ``encode``, ``z``, the pre-activations, L0, sparsity and
AuxK are those of the sparse, new part, ``decode(z) = z W_dec + b_dec`` is its reconstruction, and
**x_hat = decode(z) + x_p**. ``forward`` gives ``extra["z_p"]`` [B, T, F] and ``extra["x_p"]``
[B, T, d]. z_p is dense and does not count in L0, so equal L0 flatters this variant: report
``predicted_density`` (share of z_p that is not 0) beside it. x_p does look at x[t]: its
direction comes from the query and the past, its length from a projection on u itself.
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

from tsae.saes.base import (
    DOCUMENT,
    SAE,
    FilledContext,
    SAEConfig,
    SAEOutput,
    SequenceContext,
    Stream,
    require,
)
from tsae.saes.registry import register


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

    def predicted(
        self, x_BTD: Tensor, context: SequenceContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """``z_p`` [B, T, F] and ``x_p`` [B, T, d]; zero at invalid tokens and without heads."""
        context = self.checked(x_BTD, context)
        if not self.cfg.n_heads:
            return x_BTD.new_zeros(*x_BTD.shape[:2], self.cfg.d_sae), torch.zeros_like(x_BTD)
        u_BTD = self.centred(x_BTD, context)
        z_in = self.codes_in(u_BTD)
        q, k, v = (self.split(layer(z_in)) for layer in (self.query, self.key, self.value))
        return self.projected(self.attend(q, k, v, self.readable(context)), u_BTD)

    # ---- the interface: a static SAE of what is not predicted -----------------------------

    def encode(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        """Sparse codes z [B, T, F] of the new part; zero at invalid tokens."""
        return self.encode_new(x_BTD - self.predicted(x_BTD, context)[1], context)

    def encode_new(self, new_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        """Codes of ``x - x_p``, as the static SAE has them."""
        return super().encode(new_BTD, context)

    def forward(self, x_BTD: Tensor, context: SequenceContext | None = None) -> SAEOutput:
        z_p, x_p = self.predicted(x_BTD, context)
        new = super().forward(x_BTD - x_p, context)
        return new._replace(x_hat=new.x_hat + x_p, extra={"z_p": z_p, "x_p": x_p})

    def loss(self, x_BTD: Tensor, context: SequenceContext | None = None) -> dict[str, Tensor]:
        """The static terms of ``x - x_p``, whose ``mse`` is that of x_hat; and, not part of the
        total, ``predicted_density``: the share of z_p that is not 0 at valid tokens."""
        context = self.checked(x_BTD, context)
        z_p, x_p = self.predicted(x_BTD, context)
        terms = super().loss(x_BTD - x_p, context)
        count = context.mask_BT.sum().clamp_min(1) * self.cfg.d_sae
        terms["predicted_density"] = (z_p.detach() != 0).sum() / count
        return terms

    def stream(self, batch_size: int) -> "PredictiveStream":
        return PredictiveStream(self, batch_size)


class PredictiveStream(Stream):
    """A preallocated circular cache of the keys and values of the last ``window`` tokens."""

    sae: PredictiveSAE

    def __init__(self, sae: PredictiveSAE, batch_size: int):
        super().__init__(sae, batch_size)
        if sae.cfg.n_heads:
            S, new = sae.cfg.window, sae.b_dec.new_zeros
            self.key_BSW = new(batch_size, S, sae.key.out_features)
            self.value_BSV = new(batch_size, S, sae.value.out_features)
            self.readable_BS = new(batch_size, S, dtype=torch.bool)
        self.x_p_BD = sae.b_dec.new_zeros(batch_size, sae.cfg.d_in)
        self.t = 0

    @torch.no_grad()
    def advance(self, x_BD: Tensor, boundary_B: Tensor | None, mask_B: Tensor) -> Tensor:
        """Codes [B, F] of the next token; ``x_p_BD`` then holds its predicted part."""
        sae = self.sae
        if not sae.cfg.n_heads:
            return super().advance(x_BD, boundary_B, mask_B)
        if boundary_B is not None:
            self.readable_BS &= (boundary_B < DOCUMENT)[:, None]
        u_B1D = torch.where(mask_B[:, None], x_BD - sae.b_dec, 0.0)[:, None]
        z_in = sae.codes_in(u_B1D)
        keys, values = sae.split(self.key_BSW), sae.split(self.value_BSV)
        attended = sae.attend(sae.split(sae.query(z_in)), keys, values, self.readable_BS[:, None])
        self.x_p_BD = sae.projected(attended, u_B1D)[1][:, 0]
        slot = self.t % sae.cfg.window
        self.key_BSW[:, slot] = sae.key(z_in)[:, 0]
        self.value_BSV[:, slot] = sae.value(z_in)[:, 0]
        self.readable_BS[:, slot] = mask_B
        self.t += 1
        new_B1D = (x_BD - self.x_p_BD)[:, None]
        return sae.encode_new(new_B1D, SequenceContext(mask_B[:, None]))[:, 0]
