r"""What every variant is: an encoder over sequences, a unit-norm dictionary, one loss.

    pre[t] = sum_j u_j[t] W_j + b_enc        (``features``: static has u = x - b_dec alone)
    z[t]   = act(pre[t])
    x_hat  = z W_dec + b_dec,   |W_dec[i]| = 1
    loss   = mean (x - x_hat)^2  +  sparsity term of ``act``  +  AuxK  +  the variant's own terms

Shapes: x [B, T, d], z [B, T, F]. Units: activations normalised by the store, so that
E|x - mean|^2 = d and the MSE per dimension is 1 - FVE.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tsae.kernels import sparse
from tsae.kernels.sparse import Codes
from tsae.saes import activations
from tsae.saes.config import Phase, SAEConfig, require
from tsae.saes.context import DOCUMENT, FilledContext, SequenceContext
from tsae.saes.stream import Stream
from tsae.training import distributed

__all__ = [
    "DOCUMENT",
    "SAE",
    "Phase",
    "SAEConfig",
    "SAEOutput",
    "SequenceContext",
    "Stream",
    "require",
]


class SAEOutput(NamedTuple):
    """What ``forward`` returns: reconstruction, codes, pre-activations, and a variant's extras."""

    x_hat: Tensor
    z: Tensor
    pre: Tensor
    extra: dict[str, Tensor]


class SAE(nn.Module):
    """The static autoencoder of the module's equations, and the interface of every variant.

    A variant overrides :meth:`features` (what the encoder sees), :meth:`extra_terms` (its own
    losses), :meth:`stream` and, when its codes are not an elementwise function of ``pre``,
    :meth:`codes`.
    """

    name: str
    apart: tuple[str, ...] = ()
    """Prefixes of parameters that no code depends on: their gradient is clipped by itself."""
    act: Any  # a module of tsae.saes.activations; the sparse ones among them have ``select``
    idle_tokens: Tensor
    sparsity_weight: Tensor

    def __init__(self, cfg: SAEConfig):
        super().__init__()
        self.cfg = cfg
        self.meta: dict[str, Any] = {}
        d, F = cfg.d_in, cfg.d_sae
        W_dec = nn.functional.normalize(torch.randn(F, d), dim=1)
        self.W_enc = nn.Parameter(W_dec.t().contiguous().clone())
        self.b_enc = nn.Parameter(torch.zeros(F))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(torch.zeros(d))
        self.act = self.make_activation()
        self.register_buffer("idle_tokens", torch.zeros(F, dtype=torch.int64))
        self.register_buffer("sparsity_weight", torch.tensor(float(cfg.l1)))
        self.progress = 1.0  # a loop that never calls start_step has no warm-up
        self.phase = "train"

    def make_activation(self) -> nn.Module:
        """The activation module; a variant with reserved shares of k returns a grouped one."""
        return activations.make(self.cfg.act, self.cfg.k, self.cfg.d_sae, self.cfg)

    @property
    def groups(self) -> dict[str, Tensor]:
        """Latent ids by group; the static dictionary has one group, ``all``."""
        return {"all": torch.arange(self.cfg.d_sae, device=self.W_dec.device)}

    # ---- encoding -------------------------------------------------------------------------

    def checked(self, x_BTD: Tensor, context: SequenceContext | None) -> FilledContext:
        """Fill in the context; raise ``ValueError`` on a wrong type, shape or device."""
        if not isinstance(x_BTD, Tensor):
            kind = type(x_BTD).__name__
            raise ValueError(f"x is a {kind}; give a tensor, torch.as_tensor(x).float().")
        if x_BTD.ndim != 3 or x_BTD.shape[-1] != self.cfg.d_in or x_BTD.numel() == 0:
            raise ValueError(
                f"x has shape {tuple(x_BTD.shape)}; this SAE reads [B, T, {self.cfg.d_in}] with at "
                "least one token."
            )
        W = self.W_enc
        if x_BTD.dtype != W.dtype:
            raise ValueError(f"x is {x_BTD.dtype}, this SAE {W.dtype}: give x.to({W.dtype}).")
        if x_BTD.device != W.device:
            raise ValueError(f"x is on {x_BTD.device}, this SAE on {W.device}: move one of them.")
        return (context or SequenceContext()).filled(x_BTD)

    def centred(self, x_BTD: Tensor, context: FilledContext) -> Tensor:
        """``x - b_dec`` with invalid tokens set to 0, so that none reaches another's context."""
        u_ND = (x_BTD - self.b_dec).flatten(0, 1)
        invalid = (~context.mask_BT).flatten().nonzero()[:, 0]  # few: a fourth of where's time
        return u_ND.index_fill_(0, invalid, 0.0).view_as(x_BTD)

    def features(self, x_BTD: Tensor, context: FilledContext) -> list[tuple[Tensor, Tensor]]:
        """Pairs (u [N, d_j], W [d_j, F]) with ``pre = sum u W + b_enc``; N = B * T.

        The first is always ``x - b_dec`` (0 at invalid tokens) and ``W_enc``.
        """
        return [(self.centred(x_BTD, context).flatten(0, 1), self.W_enc)]

    def pre(self, x_BTD: Tensor, context: FilledContext) -> Tensor:
        """``sum u W + b_enc`` [N, F]."""
        pairs, bias_F = self.shortened(x_BTD, self.features(x_BTD, context))
        return sum(u @ W for u, W in pairs) + bias_F

    def shortened(
        self, x_BTD: Tensor, pairs: list[tuple[Tensor, Tensor]]
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """``pairs`` and ``b_enc``, the same in value, with the short way to the gradient of b_dec.

        Of the gradient of x - b_dec only the sum over tokens is wanted, unless x asks for its own,
        and the bias has that sum already: what is added is zero, and its gradient is a product of
        vectors where that of x - b_dec is one of matrices.
        """
        if x_BTD.requires_grad or not torch.is_grad_enabled():
            return pairs, self.b_enc
        zero_F = (self.b_dec - self.b_dec.detach()) @ self.W_enc.detach()
        return [(pairs[0][0].detach(), self.W_enc), *pairs[1:]], self.b_enc - zero_F

    def codes(
        self, x_BTD: Tensor, context: FilledContext
    ) -> tuple[Codes | None, Tensor | None, Tensor]:
        """Sparse codes, dense codes [N, F] and pre-activations [N, F] of all tokens.

        Either the sparse codes are None, where the activation is not sparse by construction, or
        the dense ones, which nothing then needs to hold.
        """
        mask_N = context.mask_BT.flatten()
        if self.dense_path or not hasattr(self.act, "select"):
            pre = self.pre(x_BTD, context)
            return None, self.act(pre, mask_N), pre
        pairs, bias_F = self.shortened(x_BTD, self.features(x_BTD, context))
        codes, pre = sparse.encode(lambda pre: self.act.select(pre, mask_N), bias_F, pairs)
        return codes, None, pre

    @property
    def dense_path(self) -> bool:
        """Whether the plain dense products are used although sparse ones exist."""
        return self.cfg.act in ("relu", "jumprelu")

    def encode(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        """Codes z [B, T, F] of x [B, T, d]; zero at invalid tokens. Raises ``ValueError``."""
        context = self.checked(x_BTD, context)
        z_NF = self.act(self.pre(x_BTD, context), context.mask_BT.flatten())
        return z_NF.unflatten(0, x_BTD.shape[:2])

    def decode(self, z_BTF: Tensor) -> Tensor:
        """``x_hat = z W_dec + b_dec`` [B, T, d]."""
        return z_BTF @ self.W_dec + self.b_dec

    def forward(self, x_BTD: Tensor, context: SequenceContext | None = None) -> SAEOutput:
        context = self.checked(x_BTD, context)
        shape = x_BTD.shape[:2]
        pre = self.pre(x_BTD, context)
        z = self.act(pre, context.mask_BT.flatten()).unflatten(0, shape)
        return SAEOutput(self.decode(z), z, pre.unflatten(0, shape), {})

    # ---- loss -----------------------------------------------------------------------------

    def loss(self, x_BTD: Tensor, context: SequenceContext | None = None) -> dict[str, Tensor]:
        """``total`` and each of its terms as scalars, means over the valid tokens.

        ``mse`` = mean (x - x_hat)^2 over tokens and dimensions; ``sparsity`` (relu: weight x
        mean L1 / d; jumprelu: weight x L0 / k); ``aux`` (weighted); the variant's own; and ``l0``,
        which is reported and not part of the total.
        """
        context = self.checked(x_BTD, context)
        if self.W_enc.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(f"losses need float32, this SAE is {self.W_enc.dtype}: call .float().")
        mask_N = context.mask_BT.flatten()
        n = mask_N.sum().clamp_min(1)
        codes, z_NF, pre_NF = self.codes(x_BTD, context)
        if codes is None:
            assert z_NF is not None
            decoded, active = z_NF @ self.W_dec, z_NF > 0
        else:
            decoded, active = sparse.decode(codes, self.W_dec), codes.values > 0
        target_ND = self.centred(x_BTD, context).flatten(0, 1)  # 0 at invalid tokens, as the codes
        sse = nn.functional.mse_loss(decoded, target_ND, reduction="sum")
        terms = {"mse": sse / (n * self.cfg.d_in)}
        l0 = active.count_nonzero() / n
        terms.update(self.sparsity_terms(z_NF, pre_NF, mask_N, l0))
        if self.training:
            self.count_idle(active.any(0) if codes is None else codes.fired(), int(n))
            terms.update(self.aux_term(x_BTD, context, (target_ND - decoded).detach()))
        terms.update(self.extra_terms(x_BTD, context, codes, z_NF, pre_NF))
        terms["total"] = torch.stack(list(terms.values())).sum()
        terms["l0"] = l0
        return terms

    def sparsity_terms(
        self, z_NF: Tensor | None, pre_NF: Tensor, mask_N: Tensor, l0: Tensor
    ) -> dict[str, Tensor]:
        """The sparsity term of relu and jumprelu; steers its weight when ``match_l0``."""
        if self.cfg.act not in ("relu", "jumprelu"):
            return {}
        warm = min(1.0, self.progress / self.cfg.sparsity_warmup) if self.cfg.sparsity_warmup else 1
        weight = self.sparsity_weight.clone() * warm
        if self.cfg.act == "jumprelu":
            penalty = self.act.l0(pre_NF, mask_N) / self.cfg.k
        else:
            assert z_NF is not None  # relu has no sparse codes
            penalty = z_NF.sum() / mask_N.sum().clamp_min(1) / self.cfg.d_in
        if self.training and self.cfg.match_l0 and warm == 1:
            with torch.no_grad():
                l0 = distributed.mean(l0, mask_N.sum())
                self.sparsity_weight.mul_((l0 / self.cfg.k).log().clamp(-1, 1).mul(0.02).exp())
        return {"sparsity": weight * penalty}

    @torch.no_grad()
    def count_idle(self, fired_F: Tensor, n_tokens: int) -> None:
        """Add the batch to each latent's tokens since it last fired."""
        fired_F = distributed.anywhere(fired_F)
        self.idle_tokens.add_(distributed.count(n_tokens)).masked_fill_(fired_F, 0)

    def dead_latents(self) -> Tensor:
        """Mask [F] of latents that have not fired for ``dead_after`` tokens."""
        return self.idle_tokens >= self.cfg.dead_after

    def aux_term(
        self, x_BTD: Tensor, context: FilledContext, error_ND: Tensor
    ) -> dict[str, Tensor]:
        """AuxK (Gao et al. 2024): the k_aux strongest dead latents reconstruct the error.

        ``aux * |e - e_hat|^2 / |e|^2`` with k_aux = d/2 at most; relu uses resampling instead.
        """
        dead = self.dead_latents()
        n_dead = int(dead.sum())
        if self.cfg.aux == 0 or n_dead == 0 or self.cfg.act in ("relu", "jumprelu"):
            return {}
        pairs = [(u, W[:, dead]) for u, W in self.features(x_BTD, context)]
        pre = sum(u @ W for u, W in pairs) + self.b_enc[dead]
        values, cols = pre.topk(min(max(self.cfg.d_in // 2, 1), n_dead), dim=1)
        z = torch.zeros_like(pre).scatter(1, cols, values.clamp_min(0.0))
        target = error_ND.detach()
        mask = context.mask_BT.flatten()[:, None]
        missed = (target - z @ self.W_dec[dead]) * mask
        energy = distributed.pooled(target.square().sum(), mask.sum())
        ratio = missed.square().sum() / energy.clamp_min(1e-8)
        return {"aux": self.cfg.aux * ratio.nan_to_num(0.0)}

    def extra_terms(
        self,
        x_BTD: Tensor,
        context: FilledContext,
        codes: Codes | None,
        z_NF: Tensor | None,
        pre_NF: Tensor,
    ) -> dict[str, Tensor]:
        """The variant's own loss terms, already weighted; ``codes`` or ``z_NF`` is None."""
        return {}

    # ---- what the trainer calls -----------------------------------------------------------

    @property
    def pairs_tokens(self) -> bool:
        """Whether the loss compares tokens of different sequences, so that no rank of a data
        parallel run could compute its share of it alone."""
        return False

    def phases(self) -> tuple[Phase, ...]:
        """The stretches of training, whose shares sum to 1."""
        return (Phase("train", 1.0),)

    def start_step(self, step: int, n_steps: int, phase: str = "train") -> None:
        """Tell schedules (sparsity warm-up, annealing) where training stands, and in which phase."""
        self.progress = step / max(n_steps, 1)
        self.phase = phase

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Remove from the decoder's gradient what would only change its rows' norms."""
        if self.W_dec.grad is not None:
            along = torch.linalg.vecdot(self.W_dec.grad, self.W_dec)
            self.W_dec.grad.addcmul_(along[:, None], self.W_dec, value=-1.0)

    @torch.no_grad()
    def finish_step(self) -> None:
        """Restore the unit norm of the decoder's rows, unless the phase has frozen them."""
        if self.W_dec.requires_grad:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def initialise(self, mean_D: Tensor) -> None:
        """Start the decoder bias at the mean activation."""
        self.b_dec.copy_(mean_D)

    # ---- streaming, saving ----------------------------------------------------------------

    def stream(self, batch_size: int) -> Stream:
        """A token-by-token encoder with preallocated state, equal to :meth:`encode`."""
        return Stream(self, batch_size)

    def save(self, directory) -> None:
        """Write ``cfg.json`` and ``sae.safetensors`` (see :func:`tsae.saes.load`)."""
        from tsae.saes.registry import save

        save(self, directory)
