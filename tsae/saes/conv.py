r"""A. Temporal convolution with boundaries and a hierarchical consistency loss.

    pre[t] = b_enc + sum_{j<w} g[t,j] (x[t-j] - b_dec) W_j,     W_j = A_j B_j (rank r) for j >= 1
    g[t,j] = prod_{i=t-j+1..t} (1 - b_i)
    loss   = the static one + every prefix's error (``nested``)
             + sum_g lambda_g D_g + guard sum_i relu(rate_i - 1/2)
             + predict FVU of (1 - b_t) h[t] for x[t] - b_dec             (learned gates)

The dictionary is document, section (here ``sentence``), then fast latents. A group's window closes,
b_i = 1, at boundaries of its own level or higher; the lags' rank is shared out among the groups.
Each group has its own share of k; ``nested`` prefixes in its place cost reconstruction. D is
InfoNCE (``contrastive``) between centred codes at t and t - lag of the group's own stretch, with
other documents as negatives, or 1 - their mean ``cosine`` over four lags, which codes that are
always on satisfy: hence the guard, whose value is what rates exceed one half by, and whose gradient
lowers those codes. A learned gate is asked to be open where h, a linear reading of the window's
mean, predicts the token. Window 1 with one group and no consistency is static.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsae.saes import activations
from tsae.saes.base import SAE, Delta, Encoding, SAEConfig, State, Tokens
from tsae.saes.config import require, split_by_shares
from tsae.saes.consistency import block, cosine_distance, excess_rate
from tsae.saes.encoding import recent
from tsae.saes.nested import prefix_error
from tsae.saes.passages import contrast, starts
from tsae.saes.registry import register
from tsae.saes.shares import Grouped, ReservedTopK
from tsae.sequences import DOCUMENT, FilledContext

GROUPS = ("fast", "sentence", "document")
GATES = ("none", "hard", "learned")
CONSISTENCY = ("none", "cosine", "contrastive")
LAGS = (1, 2, 4, 8)
"""Over which cosine is asked for."""


@dataclass(frozen=True)
class ConvConfig(SAEConfig):
    """The static config plus window, gate, groups and consistency. What is given for each group is
    in the order fast, section, document; one group is a document's."""

    window: int = 8
    """Tokens the encoder sees: the current one and window - 1 predecessors."""
    lag_rank: int | None = 64
    """Rank of the weights of lags >= 1; None for full matrices."""
    gate: str = "hard"
    """What stops context: none (documents alone), hard (given boundaries), learned."""
    gate_level: int | None = None
    """Lowest boundary level at which every hard gate closes (1 sentence, 2 section, 3 document);
    None for each group's own."""
    group_shares: tuple[float, ...] = (3 / 4, 3 / 16, 1 / 16)
    """Shares of latents in the groups; (1.0,) for one group."""
    group_levels: tuple[int, ...] = (1, 2, 3)
    """Boundary level at which each group's window and consistency stop."""
    nested: bool = False
    """Whether each prefix of the dictionary reconstructs; else each group has the share of k that it
    has of the latents."""
    consistency: str = "contrastive"
    """Distance D: none, cosine or contrastive."""
    consistency_weights: tuple[float, ...] = (0.0, 0.0025, 0.005)
    """lambda_g of each group."""
    longest_lag: int = 64
    """Largest lag of the contrastive pairs, which are uniform in its logarithm."""
    pairs: int = 256
    """Pairs of tokens that the contrastive distance compares with each other."""
    temperature: float = 0.1
    """Divisor of the contrastive cosines."""
    guard: float = 0.05
    """Weight of the guard against latents that are on at more than half of all tokens."""
    predict: float = 0.05
    """Weight of the prediction that a learned gate is asked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        window, rank, level = self.window, self.lag_rank, self.gate_level
        require(isinstance(window, int) and window >= 1, "window", window, "a whole number >= 1")
        require(rank is None or rank >= 1, "lag_rank", rank, "at least 1, or None for full")
        require(self.gate in GATES, "gate", self.gate, f"one of {', '.join(GATES)}")
        require(level in (None, 1, 2, 3), "gate_level", level, "1, 2, 3, or None for each group's")
        kind = self.consistency
        require(kind in CONSISTENCY, "consistency", kind, f"one of {', '.join(CONSISTENCY)}")
        shares, n = self.group_shares, len(self.group_shares)
        ok = n in (1, 3) and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6
        require(ok, "group_shares", shares, "one or three positive shares that sum to 1")
        for field in ("group_levels", "consistency_weights"):
            require(len(getattr(self, field)) >= n, field, getattr(self, field), f"{n} or more")
        require(self.k >= n, "k", self.k, f"at least the number of groups, {n}")
        for field in ("longest_lag", "pairs"):
            value = getattr(self, field)
            require(isinstance(value, int) and value > 0, field, value, "a whole number above 0")
        for field in ("guard", "predict"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "at least 0")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")


@register("conv", ConvConfig)
class ConvSAE(SAE):
    """The temporal convolution of the module's equations."""

    cfg: ConvConfig
    group_F: Tensor
    mean_F: Tensor

    def __init__(self, cfg: ConvConfig):
        super().__init__(cfg)
        d, F, lags, n = cfg.d_in, cfg.d_sae, cfg.window - 1, len(cfg.group_shares)
        self.sizes = split_by_shares(F, cfg.group_shares)[::-1]
        self.levels = cfg.group_levels[-n:][::-1]
        self.weights = cfg.consistency_weights[-n:][::-1]
        group = torch.repeat_interleave(torch.arange(n), torch.tensor(self.sizes))
        self.register_buffer("group_F", group, persistent=False)
        self.register_buffer("mean_F", torch.zeros(F))
        # Lags start small, so that training starts near the static SAE but no weight is zero.
        if cfg.lag_rank is None:
            self.W_lag = nn.Parameter(0.1 * self.W_enc.detach().repeat(lags, 1, 1) / max(lags, 1))
        else:
            r = min(cfg.lag_rank, d)
            self.A_lag = nn.Parameter(torch.randn(d, lags * r) / d**0.5)
            # Stored by latent, so that the sparse products of the gradient copy nothing.
            self.B_lag = nn.Parameter(torch.randn(F, lags * r) * 0.1 / max(lags * r, 1) ** 0.5)
        if cfg.gate == "learned":
            self.boundary_w = nn.Parameter(torch.randn(d) * 0.1 / d**0.5)
            self.boundary_b = nn.Parameter(torch.tensor(-2.0))
            if cfg.predict > 0 and cfg.window > 1:
                self.W_predict = nn.Parameter(torch.eye(d))

    def make_activation(self) -> nn.Module:
        cfg = self.cfg
        sizes = split_by_shares(cfg.d_sae, cfg.group_shares)[::-1]
        if len(sizes) == 1 or cfg.nested:
            return super().make_activation()
        ks = split_by_shares(cfg.k, cfg.group_shares)[::-1]
        if cfg.act == "topk":
            return ReservedTopK(ks, sizes)
        each = zip(ks, sizes, strict=True)
        parts = [activations.make(cfg.act, min(k, n), n, cfg) for k, n in each]
        if cfg.act == "relu":
            return parts[0]
        return Grouped(parts, sizes)

    @property
    def groups(self) -> dict[str, Tensor]:
        """Latent ids of the document, sentence (section) and fast groups."""
        ids = torch.arange(self.cfg.d_sae, device=self.W_dec.device)
        if len(self.sizes) == 1:
            return {"all": ids}
        return dict(zip(GROUPS[::-1], ids.split(self.sizes), strict=True))

    @property
    def looks_back(self) -> bool:
        return self.cfg.window > 1

    @property
    def pairs_tokens(self) -> bool:
        """True for the contrastive distance, whose negatives are other sequences' tokens, and with
        the guard, whose rates are those of the whole batch."""
        guarded = self.cfg.consistency != "none" and self.cfg.guard > 0
        return guarded or self.cfg.consistency == "contrastive"

    # ---- boundaries -----------------------------------------------------------------------

    def closed(self, u_BTD: Tensor, context: FilledContext, level: int | None = None) -> Tensor:
        """``b`` [B, T] in [0, 1]: how far each token closes the context before it; ``level``: where
        a hard gate does, None for where any group's does."""
        document = (context.boundary_BT >= DOCUMENT).to(u_BTD.dtype)
        if self.cfg.gate == "none":
            return document
        if self.cfg.gate == "hard":
            level = level or self.cfg.gate_level or min(self.levels)
            return (context.boundary_BT >= level).to(u_BTD.dtype)
        step = nn.functional.pad(u_BTD[:, 1:] - u_BTD[:, :-1], (0, 0, 1, 0))
        return torch.maximum(torch.sigmoid(step @ self.boundary_w + self.boundary_b), document)

    def lag_gates(self, closed_BT: Tensor) -> list[Tensor]:
        """``g[t, j]`` [B, T] for j = 1 … w-1; tokens before the sequence have gate 0."""
        gates, g = [], torch.ones_like(closed_BT)
        for j in range(1, self.cfg.window):
            # g[t, j] = (1 - b_t) g[t-1, j-1]
            shifted = g if j == 1 else nn.functional.pad(g[:, :-1], (1, 0))
            g = (1.0 - closed_BT) * shifted
            gates.append(g)
        return gates

    # ---- encoder --------------------------------------------------------------------------

    def delta(self, tokens: Tokens, state: State | None) -> Delta:
        if self.cfg.window == 1:
            return Delta()
        x_BTD, context = recent(tokens.x_BTD, tokens.context, state, self.cfg.window)
        u_BTD = tokens.u_BTD if state is None else self.centred(x_BTD, context)
        each = self.cfg.gate == "hard" and self.cfg.gate_level is None
        levels = self.levels if each else (None,)
        gates = [self.lag_gates(self.closed(u_BTD, context, level)) for level in levels]
        if self.cfg.lag_rank is None:
            lagged = [
                (shifted(u_BTD, j) * g_BT[..., None], W if len(gates) == 1 else own * W)
                for group, of_group in enumerate(gates)
                for own in [(self.group_F == group).to(u_BTD.dtype)]
                for j, (g_BT, W) in enumerate(zip(of_group, self.W_lag, strict=True), start=1)
            ]
        else:
            lagged = self.low_rank(x_BTD, context, gates)
        T = tokens.x_BTD.shape[1]
        return Delta(tuple((u[:, -T:].flatten(0, 1), W) for u, W in lagged))

    def low_rank(
        self, x_BTD: Tensor, context: FilledContext, gates: list[list[Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """All lags as one pair (u [B, T, lags r], B): one projection, whose blocks shift by their
        own lags, so that there is no [B, T, w, d] copy."""
        lags, T = self.cfg.window - 1, x_BTD.shape[1]
        # The bias is projected apart, so that its gradient is a product of vectors.
        valid = context.mask_BT[..., None]
        low = torch.where(valid, x_BTD, 0.0) @ self.A_lag - valid * (self.b_dec @ self.A_lag)
        lows = low.unflatten(-1, (lags, -1)).unbind(2)  # one gradient, not one a lag
        rank = lows[0].shape[-1]
        shares = split_by_shares(rank, (1 / len(gates),) * len(gates))
        group_r = torch.repeat_interleave(torch.arange(len(gates)), torch.tensor(shares))
        group_r = group_r.to(x_BTD.device)
        lagged = [
            nn.functional.pad(low[:, : T - j], (0, 0, j, 0))
            * torch.stack([of_group[j - 1] for of_group in gates], -1)[..., group_r]
            for j, low in enumerate(lows, start=1)
            if j < T
        ]
        if not lagged:
            return []
        u_BTR, B_FR = torch.cat(lagged, dim=-1), self.B_lag[:, : len(lagged) * rank]
        if len(gates) > 1:
            B_FR = B_FR * (self.group_F[:, None] == group_r.repeat(len(lagged)))
        return [(u_BTR, B_FR.t())]

    # ---- losses ---------------------------------------------------------------------------

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``prefixes``, ``consistency``, ``guard`` and ``predict``, weighted."""
        cfg, terms = self.cfg, {}
        if cfg.nested and len(self.sizes) > 1:
            weights = [1.0] * (len(self.sizes) - 1)
            error = prefix_error(enc.codes, enc.target, self.W_dec, self.sizes, weights)
            terms["prefixes"] = error / (enc.n * cfg.d_in)
        if cfg.consistency != "none" and max(self.weights) > 0:
            terms["consistency"] = self.unlike(enc)
        if cfg.consistency != "none" and cfg.guard > 0:
            terms["guard"] = cfg.guard * excess_rate(enc.codes, enc.n)
        if hasattr(self, "W_predict"):
            terms["predict"] = cfg.predict * self.unpredicted(enc)
        return terms

    def unlike(self, enc: Encoding) -> Tensor:
        """``sum_g lambda_g D_g``; InfoNCE reads codes less their running mean."""
        cfg, total = self.cfg, enc.target.new_zeros(())
        start = 0
        for size, level, weight in zip(self.sizes, self.levels, self.weights, strict=True):
            if weight > 0:
                z_NG = block(enc.codes, start, start + size)
                if cfg.consistency == "cosine":
                    segment_N = starts(enc.context, level)
                    far = cosine_distance(z_NG, segment_N, enc.mask_N, LAGS)
                else:
                    mean_G = self.mean_F[start : start + size]
                    if self.training:
                        mean_G.lerp_(z_NG.detach().sum(0) / enc.n, 0.01 if mean_G.any() else 1.0)
                    given = enc.context, cfg.pairs, cfg.longest_lag, cfg.temperature, level, True
                    far = contrast(z_NG - mean_G.clone(), *given)
                total = total + weight * far
            start += size
        return total

    def unpredicted(self, enc: Encoding) -> Tensor:
        """Share of a token that ``(1 - b) h`` does not explain, h being a linear reading of the
        mean of the w - 1 tokens before it in its document."""
        u_BTD = enc.target.detach().unflatten(0, enc.context.mask_BT.shape)
        same = self.lag_gates((enc.context.boundary_BT >= DOCUMENT).to(u_BTD.dtype))
        past = [shifted(u_BTD, j) * g[..., None] for j, g in enumerate(same, start=1)]
        mean_BTD = sum(past) / torch.stack(same).sum(0).clamp_min(1.0)[..., None]
        open_BT = 1.0 - self.closed(u_BTD, enc.context)
        h_BTD = open_BT[..., None] * (mean_BTD @ self.W_predict)
        missed = ((u_BTD - h_BTD) * enc.context.mask_BT[..., None]).square().sum()
        return missed / u_BTD.square().sum().clamp_min(1e-8)


def shifted(u_BTD: Tensor, j: int) -> Tensor:
    """``u[t - j]``, 0 before the sequence."""
    return nn.functional.pad(u_BTD, (0, 0, j, 0))[:, : u_BTD.shape[1]]
