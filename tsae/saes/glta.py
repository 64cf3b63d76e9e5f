r"""D. Globally learned temporal adaptation: two scalars say how every latent tires or persists.

    a = relu(pre) or act(pre),   m_i[t] = delta_i m_i[t-1] + (1 - delta_i) a_i[t]
    pre'_i[t] = pre_i[t] - theta_i m_i[t-1],   z = act(pre')
    s_i = (var_i / geometric mean of var)^tau
    delta_i = exp(-softplus(beta) s_i),   theta_i = theta sqrt(s_i)
    loss = the static one  +  lambda (beta^2 + theta^2)  + what the objective asks

beta (rate, per token) and theta (strength) are two scalars for the whole dictionary; tau >= 0 is
the temperature that spreads them over latents by the variance var_i of a_i. theta > 0 is
adaptation: what has been said weighs less; theta < 0 is persistence. Three objectives: the present
token alone (``reconstruct``), which gives memory no work; a price on births, ``price`` times
mean_t sum_i relu(z_i[t] - z_i[t-1]) / d; or memory that explains first (``predict``):

    x_hat[t] = (z[t] + p s m[t-1]) W_dec + b_dec,    pre of x - p (s m[t-1]) W_dec

with one learned p, so that the code carries the surprise. m starts at 0 in every document. An
invalid token neither adds to m nor lets it decay: time is counted in valid tokens. ``a`` is of the
static pre-activation, so that all tokens are encoded at once, and has no gradient: an encoder that
served later tokens would cost a dense one. theta = p = 0 is the static SAE exactly; both start
there, so that their signs are learned. Source: this project.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsae.kernels.scan import scan
from tsae.saes.base import SAE, Delta, Encoding, SAEConfig, State, Tokens
from tsae.saes.config import require
from tsae.saes.registry import register
from tsae.saes.terms import births
from tsae.sequences import DOCUMENT
from tsae.training import distributed

SCHEDULES = ("learned", "decay")
OBJECTIVES = ("predict", "price", "reconstruct")
FEEDS = ("codes", "relu")


@dataclass(frozen=True)
class GLTAConfig(SAEConfig):
    """The static config plus adaptation, its objective, temperature and penalty."""

    objective: str = "price"
    """What asks for time: predict, price, or nothing (reconstruct)."""
    price: float = 0.3
    """Price of what latents rise by from token to token, with objective price."""
    feed: str = "codes"
    """What the memory is fed by: the selected static codes, or relu of all pre-activations."""
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
        allowed = f"one of {', '.join(OBJECTIVES)}"
        require(self.objective in OBJECTIVES, "objective", self.objective, allowed)
        require(self.feed in FEEDS, "feed", self.feed, " or ".join(FEEDS))
        require(self.scope in ("global", "feature"), "scope", self.scope, "global or feature")
        number = isinstance(self.tau, int | float) and not isinstance(self.tau, bool)
        ok = float(self.tau) >= 0 if number else self.tau in SCHEDULES
        require(ok, "tau", self.tau, "a number of at least 0, learned or decay")
        for field in ("tau_start", "tau_end"):
            require(getattr(self, field) > 0, field, getattr(self, field), "above 0")
        ema = self.variance_ema
        require(0 < ema < 1, "variance_ema", ema, "between 0 and 1")
        for field in ("penalty", "price"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "at least 0")
        require(self.adaptation_lr > 0, "adaptation_lr", self.adaptation_lr, "above 0")


@register("glta", GLTAConfig)
class GLTASAE(SAE):
    """The adapting autoencoder of the module's equations."""

    cfg: GLTAConfig
    raw_beta: Tensor
    raw_theta: Tensor
    raw_tau: Tensor
    raw_p: Tensor
    var_F: Tensor
    variance_steps: Tensor

    def __init__(self, cfg: GLTAConfig):
        super().__init__(cfg)
        shape = () if cfg.scope == "global" else (cfg.d_sae,)
        tau = cfg.tau_start if isinstance(cfg.tau, str) else cfg.tau
        learned = dict.fromkeys(("beta", "theta"), cfg.train_adaptation)
        learned["tau"] = cfg.tau == "learned" and cfg.variance_scaling
        learned["p"] = cfg.train_adaptation and cfg.objective == "predict"
        starts = {"beta": cfg.beta, "theta": cfg.theta, "tau": tau, "p": 0.0}
        for name, start in starts.items():
            raw = torch.full(shape if name in ("beta", "theta") else (), start / cfg.adaptation_lr)
            if learned[name]:
                setattr(self, f"raw_{name}", nn.Parameter(raw))
            else:
                self.register_buffer(f"raw_{name}", raw)
        self.register_buffer("var_F", torch.ones(cfg.d_sae))
        self.register_buffer("variance_steps", torch.tensor(0))

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
        """The temperature, []; never below 0. A decaying one is its start times
        (tau_end / tau_start)^(share of the steps done)."""
        return (self.cfg.adaptation_lr * self.decay * self.raw_tau).abs()

    @property
    def p(self) -> Tensor:
        """How much of what it remembers the memory expects again, []."""
        return self.cfg.adaptation_lr * self.raw_p

    @property
    def decay(self) -> float:
        """By how much a decaying temperature has fallen; at inference, by all."""
        falls = self.cfg.tau == "decay"
        return (self.cfg.tau_end / self.cfg.tau_start) ** self.progress if falls else 1.0

    @torch.no_grad()
    def set_adaptation(self, **values: float) -> None:
        """Give ``beta``, ``theta``, ``tau`` or ``p`` one value, whatever was learned."""
        for name, value in values.items():
            unit = self.cfg.adaptation_lr * (self.decay if name == "tau" else 1.0)
            getattr(self, f"raw_{name}").fill_(value / unit)

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
        return self.cfg.train_adaptation or bool(self.theta.any()) or bool(self.p.any())

    @torch.no_grad()
    def fed(self, tokens: Tokens) -> Tensor:
        """``a`` [N, F]; the activation is used as at inference, so that it couples no tokens."""
        if self.cfg.feed == "relu":
            return tokens.static_NF.relu()
        training = self.act.training
        a_NF = self.act.eval()(tokens.static_NF, tokens.mask_N)
        self.act.train(training)
        return a_NF

    def delta(self, tokens: Tokens, state: State | None) -> Delta:
        """``-theta m[t-1]``, and what the memory explains of x.

        With r = m[t-1] / (1 - delta), a scan of a, its derivative by delta is a scan of r.
        """
        if not self.looks_back:
            return Delta()
        a_NF, context = self.fed(tokens), tokens.context
        if tokens.learn and self.cfg.variance_scaling:
            self.track_variance(a_NF, tokens.mask_N)
        delta_F, theta_F = self.adaptation()
        fixed_F, keep_BT = delta_F.detach(), context.boundary_BT < DOCUMENT
        if state is not None:
            r_NF = state.setdefault("r", torch.zeros_like(a_NF)) * keep_BT
            state["r"].copy_(torch.where(context.mask_BT, delta_F * r_NF + a_NF, r_NF))
            return self.remembered(tokens, r_NF, torch.zeros_like(r_NF), delta_F, theta_F)
        a_BTF = a_NF.unflatten(0, context.mask_BT.shape)
        r_BTF = scan(a_BTF, fixed_F, keep_BT, context.mask_BT)
        q_BTF = scan(r_BTF, fixed_F, keep_BT, context.mask_BT)
        return self.remembered(tokens, r_BTF.flatten(0, 1), q_BTF.flatten(0, 1), delta_F, theta_F)

    def remembered(
        self, tokens: Tokens, r_NF: Tensor, q_NF: Tensor, delta_F: Tensor, theta_F: Tensor
    ) -> Delta:
        """:meth:`delta` from r and its derivative q."""
        fixed_F, strength_F = delta_F.detach(), theta_F.detach()
        m_NF = (1 - fixed_F) * r_NF
        slopes = ((theta_F, -m_NF), (delta_F, strength_F * (r_NF - (1 - fixed_F) * q_NF)))
        effect = Delta(dense=-strength_F * m_NF, slopes=slopes if theta_F.requires_grad else ())
        if self.cfg.objective != "predict":
            return effect
        slope_NF = (1 - fixed_F) * q_NF - r_NF
        m_NF = m_NF + (delta_F - fixed_F) * slope_NF
        x_ND = (self.p * self.scale() * m_NF) @ self.W_dec.detach() * tokens.mask_N[:, None]
        x_BTD = tokens.x_BTD - x_ND.view_as(tokens.x_BTD)
        return effect._replace(x_BTD=x_BTD, beside={"x_p": x_ND})

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``births``, with that objective; ``penalty`` = lambda (beta^2 + theta^2), where they are
        learned."""
        cfg, terms = self.cfg, {}
        if cfg.objective == "price":
            terms["births"] = cfg.price * births(enc)
        if cfg.train_adaptation and cfg.penalty > 0:
            square = self.beta.square().mean() + self.theta.square().mean()
            terms["penalty"] = cfg.penalty * square
        return terms

    def reported(self, enc: Encoding) -> dict[str, Tensor]:
        """Where ``beta``, ``theta`` (means over latents), ``tau`` and ``p`` stand."""
        names = ("beta", "theta", "tau", "p")
        return super().reported(enc) | {n: getattr(self, n).detach().mean() for n in names}
