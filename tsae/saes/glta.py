r"""D. Globally learned temporal adaptation: two scalars say how every latent tires or persists.

    a = relu(pre),   m_i[t] = delta_i m_i[t-1] + (1 - delta_i) a_i[t],   z[t] = act(pre')
    pre'_i[t] = pre_i[t] - theta_i m_i[t-1]
    s_i = (var_i / geometric mean of var)^tau
    delta_i = exp(-softplus(beta) s_i),   theta_i = theta sqrt(s_i)
    loss = the static one  +  lambda (beta^2 + theta^2)

beta (rate, per token) and theta (strength) are two scalars for the whole dictionary; tau is the
temperature that spreads them over latents by the variance var_i of a_i. theta > 0 is adaptation:
what has been said weighs less; theta < 0 is persistence. m starts at 0 in every document. An
invalid token neither adds to m nor lets it decay: time is counted in valid tokens.
theta = 0 is the static SAE exactly; theta starts there, so that its sign is learned. AuxK reads
``pre``, without adaptation. Source: this project.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsae.kernels.scan import scan
from tsae.saes.base import SAE, Delta, Encoding, SAEConfig, State, Tokens
from tsae.saes.config import require
from tsae.saes.registry import register
from tsae.sequences import DOCUMENT
from tsae.training import distributed

SCHEDULES = ("learned", "decay")


@dataclass(frozen=True)
class GLTAConfig(SAEConfig):
    """The static config plus adaptation, its temperature and its penalty."""

    scope: str = "global"
    """Whether beta and theta are one number each (global) or one per latent (feature)."""
    beta: float = 0.0
    """Start of beta; 0 makes delta = 1/2 where s_i = 1."""
    theta: float = 0.0
    """Start of theta; 0 is the static SAE."""
    train_adaptation: bool = True
    """Whether beta and theta are learned, or stay where they start."""
    adaptation_lr: float = 8.0
    """How many times the weights' learning rate beta, theta and tau move with; a power of two
    rounds no start."""
    tau: float | str = 0.5
    """Temperature: a number, learned (from tau_start), or decay (tau_start to tau_end)."""
    tau_start: float = 1.0
    """Where a learned or decaying temperature starts."""
    tau_end: float = 0.1
    """Where a decaying temperature ends, geometrically, with the last step."""
    variance_scaling: bool = True
    """Whether latents differ by their variance; False sets s_i = 1."""
    variance_ema: float = 0.99
    """EMA rate, per training step, of the variances."""
    penalty: float = 1e-3
    """lambda, the weight of beta^2 + theta^2 (their mean over latents for scope feature)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.scope in ("global", "feature"), "scope", self.scope, "global or feature")
        number = isinstance(self.tau, int | float) and not isinstance(self.tau, bool)
        require(number or self.tau in SCHEDULES, "tau", self.tau, "a number, learned or decay")
        for field in ("tau_start", "tau_end"):
            require(getattr(self, field) > 0, field, getattr(self, field), "above 0")
        ema = self.variance_ema
        require(0 < ema < 1, "variance_ema", ema, "between 0 and 1")
        require(self.penalty >= 0, "penalty", self.penalty, "at least 0")
        require(self.adaptation_lr > 0, "adaptation_lr", self.adaptation_lr, "above 0")


@register("glta", GLTAConfig)
class GLTASAE(SAE):
    """The adapting autoencoder of the module's equations."""

    cfg: GLTAConfig
    raw_beta: Tensor
    raw_theta: Tensor
    raw_tau: Tensor
    var_F: Tensor
    variance_steps: Tensor

    def __init__(self, cfg: GLTAConfig):
        super().__init__(cfg)
        shape = () if cfg.scope == "global" else (cfg.d_sae,)
        tau = cfg.tau_start if isinstance(cfg.tau, str) else cfg.tau
        learned = dict.fromkeys(("beta", "theta"), cfg.train_adaptation)
        learned["tau"] = cfg.tau == "learned" and cfg.variance_scaling
        for name, start in (("beta", cfg.beta), ("theta", cfg.theta), ("tau", tau)):
            raw = torch.full(() if name == "tau" else shape, start / cfg.adaptation_lr)
            if learned[name]:
                setattr(self, f"raw_{name}", nn.Parameter(raw))
            else:
                self.register_buffer(f"raw_{name}", raw)
        self.register_buffer("var_F", torch.ones(cfg.d_sae))
        self.register_buffer("variance_steps", torch.tensor(0))

    def start_step(self, step: int, n_steps: int, phase: str = "train") -> None:
        """Also moves a decaying temperature: tau_start (tau_end / tau_start)^(share done)."""
        super().start_step(step, n_steps, phase)
        if self.cfg.tau == "decay":
            share = step / max(n_steps - 1, 1)
            self.set_adaptation(
                tau=self.cfg.tau_start * (self.cfg.tau_end / self.cfg.tau_start) ** share
            )

    # ---- adaptation -----------------------------------------------------------------------

    @property
    def beta(self) -> Tensor:
        """The rate, [] (global) or [F] (feature). Adam's step is as long for any gradient, so the
        parameter is beta / adaptation_lr; theta and tau are kept likewise."""
        return self.cfg.adaptation_lr * self.raw_beta

    @property
    def theta(self) -> Tensor:
        """The strength, [] or [F]."""
        return self.cfg.adaptation_lr * self.raw_theta

    @property
    def tau(self) -> Tensor:
        """The temperature, []."""
        return self.cfg.adaptation_lr * self.raw_tau

    @torch.no_grad()
    def set_adaptation(self, **values: float) -> None:
        """Give ``beta``, ``theta`` or ``tau`` one value, whatever was learned."""
        for name, value in values.items():
            getattr(self, f"raw_{name}").fill_(value / self.cfg.adaptation_lr)

    def scale(self) -> Tensor:
        """``s`` of every latent [F]; 1 without variance scaling."""
        if not self.cfg.variance_scaling:
            return torch.ones_like(self.var_F)
        log_F = self.var_F.clamp_min(1e-6).log()
        return (self.tau * (log_F - log_F.mean())).exp()

    def adaptation(self) -> tuple[Tensor, Tensor]:
        """``delta`` and ``theta`` of every latent, both [F]."""
        s_F = self.scale()
        delta_F = (-nn.functional.softplus(self.beta) * s_F).exp()
        return delta_F, self.theta * s_F.sqrt()

    @torch.no_grad()
    def track_variance(self, a_NF: Tensor, mask_N: Tensor) -> None:
        """Move the EMA of the variance of ``a`` over the valid tokens of a batch."""
        n = distributed.count(int(mask_N.sum()))
        if n < 2:
            return
        weight = mask_N.to(a_NF.dtype) / n
        mean_F = distributed.reduced(weight @ a_NF)
        var_F = distributed.reduced(weight @ a_NF.square()) - mean_F.square()
        rate = 1.0 - self.cfg.variance_ema if self.variance_steps > 0 else 1.0
        self.var_F.lerp_(var_F.clamp_min(0.0), rate)
        self.variance_steps += 1

    @property
    def looks_back(self) -> bool:
        return self.cfg.train_adaptation or bool(self.theta.any())

    def delta(self, tokens: Tokens, state: State | None) -> Delta:
        """``-theta m[t-1]``: every latent's past shapes it, so its gradient is dense."""
        if not self.looks_back:
            return Delta()
        a_NF, context = tokens.pre_NF.relu(), tokens.context
        if tokens.learn and self.cfg.variance_scaling:
            self.track_variance(a_NF.detach(), tokens.mask_N)
        delta_F, theta_F = self.adaptation()
        keep_BT = context.boundary_BT < DOCUMENT
        if state is None:
            a_BTF = a_NF.unflatten(0, context.mask_BT.shape)
            r_NF = scan(a_BTF, delta_F, keep_BT, context.mask_BT).flatten(0, 1)
        else:
            r_NF = state.setdefault("r", torch.zeros_like(a_NF)) * keep_BT
            state["r"].copy_(torch.where(context.mask_BT, delta_F * r_NF + a_NF, r_NF))
        return Delta(dense=-theta_F * (1.0 - delta_F) * r_NF)

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``penalty`` = lambda (beta^2 + theta^2), where they are learned."""
        if not self.cfg.train_adaptation or self.cfg.penalty == 0:
            return {}
        square = self.beta.square().mean() + self.theta.square().mean()
        return {"penalty": self.cfg.penalty * square}

    def reported(self, enc: Encoding) -> dict[str, Tensor]:
        """Where ``beta``, ``theta`` (means over latents) and ``tau`` stand."""
        names = ("beta", "theta", "tau")
        return super().reported(enc) | {n: getattr(self, n).detach().mean() for n in names}
