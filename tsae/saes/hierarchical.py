r"""E. Two levels of latents, and a sparse matrix that says what the upper one is composed of.

    h1 = act((x - b) W_enc + b_enc)                     F1 latents: the codes z
    h2 = act2((h1 - b2) W_e2)                           F2 = F1 / ratio parents
    x1 = h1 D1 + b,    ĥ1 = h2 D2,    x2 = ĥ1 D1 + b    rows of D1 and D2 have norm 1
    L  = mse(x1) + mu mse(x2) + lambda_c mean_t |W h1 - h2|^2 / d

``W`` [F2, F1] is the composition matrix, apart from the encoder; it minimises the same error plus
lambda_w |W|_1 by proximal steps (:mod:`tsae.saes.composition`), so that lambda_c says how far
composition shapes the codes, and lambda_w how sparse W is. Because the rows of D1 and D2 have
norm 1, a parent's value is in the unit of x, so the composition error is divided by d as the MSE
is, and lambda_c means the same for every F2; without that norm h2 could shrink until the error
vanished. One level is the static SAE exactly. Source: this project.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tsae.kernels import sparse
from tsae.kernels.sparse import Codes
from tsae.saes import activations
from tsae.saes.base import SAE, Encoding, Phase, SAEConfig
from tsae.saes.bridge import Growing
from tsae.saes.composition import Composition
from tsae.saes.config import require
from tsae.saes.registry import register
from tsae.saes.terms import auxk, count_idle, sparsity
from tsae.sequences import SequenceContext

PHASES = ("level1", "level2", "joint")
LEVEL2 = ("W_e2", "b2", "D2")


@dataclass(frozen=True)
class HierarchicalConfig(SAEConfig):
    """The static config, which is level 1's, plus the upper level and its composition."""

    levels: int = 2
    """1 (the static SAE) or 2."""
    ratio: int = 8
    """Latents of level 1 for each parent."""
    act2: str | None = None
    """Activation of the parents; None for that of level 1."""
    k2: int | None = None
    """Active parents per token, as k for level 1; None for k / 4."""
    mu: float = 0.5
    """Weight of the reconstruction from parents alone."""
    lambda_c: float = 0.1
    """Weight of the composition error |W h1 - h2|^2 / d; at 0, W is fitted but shapes no code."""
    lambda_w: float = 0.1
    """Correlation of a child with what the others leave of a parent, below which W is 0."""
    curriculum: tuple[str, ...] = ("level1", "level2", "joint")
    """Phases in order; ("joint",) is no curriculum."""
    shares: tuple[float, ...] = (0.4, 0.3, 0.3)
    """Proportions of the steps that level1, level2 and joint get, left-out phases aside."""
    level1: str | None = None
    """Directory of a static checkpoint that level 1 starts from; None for fresh weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.levels in (1, 2), "levels", self.levels, "1 or 2")
        ok = isinstance(self.ratio, int) and 1 <= self.ratio <= self.d_sae
        require(ok, "ratio", self.ratio, f"a whole number from 1 to d_sae={self.d_sae}")
        allowed = f"one of {', '.join(activations.NAMES)}, or None"
        require(self.act2 in (None, *activations.NAMES), "act2", self.act2, allowed)
        ok = self.k2 is None or (isinstance(self.k2, int) and 1 <= self.k2 <= self.n_parents)
        require(ok, "k2", self.k2, f"None or a whole number from 1 to F2={self.n_parents}")
        for field in ("mu", "lambda_c", "lambda_w"):
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


@register("hierarchical", HierarchicalConfig)
class HierarchicalSAE(Growing):
    """The two levels of the module's equations; the codes z are those of level 1."""

    cfg: HierarchicalConfig
    start = "level1"
    act2: Any
    composer: Composition
    idle_parents: Tensor
    parent_sparsity_weight: Tensor

    def __init__(self, cfg: HierarchicalConfig):
        super().__init__(cfg)
        if cfg.levels == 1:
            return
        F1, F2 = cfg.d_sae, cfg.n_parents
        D2 = nn.functional.normalize(torch.randn(F2, F1), dim=1)
        self.W_e2 = nn.Parameter(D2.t().contiguous().clone())
        self.b2 = nn.Parameter(torch.zeros(F1))
        self.D2 = nn.Parameter(D2)
        self.act2 = activations.make(cfg.act2 or cfg.act, cfg.parents_per_token, F2, cfg)
        self.register_buffer("idle_parents", torch.zeros(F2, dtype=torch.int64))
        self.register_buffer("parent_sparsity_weight", torch.tensor(float(cfg.l1)))
        self.composer = Composition(F1, F2, cfg.lambda_w)

    @classmethod
    def from_static(cls, sae: SAE, **options: Any) -> "HierarchicalSAE":
        """As :meth:`Growing.from_static`; ``curriculum`` is ("level2", "joint") unless given."""
        return super().from_static(sae, **{"curriculum": ("level2", "joint"), **options})

    @property
    def composition(self) -> Tensor:
        """W [F2, F1]: which children make up each parent."""
        return self.composer.W

    # ---- the upper level ------------------------------------------------------------------

    def parent_codes(self, h1: Tensor | Codes, mask_N: Tensor) -> tuple[Tensor, Tensor]:
        """h2 and its pre-activations, both [N, F2], from dense or sparse codes of level 1."""
        seen = h1 @ self.W_e2 if isinstance(h1, Tensor) else sparse.decode(h1, self.W_e2)
        pre = seen - self.b2 @ self.W_e2
        return self.act2(pre, mask_N), pre

    def parents(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        """h2 [B, T, F2] of x [B, T, d]; zero at invalid tokens. ``ValueError`` with one level."""
        require(self.cfg.levels == 2, "levels", self.cfg.levels, "2 for parents")
        context = self.checked(x_BTD, context)
        z_NF = self.encode(x_BTD, context).flatten(0, 1)
        return self.parent_codes(z_NF, context.mask_BT.flatten())[0].unflatten(0, x_BTD.shape[:2])

    def decode_parents(self, h2: Tensor) -> Tensor:
        """``x2 = h2 (D2 D1) + b`` [..., d]: the product of dictionaries first, as F2 < N."""
        return h2 @ (self.D2 @ self.W_dec) + self.b_dec

    # ---- loss -----------------------------------------------------------------------------

    @property
    def codes_learn(self) -> bool:
        """False while level 1 is frozen: its threshold and the weight of its sparsity would
        drift."""
        return self.W_dec.requires_grad

    def reported(self, enc: Encoding) -> dict[str, Tensor]:
        """Also ``l0_parents``, where there are any."""
        own = {name: enc.aux[name] for name in ("l0_parents",) if name in enc.aux}
        return super().reported(enc) | own

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``mse_parents``, ``composition``, ``sparsity_parents`` and ``aux_parents``, weighted."""
        cfg = self.cfg
        if cfg.levels == 1 or self.phase == "level1":
            return {}
        mask_N, n, h1 = enc.mask_N, enc.n, enc.codes
        h2, pre2 = self.parent_codes(h1, mask_N)
        error = x_BTD.flatten(0, 1) - self.decode_parents(h2)
        error = torch.where(mask_N[:, None], error, 0.0)  # a masked token may hold anything
        composed = self.composer(h1)
        unit = n * cfg.d_in
        terms = {
            "mse_parents": cfg.mu * error.square().sum() / unit,
            "composition": cfg.lambda_c * (composed - h2).square().sum() / unit,
        }
        enc.aux["l0_parents"] = (h2.detach() > 0).sum() / n
        if (name := cfg.act2 or cfg.act) in ("relu", "jumprelu"):
            k2, weight = cfg.parents_per_token, self.parent_sparsity_weight
            terms["sparsity_parents"] = sparsity(self, name, self.act2, h2, pre2, enc, k2, weight)
        if self.training:
            count_idle(self.idle_parents, (h2 > 0).any(0), int(n))
            dead = self.idle_parents >= cfg.dead_after
            if cfg.aux > 0 and bool(dead.any()):
                # Softplus, whatever ``act2``: a parent that is negative everywhere would get no
                # gradient through a ReLU.
                W_XD, link = self.D2[dead] @ self.W_dec.detach(), nn.functional.softplus
                aux = auxk(self, pre2[:, dead], W_XD, error.detach(), mask_N, link)
                terms["aux_parents"] = aux
            self.composer.measure(h1, h2, composed - h2, n)
        return terms

    # ---- what the trainer calls -----------------------------------------------------------

    def phases(self) -> tuple[Phase, ...]:
        """Level 1 alone, level 2 on a frozen level 1, both: those that ``curriculum`` names."""
        if self.cfg.levels == 1:
            return super().phases()
        upper = LEVEL2 + tuple(n for n, _ in self.named_parameters() if n.startswith("act2."))
        lower = tuple(n for n, _ in self.named_parameters() if not n.startswith(upper))
        moving = {"level1": lower, "level2": upper, "joint": None}
        share = dict(zip(PHASES, self.cfg.shares, strict=True))
        names = self.cfg.curriculum
        total = sum(share[name] for name in names)
        return tuple(Phase(name, share[name] / total, moving[name]) for name in names)

    @torch.no_grad()
    def project_gradients(self) -> None:
        super().project_gradients()
        if self.cfg.levels == 2 and self.D2.grad is not None:
            along = (self.D2.grad * self.D2).sum(1, keepdim=True)
            self.D2.grad.sub_(along * self.D2)

    @torch.no_grad()
    def finish_step(self) -> None:
        """Unit norms of both dictionaries, and one proximal step of W on the last batch."""
        super().finish_step()
        if self.cfg.levels == 1:
            return
        if self.D2.requires_grad:
            self.D2.div_(self.D2.norm(dim=1, keepdim=True).clamp_min(1e-8))
        self.composer.step()
