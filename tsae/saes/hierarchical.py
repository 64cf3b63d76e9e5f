r"""E. Levels of latents, slower upwards, and a sparse matrix of what the upper ones are composed of.

    h1 = act((x - b) W_enc + b_enc)                     F1 latents: the codes z
    h2 = act2((mean h1 - b2) W_e2)                      F2 = F1 / ratio parents
    x1 = h1 D1 + b,    ĥ1 = h2 D2,    x2 = ĥ1 D1 + b    rows of D1 and D2 have norm 1
    L  = mse(x1) + mu mse(x2) + lambda_c mean_t |W mean h1 - h2|^2 / d

``mean`` is over the valid tokens of the sentence, section or document so far (``scope``), so that a
parent is slower than its children; with scope ``token`` it is h1 itself. A third level does to h2
over the document what the second does to h1. ``W`` [F2, F1] is the composition matrix, apart from
the encoder; it minimises the same error plus lambda_w |W|_1 by proximal steps
(:mod:`tsae.saes.composition`), so that lambda_c says how far composition shapes the codes, and
lambda_w how sparse W is. Because the rows of D1 and D2 have norm 1, a parent's value is in the unit
of x, so the composition error is divided by d as the MSE is, and lambda_c means the same for every
F2; without that norm h2 could shrink until the error vanished. One level is the static SAE exactly.
Source: this project.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tsae.kernels import sparse
from tsae.kernels.leaky import leaky_mean
from tsae.kernels.sparse import Codes
from tsae.saes import activations
from tsae.saes.base import Encoding, Phase, State, Tokens
from tsae.saes.bridge import Growing, GrowingConfig
from tsae.saes.composition import Composition
from tsae.saes.config import require
from tsae.saes.registry import register
from tsae.saes.terms import auxk, count_idle, sparsity
from tsae.sequences import DOCUMENT, SECTION, SENTENCE, FilledContext, SequenceContext

PHASES = ("level1", "level2", "joint")
UPPER = ("uppers.",)
SCOPES = {"token": 0, "sentence": SENTENCE, "section": SECTION, "document": DOCUMENT}
NEARLY = 1 - 2**-10
"""Weight in a mean of the token before over this one's: all but 1, for which no sum is closed."""


@dataclass(frozen=True)
class HierarchicalConfig(GrowingConfig):
    """The static config, which is level 1's, plus the upper levels and their composition."""

    levels: int = 2
    """1 (the static SAE), 2, or 3."""
    ratio: int = 8
    """Latents of a level for each of the next."""
    scope: str = "section"
    """Over what level 2 reads the mean of level 1: token, sentence, section or document."""
    prior: float = 0.0
    """Tokens without any code that such a mean begins with."""
    act2: str | None = None
    """Activation of the upper levels; None for that of level 1."""
    k2: int | None = None
    """Active parents per token, as k for level 1; None for k / 4. Level 3 has half of them."""
    mu: float = 0.5
    """Weight of the reconstruction from an upper level alone."""
    lambda_c: float = 0.1
    """Weight of the composition error |W h1 - h2|^2 / d; at 0, W is fitted but shapes no code."""
    lambda_w: float = 0.1
    """Correlation of a child with what the others leave of a parent, below which W is 0."""
    curriculum: tuple[str, ...] = ("level1", "level2", "joint")
    """Phases in order; ("joint",) is no curriculum."""
    shares: tuple[float, ...] = (0.4, 0.3, 0.3)
    """Proportions of the steps that level1, level2 and joint get, left-out phases aside."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.levels in (1, 2, 3), "levels", self.levels, "1, 2 or 3")
        most = self.d_sae if self.levels < 3 else int(self.d_sae**0.5)
        ok = isinstance(self.ratio, int) and 1 <= self.ratio <= most
        require(ok, "ratio", self.ratio, f"a whole number from 1 to {most} (d_sae={self.d_sae})")
        require(self.scope in SCOPES, "scope", self.scope, f"one of {', '.join(SCOPES)}")
        allowed = f"one of {', '.join(activations.NAMES)}, or None"
        require(self.act2 in (None, *activations.NAMES), "act2", self.act2, allowed)
        ok = self.k2 is None or (isinstance(self.k2, int) and 1 <= self.k2 <= self.n_parents)
        require(ok, "k2", self.k2, f"None or a whole number from 1 to F2={self.n_parents}")
        for field in ("mu", "lambda_c", "lambda_w", "prior"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "at least 0")
        ordered = tuple(name for name in PHASES if name in tuple(self.curriculum))
        ok = bool(ordered) and ordered == tuple(self.curriculum)
        require(ok, "curriculum", self.curriculum, f"some of {', '.join(PHASES)}, in this order")
        ok = len(self.shares) == 3 and all(share > 0 for share in self.shares)
        require(ok, "shares", self.shares, f"3 numbers above 0, for {', '.join(PHASES)}")

    @property
    def n_parents(self) -> int:
        """F2."""
        return self.d_sae // self.ratio

    @property
    def parents_per_token(self) -> int:
        """``k2``, or k / 4 where that is not given."""
        return self.k2 or min(max(1, round(self.k / 4)), self.n_parents)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Level 1 alone, the upper ones on a frozen level 1, all: what ``curriculum`` names."""
        if self.levels == 1:
            return super().phases
        share = dict(zip(PHASES, self.shares, strict=True))
        total = sum(share[name] for name in self.curriculum)
        made = {
            "level1": Phase("level1", share["level1"] / total, frozen=UPPER),
            # Level 1's threshold and the weight of its sparsity would drift.
            "level2": Phase("level2", share["level2"] / total, UPPER, codes=False),
            "joint": Phase("joint", share["joint"] / total),
        }
        return tuple(made[name] for name in self.curriculum)


class Level(nn.Module):
    """An upper level: ``h' = act((mean h - b) W_enc)``, ``ĥ = h' W_dec``, and its composition."""

    act: Any
    idle: Tensor
    sparsity_weight: Tensor

    def __init__(
        self, cfg: HierarchicalConfig, name: str, n_below: int, n: int, k: int, scope: str
    ):
        super().__init__()
        self.name = name
        W_dec = nn.functional.normalize(torch.randn(n, n_below), dim=1)
        self.W_enc = nn.Parameter(W_dec.t().contiguous().clone())
        self.b = nn.Parameter(torch.zeros(n_below))
        self.W_dec = nn.Parameter(W_dec)
        self.k, self.scope, self.prior = k, SCOPES[scope], cfg.prior
        self.act = activations.make(cfg.act2 or cfg.act, k, n, cfg)
        self.register_buffer("idle", torch.zeros(n, dtype=torch.int64))
        self.register_buffer("sparsity_weight", torch.tensor(float(cfg.l1)))
        self.composer = Composition(n_below, n, cfg.lambda_w)

    def mean(self, a_NX: Tensor, context: FilledContext, state: State | None = None) -> Tensor:
        """The mean [N, X] of ``a`` over the valid tokens of the passage so far."""
        if self.scope == 0:
            return a_NX
        a_BTX, keep_BT = a_NX.unflatten(0, context.mask_BT.shape), context.boundary_BT < self.scope
        delta_X = torch.full_like(a_NX[0], NEARLY).detach()
        before = None if state is None else state.get(self.name)
        given = delta_X, keep_BT, context.mask_BT, before, self.prior
        mean_BTX, after = leaky_mean(a_BTX, *given)
        if state is not None:
            state[self.name] = after
        return mean_BTX.flatten(0, 1)

    def forward(
        self, h: Tensor | Codes, context: FilledContext, state: State | None = None
    ) -> tuple[Tensor, Tensor]:
        """h' and its pre-activations, both [N, F'], from dense or sparse codes of the level below."""
        seen = h @ self.W_enc if isinstance(h, Tensor) else sparse.decode(h, self.W_enc)
        pre = self.mean(seen, context, state) - self.b @ self.W_enc
        return self.act(pre, context.mask_BT.flatten()), pre


@register("hierarchical", HierarchicalConfig)
class HierarchicalSAE(Growing):
    """The levels of the module's equations; the codes z are those of level 1."""

    cfg: HierarchicalConfig
    uppers: Any  # a list of Level

    def __init__(self, cfg: HierarchicalConfig):
        super().__init__(cfg)
        sizes = [cfg.d_sae // cfg.ratio**n for n in range(cfg.levels)]
        k2 = cfg.parents_per_token
        ks, scopes = (k2, min(max(1, k2 // 2), sizes[-1])), (cfg.scope, "document")
        each = zip(("level2", "level3"), sizes, sizes[1:], ks, scopes, strict=False)
        self.uppers = nn.ModuleList(Level(cfg, *given) for given in each)

    @property
    def composition(self) -> Tensor:
        """W [F2, F1]: which children make up each parent."""
        return self.uppers[0].composer.W

    def features(self, enc: Encoding, state: State | None = None) -> dict[str, Tensor]:
        """``level2`` h2 [N, F2] and ``level3``, as many as there are."""
        codes, h = {}, enc.codes
        for upper in self.uppers:
            codes[upper.name] = h = upper(h, enc.context, state)[0]
        return codes

    def parents(
        self, x_BTD: Tensor, context: SequenceContext | None = None, level: int = 2
    ) -> Tensor:
        """h2 [B, T, F2] of x [B, T, d]; zero at invalid tokens. ``ValueError`` without that level."""
        require(1 < level <= self.cfg.levels, "levels", self.cfg.levels, f"{level} for parents")
        enc = self.encoding(Tokens(self, x_BTD, self.checked(x_BTD, context)))
        return self.features(enc)[f"level{level}"].unflatten(0, x_BTD.shape[:2])

    def parent_directions(self, level: int = 2) -> Tensor:
        """``D2 D1`` [F2, d], the rows by which parents reconstruct x; as F2 < N, it comes first."""
        W: Tensor = self.W_dec
        for upper in self.uppers[: level - 1]:
            W = upper.W_dec @ W
        return W

    def decode_parents(self, h2: Tensor, level: int = 2) -> Tensor:
        """``x2 = h2 (D2 D1) + b`` [..., d]."""
        return h2 @ self.parent_directions(level) + self.b_dec

    # ---- loss -----------------------------------------------------------------------------

    def reported(self, enc: Encoding) -> dict[str, Tensor]:
        """Also ``l0_parents``, where there are any."""
        own = {name: enc.aux[name] for name in ("l0_parents",) if name in enc.aux}
        return super().reported(enc) | own

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``mse_parents``, ``composition``, ``sparsity_parents`` and ``aux_parents``, weighted, each the
        sum over the upper levels."""
        terms: dict[str, Tensor] = {}
        h = enc.codes
        for number, upper in enumerate(self.uppers if self.phase.name != "level1" else [], 2):
            below, (h, pre) = h, upper(h, enc.context)
            for name, term in self.level_terms(number, below, h, pre, enc).items():
                terms[name] = terms[name] + term if name in terms else term
        return terms

    def level_terms(
        self, number: int, below: Tensor | Codes, h: Tensor, pre: Tensor, enc: Encoding
    ) -> dict[str, Tensor]:
        """The terms of one upper level, whose codes ``h`` are made of those ``below``."""
        cfg, upper, context, n = self.cfg, self.uppers[number - 2], enc.context, enc.n
        error = enc.target - h @ self.parent_directions(number)
        composed = upper.mean(upper.composer(below), context)
        unit = n * cfg.d_in
        terms = {
            "mse_parents": cfg.mu * error.square().sum() / unit,
            "composition": cfg.lambda_c
            * ((composed - h) * enc.mask_N[:, None]).square().sum()
            / unit,
        }
        if number == 2:
            enc.aux["l0_parents"] = (h.detach() > 0).sum() / n
        if (name := cfg.act2 or cfg.act) in ("relu", "jumprelu"):
            made = self, name, upper.act, h, pre, enc
            terms["sparsity_parents"] = sparsity(*made, upper.k, upper.sparsity_weight)
        if self.training:
            count_idle(upper.idle, (h > 0).any(0), int(n))
            dead = upper.idle >= cfg.dead_after
            if cfg.aux > 0 and bool(dead.any()):
                # Softplus, whatever ``act2``: a parent that is negative everywhere would get no
                # gradient through a ReLU.
                W_XD = upper.W_dec[dead] @ self.parent_directions(number - 1).detach()
                link = nn.functional.softplus
                missed = error.detach(), enc.mask_N
                terms["aux_parents"] = auxk(self, pre[:, dead], W_XD, *missed, link)
            with torch.no_grad():
                whole = below if isinstance(below, Tensor) else below.dense()
                read = below if upper.scope == 0 else upper.mean(whole, context)
                read = read * enc.mask_N[:, None] if isinstance(read, Tensor) else read
                upper.composer.fit(read, h, (composed - h) * enc.mask_N[:, None], n)
        return terms
