r"""What every variant is: an encoder over sequences, a unit-norm dictionary, one loss.

    pre[t] = u[t] W_enc + b_enc + Delta[t],   u = x - b_dec     (``delta``; the static SAE has none)
    z[t]   = act(pre[t])
    x_hat  = z W_dec + b_dec,   |W_dec[i]| = 1
    loss   = mean (x - x_hat)^2  +  sparsity term of ``act``  +  AuxK  +  the variant's own terms

Shapes: x [B, T, d], z [B, T, F]. Units: activations normalised by the store, so that
E|x - mean|^2 = d and the MSE per dimension is 1 - FVE.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsae.kernels import sparse
from tsae.kernels.sparse import Codes
from tsae.saes import activations
from tsae.saes.config import ALL, Phase, SAEConfig
from tsae.saes.encoding import Delta, Encoding, SAEOutput, State, Tokens, check_input
from tsae.saes.stream import Stream
from tsae.saes.terms import auxk, count_idle, sparsity
from tsae.sequences import FilledContext, SequenceContext


class SAE(nn.Module):
    """The static autoencoder of the module's equations, and the interface of every variant.

    A variant writes :meth:`delta` (what other tokens add), :meth:`own_terms` and :meth:`reported`
    (its losses, and what its log shows); one whose codes are not ``act(pre)`` writes
    :meth:`encoding`. ``encode``, ``forward``, ``stream`` and ``loss`` are written here alone.
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
        self.phase = ALL[0]

    def make_activation(self) -> nn.Module:
        """The activation module; a variant with reserved shares of k returns a grouped one."""
        return activations.make(self.cfg.act, self.cfg.k, self.cfg.d_sae, self.cfg)

    @property
    def groups(self) -> dict[str, Tensor]:
        """Latent ids by group; the static dictionary has one group, ``all``."""
        return {"all": torch.arange(self.cfg.d_sae, device=self.W_dec.device)}

    @property
    def looks_back(self) -> bool:
        """Whether a code can depend on more than its own token."""
        return False

    @property
    def dense_path(self) -> bool:
        """Whether the plain dense products are used although sparse ones exist."""
        return self.cfg.act in ("relu", "jumprelu")

    @property
    def codes_learn(self) -> bool:
        """Whether this phase trains the codes; else they are made, and cost, as at inference."""
        return self.phase.codes

    # ---- encoding -------------------------------------------------------------------------

    def checked(self, x_BTD: Tensor, context: SequenceContext | None) -> FilledContext:
        """Fill in the context; raise ``ValueError`` on a wrong type, shape or device."""
        check_input(x_BTD, self.W_enc)
        return (context or SequenceContext()).filled(x_BTD)

    def centred(self, x_BTD: Tensor, context: FilledContext) -> Tensor:
        """``x - b_dec`` with invalid tokens set to 0, so that none reaches another's context."""
        u_ND = (x_BTD - self.b_dec).flatten(0, 1)
        # Few tokens are invalid, so that this takes a quarter of the time of torch.where.
        invalid = (~context.mask_BT).flatten().nonzero()[:, 0]
        return u_ND.index_fill_(0, invalid, 0.0).view_as(x_BTD)

    def delta(self, tokens: Tokens, state: State | None) -> Delta:
        """What other tokens add to the static pre-activation.

        ``state`` is None for whole sequences. In a stream ``tokens`` is one token of each text, and
        ``state`` is what this method wants to remember, empty before the first token.
        """
        return Delta()

    def encoding(self, tokens: Tokens, state: State | None = None) -> Encoding:
        """The codes of a batch and all that losses need of it: ``act(pre)`` of the equations."""
        delta = self.delta(tokens, state)
        x_BTD = tokens.x_BTD
        if delta.x_BTD is not None:
            x_BTD = delta.x_BTD
            tokens = Tokens(self, x_BTD, tokens.context, tokens.learn, tokens.sparse)
        act = self.act
        training = act.training
        act.train(training and self.codes_learn)
        if tokens.sparse:
            u_ND, bias_F = tokens.pair()
            select = partial(act.select, mask_N=tokens.mask_N)
            given, added = [(u_ND, self.W_enc), *delta.pairs], (delta.dense, delta.slopes)
            codes, pre_NF = sparse.encode(select, bias_F, given, tokens.first, *added)
        else:
            pre_NF = tokens.total(delta)
            codes = act(pre_NF, tokens.mask_N)
        act.train(training)
        target_ND = self.centred(x_BTD, tokens.context).flatten(0, 1)
        pairs = ((tokens.u_BTD.flatten(0, 1), self.W_enc), *delta.pairs)
        aux = dict(delta.aux)
        return Encoding(codes, pre_NF, target_ND, delta.beside, aux, pairs, tokens.context)

    def features(self, enc: Encoding, state: State | None = None) -> dict[str, Tensor]:
        """Codes [N, F'] of further levels, by name; ``state`` as in :meth:`delta`."""
        return {}

    def encode(self, x_BTD: Tensor, context: SequenceContext | None = None) -> Tensor:
        """Codes z [B, T, F] of x [B, T, d]; zero at invalid tokens. Raises ``ValueError``."""
        enc = self.encoding(Tokens(self, x_BTD, self.checked(x_BTD, context)))
        return enc.z_NF.unflatten(0, x_BTD.shape[:2])

    def decode(self, z_BTF: Tensor) -> Tensor:
        """``x_hat = z W_dec + b_dec`` [B, T, d]."""
        return z_BTF @ self.W_dec + self.b_dec

    def forward(self, x_BTD: Tensor, context: SequenceContext | None = None) -> SAEOutput:
        """Reconstruction ``decode(z)`` plus what is beside it, codes and pre-activations."""
        enc = self.encoding(Tokens(self, x_BTD, self.checked(x_BTD, context)))
        shape = x_BTD.shape[:2]
        beside = {name: part.unflatten(0, shape) for name, part in enc.beside.items()}
        z_BTF = enc.z_NF.unflatten(0, shape)
        x_hat = sum(beside.values(), self.decode(z_BTF))
        return SAEOutput(x_hat, z_BTF, enc.pre.unflatten(0, shape), beside)

    # ---- loss -----------------------------------------------------------------------------

    def loss(self, x_BTD: Tensor, context: SequenceContext | None = None) -> dict[str, Tensor]:
        """``total``, its terms (:meth:`terms`), and what is :meth:`reported` beside it, as scalars:
        means over the valid tokens. Raises ``ValueError``."""
        context = self.checked(x_BTD, context)
        if self.W_enc.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(f"losses need float32, this SAE is {self.W_enc.dtype}: call .float().")
        learn, fast = self.training, not self.dense_path and hasattr(self.act, "select")
        enc = self.encoding(Tokens(self, x_BTD, context, learn, fast))
        terms = self.terms(x_BTD, enc)
        terms["total"] = torch.stack(list(terms.values())).sum()
        return terms | self.reported(enc)

    def terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """The weighted terms of the loss.

        ``mse`` = mean (x - x_hat)^2 over tokens and dimensions; ``sparsity`` (relu: weight x
        mean L1 / d; jumprelu: weight x L0 / k); ``aux``; and the variant's own.
        """
        decoded_ND = self.decoded(enc.codes)
        sse = nn.functional.mse_loss(decoded_ND, enc.target, reduction="sum")
        terms = {"mse": sse / (enc.n * self.cfg.d_in)}
        enc.aux.update(decoded=decoded_ND, mse=terms["mse"])
        if self.codes_learn and self.cfg.act in ("relu", "jumprelu"):
            assert isinstance(enc.codes, Tensor)  # neither has sparse codes
            read_NF, weight = enc.aux.get("read", enc.pre), self.sparsity_weight
            made = (self.cfg.act, self.act, enc.codes, read_NF)
            penalty = sparsity(self, *made, enc, self.cfg.k, weight)
            terms["sparsity"] = penalty
        if self.training:
            codes = enc.codes
            fired = (codes > 0).any(0) if isinstance(codes, Tensor) else codes.fired()
            count_idle(self.idle_tokens, fired, int(enc.n))
            if self.codes_learn:
                terms.update(self.aux_term(enc, (enc.target - decoded_ND).detach()))
        return terms | self.own_terms(x_BTD, enc)

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """The variant's own loss terms, already weighted."""
        return {}

    def reported(self, enc: Encoding) -> dict[str, Tensor]:
        """What the log shows and no gradient moves: ``l0``, and the variant's own."""
        codes = enc.codes
        values = codes if isinstance(codes, Tensor) else codes.values
        return {"l0": (values > 0).count_nonzero() / enc.n}

    def decoded(self, codes: Codes | Tensor) -> Tensor:
        """``z W_dec`` [N, d] of dense or sparse codes."""
        return codes @ self.W_dec if isinstance(codes, Tensor) else sparse.decode(codes, self.W_dec)

    def dead_latents(self) -> Tensor:
        """Mask [F] of latents that have not fired for ``dead_after`` tokens."""
        return self.idle_tokens >= self.cfg.dead_after

    def aux_term(self, enc: Encoding, error_ND: Tensor) -> dict[str, Tensor]:
        """AuxK (:func:`tsae.saes.terms.auxk`); relu and jumprelu have resampling and L0 instead."""
        dead = self.dead_latents()
        if self.cfg.aux == 0 or self.cfg.act in ("relu", "jumprelu") or not bool(dead.any()):
            return {}
        pre_NX = sum(u @ W[:, dead] for u, W in enc.pairs) + self.b_enc[dead]
        return {"aux": auxk(self, pre_NX, self.W_dec[dead], error_ND, enc.mask_N, torch.relu)}

    # ---- what the trainer calls -----------------------------------------------------------

    @property
    def pairs_tokens(self) -> bool:
        """Whether the loss compares tokens of different sequences, so that no rank of a data
        parallel run could compute its share of it alone."""
        return False

    def phases(self) -> tuple[Phase, ...]:
        """The stretches of training, as the config has them."""
        return self.cfg.phases

    def start_step(self, step: int, n_steps: int, phase: Phase = ALL[0]) -> None:
        """Tell schedules (sparsity warm-up, annealing) where training stands, and in which phase."""
        self.progress, self.phase = step / max(n_steps, 1), phase
        if isinstance(self.act, activations.Counting):  # inference always has k
            done = math.pi * min(1.0, self.progress / phase.share)
            factor = 1 + (phase.anneal - 1) * (1 + math.cos(done)) / 2
            self.act.k_training = min(round(self.cfg.k * factor), self.cfg.d_sae)

    def dictionaries(self) -> list[nn.Parameter]:
        """Those whose rows have norm 1: every parameter called ``W_dec``."""
        return [p for name, p in self.named_parameters() if name.endswith("W_dec")]

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Remove from the dictionaries' gradients what would only change their rows' norms."""
        for W in self.dictionaries():
            if W.grad is not None:
                W.grad.addcmul_(torch.linalg.vecdot(W.grad, W)[:, None], W, value=-1.0)

    @torch.no_grad()
    def finish_step(self) -> None:
        """Restore the unit norm of the dictionaries' rows, unless the phase has frozen them."""
        for W in self.dictionaries():
            if W.requires_grad:
                W.div_(W.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def initialise(self, mean_D: Tensor) -> None:
        """Start the decoder bias at the mean activation, unless it is set."""
        if not bool(self.b_dec.any()):
            self.b_dec.copy_(mean_D)

    # ---- streaming, saving ----------------------------------------------------------------

    def stream(self, batch_size: int) -> Stream:
        """A token-by-token encoder with preallocated state, equal to :meth:`encode`."""
        return Stream(self, batch_size)

    def save(self, directory) -> None:
        """Write ``cfg.json`` and ``sae.safetensors`` (see :func:`tsae.saes.load`)."""
        from tsae.saes.registry import save

        save(self, directory)
