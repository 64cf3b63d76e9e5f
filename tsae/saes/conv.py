r"""A. Temporal convolution with boundaries and a hierarchical consistency loss.

    pre[t] = b_enc + sum_{j<w} g[t,j] (x[t-j] - b_dec) W_j,     W_j = A_j B_j (rank r) for j >= 1
    g[t,j] = prod_{i=t-j+1..t} (1 - b_i)
    L      = sum_g lambda_g sum_{l in lags} mean_t keep_g[t,l] D(z_g[t], z_g[t-l])

Latents fall into fast / sentence / document groups, each with its own share of k, so that slow
latents are not starved. ``keep_g`` is 0 across a boundary of the group's level or higher.
Window 1 without consistency and with one group is the static SAE exactly. Source: this project.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsae.kernels.sparse import Codes, group_energy, lag_dots
from tsae.saes import activations
from tsae.saes.base import SAE, Delta, Encoding, SAEConfig, State, Tokens, require
from tsae.saes.config import split_by_shares
from tsae.saes.consistency import block_of, info_nce, sampled_pairs
from tsae.saes.encoding import recent
from tsae.saes.registry import register
from tsae.sequences import DOCUMENT, FilledContext

GROUPS = ("fast", "sentence", "document")
GATES = ("none", "hard", "learned")
CONSISTENCY = ("none", "cosine", "l2", "contrastive")


@dataclass(frozen=True)
class ConvConfig(SAEConfig):
    """The static config plus window, gate, groups and consistency."""

    window: int = 4
    """Tokens the encoder sees: the current one and window - 1 predecessors."""
    lag_rank: int | None = 64
    """Rank of the weights of lags >= 1; None for full matrices."""
    gate: str = "hard"
    """What stops context: none (documents alone), hard (given boundaries), learned."""
    gate_level: int = 1
    """Lowest boundary level at which the hard gate closes: 1 sentence, 2 section, 3 document."""
    group_shares: tuple[float, ...] = (0.5, 0.3, 0.2)
    """Shares of latents in the fast, sentence and document groups; (1.0,) for one group."""
    k_shares: tuple[float, ...] | None = None
    """Shares of k reserved for each group; None for the latents' own shares."""
    group_levels: tuple[int, ...] = (1, 1, 3)
    """Boundary level at which each group's consistency stops; 3 throughout hides all but documents,
    so that a learned gate sees no given sentence."""
    consistency: str = "cosine"
    """Distance D: none, cosine, l2 (scale-free) or contrastive."""
    consistency_weights: tuple[float, ...] = (0.0, 0.01, 0.03)
    """lambda_g of each group."""
    lags: tuple[int, ...] = (1, 2, 4, 8)
    """Lags over which consistency is asked for."""
    pairs: int = 256
    """Token pairs a lag that the contrastive distance compares with each other."""
    temperature: float = 0.1
    """Divisor of the contrastive similarities, which are in units of the mean energy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        window, rank = self.window, self.lag_rank
        require(isinstance(window, int) and window >= 1, "window", window, "a whole number >= 1")
        require(rank is None or rank >= 1, "lag_rank", rank, "at least 1, or None for full")
        require(self.gate in GATES, "gate", self.gate, f"one of {', '.join(GATES)}")
        require(self.gate_level in (1, 2, 3), "gate_level", self.gate_level, "1, 2 or 3")
        kind = self.consistency
        require(kind in CONSISTENCY, "consistency", kind, f"one of {', '.join(CONSISTENCY)}")
        for field in ("group_shares", "k_shares"):
            shares = getattr(self, field)
            if shares is not None:
                ok = len(shares) in (1, 3) and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6
                require(ok, field, shares, "one or three positive shares that sum to 1")
        n = len(self.group_shares)
        require(self.k_shares is None or len(self.k_shares) == n, "k_shares", self.k_shares,
                f"as long as group_shares ({n})")  # fmt: skip
        for field in ("group_levels", "consistency_weights"):
            require(len(getattr(self, field)) >= n, field, getattr(self, field), f"{n} or more")
        require(self.k >= n, "k", self.k, f"at least the number of groups, {n}")
        require(min(self.lags) >= 1, "lags", self.lags, "whole numbers >= 1")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")


@register("conv", ConvConfig)
class ConvSAE(SAE):
    """The temporal convolution of the module's equations."""

    cfg: ConvConfig
    group_F: Tensor
    weight_G: Tensor

    def __init__(self, cfg: ConvConfig):
        super().__init__(cfg)
        d, F, lags = cfg.d_in, cfg.d_sae, cfg.window - 1
        self.sizes = split_by_shares(F, cfg.group_shares)
        group = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))
        self.register_buffer("group_F", group, persistent=False)
        weights = torch.tensor(cfg.consistency_weights[: len(self.sizes)], dtype=torch.float32)
        self.register_buffer("weight_G", weights, persistent=False)
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

    def make_activation(self) -> nn.Module:
        cfg = self.cfg
        sizes = split_by_shares(cfg.d_sae, cfg.group_shares)
        if len(sizes) == 1:
            return super().make_activation()
        ks = split_by_shares(cfg.k, cfg.k_shares or cfg.group_shares)
        if cfg.act == "topk":
            return activations.ReservedTopK(ks, sizes)
        each = zip(ks, sizes, strict=True)
        parts = [activations.make(cfg.act, min(k, n), n, cfg) for k, n in each]
        if cfg.act == "relu":
            return parts[0]
        return activations.Grouped(parts, sizes)

    @property
    def groups(self) -> dict[str, Tensor]:
        """Latent ids of the fast, sentence and document groups."""
        ids = torch.arange(self.cfg.d_sae, device=self.W_dec.device)
        if len(self.sizes) == 1:
            return {"all": ids}
        return dict(zip(GROUPS, ids.split(self.sizes), strict=True))

    @property
    def looks_back(self) -> bool:
        return self.cfg.window > 1

    @property
    def pairs_tokens(self) -> bool:
        """True for the contrastive distance, whose negatives are other sequences' tokens."""
        return self.cfg.consistency == "contrastive"

    # ---- boundaries -----------------------------------------------------------------------

    def closed(self, x_BTD: Tensor, context: FilledContext) -> Tensor:
        """``b`` [B, T] in [0, 1]: how far each token closes the context before it."""
        document = (context.boundary_BT >= DOCUMENT).to(x_BTD.dtype)
        if self.cfg.gate == "none":
            return document
        if self.cfg.gate == "hard":
            return (context.boundary_BT >= self.cfg.gate_level).to(x_BTD.dtype)
        step = nn.functional.pad(x_BTD[:, 1:] - x_BTD[:, :-1], (0, 0, 1, 0))
        learned = torch.sigmoid(step @ self.boundary_w + self.boundary_b)
        return torch.maximum(learned, document)

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
        gates = self.lag_gates(self.closed(u_BTD, context))
        if self.cfg.lag_rank is None:
            lagged = [
                (nn.functional.pad(u_BTD, (0, 0, j, 0))[:, : u_BTD.shape[1]] * g[..., None], W)
                for j, (g, W) in enumerate(zip(gates, self.W_lag, strict=True), start=1)
            ]
        else:
            lagged = self.low_rank(x_BTD, context, gates)
        T = tokens.x_BTD.shape[1]
        return Delta(tuple((u[:, -T:].flatten(0, 1), W) for u, W in lagged))

    def low_rank(
        self, x_BTD: Tensor, context: FilledContext, gates: list[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """All lags as one pair (u [B, T, lags r], B): one projection, whose blocks shift by their
        own lags, so that there is no [B, T, w, d] copy."""
        # The bias is projected apart, so that its gradient is a product of vectors.
        valid = context.mask_BT[..., None]
        low = torch.where(valid, x_BTD, 0.0) @ self.A_lag - valid * (self.b_dec @ self.A_lag)
        lows = low.unflatten(-1, (len(gates), -1)).unbind(2)  # one gradient, not one a lag
        lagged = [
            nn.functional.pad(low[:, : x_BTD.shape[1] - j], (0, 0, j, 0)) * g[..., None]
            for j, (low, g) in enumerate(zip(lows, gates, strict=True), start=1)
            if j < x_BTD.shape[1]
        ]
        if not lagged:
            return []
        u_BTR = torch.cat(lagged, dim=-1)
        return [(u_BTR, self.B_lag[:, : u_BTR.shape[-1]].t())]

    # ---- consistency ----------------------------------------------------------------------

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``consistency``, weighted."""
        cfg = self.cfg
        active = [g for g in range(len(self.sizes)) if cfg.consistency_weights[g] > 0]
        if cfg.consistency == "none" or not active:
            return {}
        mask, boundary = enc.mask_N, enc.context.boundary_BT.flatten()
        levels = [boundary >= cfg.group_levels[g] for g in range(len(self.sizes))]
        segment_NG = torch.stack(levels, 1).cumsum(0)
        lags = tuple(lag for lag in cfg.lags if lag < x_BTD.shape[1])
        pairs = [mask[lag:] & mask[:-lag] for lag in lags]
        keeps = [
            (segment_NG[lag:] == segment_NG[:-lag]) & pair[:, None]
            for lag, pair in zip(lags, pairs, strict=True)
        ]
        total = enc.target.new_zeros(())
        if cfg.consistency == "contrastive":
            starts = [sum(self.sizes[:g]) for g in range(len(self.sizes) + 1)]
            for lag, keep in zip(lags, keeps, strict=True):
                for g in active:
                    rows = sampled_pairs(keep[:, g], lag, cfg.pairs)
                    now, then = (
                        block_of(enc.codes, part, starts[g], starts[g + 1])
                        for part in (rows, rows - lag)
                    )
                    distance = info_nce(now, then, segment_NG[rows, g], cfg.temperature)
                    total = total + cfg.consistency_weights[g] * distance
            return {"consistency": total}
        energy_NG = self.energy(enc.codes)
        for lag, keep, dots_NG in zip(lags, keeps, self.dots(enc.codes, lags), strict=True):
            now, then, both = energy_NG[lag:], energy_NG[:-lag], dots_NG[lag:]
            if cfg.consistency == "cosine":
                # The epsilon keeps the root's gradient finite where a group is silent.
                distance = 1.0 - both / (now * then + 1e-6).sqrt()
            else:
                distance = 1.0 - 2.0 * both / (now + then + 1e-6)
            total = total + (distance * keep).sum(0) @ self.weight_G
        return {"consistency": total / enc.n}

    def energy(self, codes: Codes | Tensor) -> Tensor:
        """``|z_g|^2`` [N, G]."""
        if not isinstance(codes, Tensor):
            return group_energy(codes, self.group_F, len(self.sizes))
        return torch.stack([b.square().sum(1) for b in codes.split(self.sizes, 1)], 1)

    def dots(self, codes: Codes | Tensor, lags: tuple[int, ...]) -> Tensor:
        """``z_g[t] . z_g[t-lag]`` [L, N, G] for every lag."""
        if not isinstance(codes, Tensor):
            return lag_dots(codes, lags, self.group_F, len(self.sizes))
        products = [codes * nn.functional.pad(codes[:-lag], (0, 0, lag, 0)) for lag in lags]
        blocks = [torch.stack([b.sum(1) for b in p.split(self.sizes, 1)], 1) for p in products]
        return torch.stack(blocks)
