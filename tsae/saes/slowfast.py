r"""F. Slow and fast latents of one dictionary: identity persists, and strength stays near it.

    u    = x - b_dec,   e_i[t] = relu(u[t] W_i + b_i)                         evidence of latent i
    m_i  = leaky mean of e_i over the document so far, decay delta of its group
    S[t] = act_g(m[t]) of each slow group g                                   which are on: persists
    z_i  = g_i m_i (1 + kappa tanh(u a_i + b'_i)) for i in S                  how strongly: per token
    r    = u - z_S W_dec;  the fast latents in rounds on r; all codes corrected together (``rounds``),
           where z_i of a slow one stays within g_i m_i (1 - kappa) and g_i m_i (1 + kappa)
    loss = the static one
           + nu InfoNCE(cosine of document memories at t and t + lag; negatives: other documents)
           + alpha FVU of sum_S s_i m_i d_i for the mean of u over the section's other tokens

The slow groups (``document``, ``section``) come first in the dictionary. Of the k active latents a
token, each group has its share: under topk on average over the tokens, more where memories are
large; what it leaves goes to the last fast round, so that each token has k. The encoder is told
where documents start, nothing else; the loss may read given sections, or the next tokens instead
(``target``). Without slow groups this is ``rounds``, and so with one round and no correction the
static SAE exactly. Source: this project.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tsae.kernels import rounds
from tsae.kernels.held import held
from tsae.kernels.leaky import LeakySum, leaky_mean
from tsae.kernels.sparse import Codes, rows_to_crow
from tsae.saes import activations
from tsae.saes.base import Encoding, State, Tokens
from tsae.saes.config import split_by_shares
from tsae.saes.nested import prefix_error
from tsae.saes.passages import contrast, drawn, next_sum, others_sum
from tsae.saes.registry import register
from tsae.saes.rounds import Found, RoundsSAE
from tsae.saes.shares import CappedTopK, Grouped
from tsae.saes.slowfast_config import SlowFastConfig
from tsae.sequences import DOCUMENT, SECTION, FilledContext

GROUPS = ("document", "section")
TINY = 1e-12
"""A memory of no more than this is none."""


class SlowPart(NamedTuple):
    """The slow latents of a batch: ``m_NS`` their memory, ``on_NS`` bool which are on."""

    m_NS: Tensor
    on_NS: Tensor


@register("slowfast", SlowFastConfig)
class SlowFastSAE(RoundsSAE):
    """The memory, the groups and the losses of the module's equations."""

    cfg: SlowFastConfig
    prior_S: Tensor
    decay_logit: Tensor

    def __init__(self, cfg: SlowFastConfig):
        super().__init__(cfg)
        sizes = torch.tensor(cfg.slow_sizes, dtype=torch.long)
        delta = torch.repeat_interleave(torch.tensor(cfg.decays[: len(sizes)]), sizes)
        prior = torch.repeat_interleave(torch.tensor(cfg.priors[: len(sizes)]), sizes)
        self.register_buffer("prior_S", prior, persistent=False)
        if cfg.learn_decays:
            self.decay_logit = nn.Parameter(torch.logit(delta))
        else:
            self.register_buffer("decay_logit", torch.logit(delta))
        if cfg.slow_shares:
            Fs = self.n_slow
            self.W_amp = nn.Parameter(0.5 * self.W_dec.detach()[:Fs])
            self.b_amp = nn.Parameter(torch.zeros(Fs))
            self.log_gain = nn.Parameter(torch.full((Fs,), 0.5))
            if cfg.predict > 0:
                self.scale_predict = nn.Parameter(torch.ones(Fs))

    @property
    def n_slow(self) -> int:
        """Latents of all slow groups, the first ones of the dictionary."""
        return sum(self.cfg.slow_sizes)

    @property
    def n_fast(self) -> int:
        return self.cfg.d_sae - self.n_slow

    @property
    def is_static(self) -> bool:
        return super().is_static and not self.cfg.slow_shares

    def make_activation(self) -> nn.Module:
        cfg = self.cfg
        if not cfg.slow_shares:
            return super().make_activation()
        parts: list[nn.Module] = []
        for k, most, n in zip(cfg.slow_ks, cfg.slow_most, cfg.slow_sizes, strict=True):
            if most > k:
                parts.append(CappedTopK(min(k, n), min(most, n), cfg.threshold_ema))
            else:
                parts.append(activations.make(cfg.act, min(k, n), n, cfg))
        n = self.n_fast
        parts += [activations.make(cfg.act, min(k, n), n, cfg) for k in cfg.fast_ks]
        return Grouped(parts, cfg.slow_sizes + [n] * len(cfg.fast_ks))

    @property
    def groups(self) -> dict[str, Tensor]:
        """Latent ids of the ``document``, ``section`` and ``fast`` latents (``all`` if one)."""
        ids = torch.arange(self.cfg.d_sae, device=self.W_dec.device)
        sizes = self.cfg.slow_sizes
        if not sizes:
            return {"all": ids}
        names = (*GROUPS[: len(sizes)], "fast")
        return dict(zip(names, ids.split([*sizes, self.n_fast]), strict=True))

    @property
    def looks_back(self) -> bool:
        return bool(self.cfg.slow_shares)

    @property
    def pairs_tokens(self) -> bool:
        """True with InfoNCE, whose negatives are other sequences' tokens."""
        return bool(self.cfg.slow_shares) and self.cfg.contrast > 0

    # ---- encoding -------------------------------------------------------------------------

    def detached(
        self, x_BTD: Tensor, u_ND: Tensor, W_DF: Tensor, b_F: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``u`` and ``b``, the same in value, with the short way to the gradient of b_dec that
        :meth:`Tokens.pair` takes."""
        if x_BTD.requires_grad or not torch.is_grad_enabled():
            return u_ND, b_F
        return u_ND.detach(), b_F - (self.b_dec - self.b_dec.detach()) @ W_DF.detach()

    def memory(
        self,
        x_BTD: Tensor,
        u_ND: Tensor,
        W_DS: Tensor,
        context: FilledContext,
        before: LeakySum | None,
    ) -> tuple[Tensor, LeakySum]:
        """``m`` [N, Fs], and what is remembered after the last token."""
        u_ND, b_S = self.detached(x_BTD, u_ND, W_DS, self.b_enc[: self.n_slow])
        e_BTS = torch.addmm(b_S, u_ND, W_DS).relu().unflatten(0, x_BTD.shape[:2])
        delta_S, keep_BT = torch.sigmoid(self.decay_logit), context.boundary_BT < DOCUMENT
        m_BTS, after = leaky_mean(e_BTS, delta_S, keep_BT, context.mask_BT, before, self.prior_S)
        return m_BTS.flatten(0, 1), after

    def found(self, tokens: Tokens, state: State | None) -> Found:
        """As of ``rounds``; the first pre-activation is the memory, which a stream keeps."""
        if not self.cfg.slow_shares:
            return super().found(tokens, state)
        x_BTD, u_ND, mask_N = tokens.x_BTD, tokens.u_BTD.flatten(0, 1), tokens.mask_N
        # By latent, once: the gradients of all rounds read it so.
        W_FD = self.W_enc.t().contiguous()
        W_DS, W_DG = (W.t() for W in W_FD.split([self.n_slow, self.n_fast]))
        before = None if state is None else state.get("memory")
        m_NS, after = self.memory(x_BTD, u_ND, W_DS, tokens.context, before)
        if state is not None:
            state["memory"] = after
        on_NS = self.chosen(m_NS, tokens.context, state)
        if self.dense_path:
            return self.dense_codes(u_ND, m_NS, on_NS, W_DG, mask_N)
        cfg = self.cfg
        rows, cols = on_NS.nonzero(as_tuple=True)
        m = m_NS[rows, cols]
        pattern = Codes(m, rows, cols, rows_to_crow(on_NS.sum(1)), (len(m_NS), self.n_slow))
        v_ND, b_S = self.detached(x_BTD, u_ND, self.W_amp.t(), self.b_amp)
        moved = torch.tanh(rounds.projected(pattern, v_ND, self.W_amp) + b_S[cols])
        centre = m * self.log_gain.exp()[cols]
        shape = len(u_ND), cfg.d_sae
        slow = pattern._replace(values=centre * (1 + cfg.bound * moved), shape=shape)
        r_ND = rounds.subtracted(u_ND, slow, self.W_dec)
        spare_N = sum(cfg.slow_most) * mask_N - pattern.crow.diff()
        fast = self.act.parts[len(cfg.slow_sizes) :]
        parts, pres, r_ND = rounds.sparse_rounds(
            r_ND, W_DG, self.W_dec, self.biases(), fast, mask_N, spare_N
        )
        codes = rounds.merged([slow, *parts])
        if cfg.correct:
            codes = rounds.corrected(codes, r_ND, self.W_dec, self.eta)
            at = (codes.cols < self.n_slow).nonzero()[:, 0]
            bounded = self.bounded(codes.values[at], centre)
            codes = codes._replace(values=codes.values.index_copy(0, at, bounded))
        return Found(codes, [m_NS, *pres], {"slow": SlowPart(m_NS, on_NS)})

    def bounded(self, z: Tensor, centre: Tensor) -> Tensor:
        """Values of slow latents, held within ``bound`` of their memory's."""
        kappa = self.cfg.bound
        return z.maximum((1 - kappa) * centre).minimum((1 + kappa) * centre)

    @torch.no_grad()
    def chosen(self, m_NS: Tensor, context: FilledContext, state: State | None) -> Tensor:
        """``S`` as bool [N, Fs]; a stream keeps which latents are on where they are held."""
        cfg, mask_N = self.cfg, context.mask_BT.flatten()
        on: list[Tensor] = []
        groups = zip(self.act.parts, cfg.slow_ks, m_NS.split(cfg.slow_sizes, 1), strict=False)
        for act, k, m_NG in groups:
            m_NG = m_NG.contiguous()
            if cfg.hold < 1:
                keep_BT = context.boundary_BT < DOCUMENT
                m_BTG = m_NG.unflatten(0, keep_BT.shape)
                name = f"on{len(on)}"
                before_BG = None if state is None else state.get(name)
                on_BTG, after_BG = held(m_BTG, k, cfg.hold, keep_BT, context.mask_BT, before_BG)
                if state is not None:
                    state[name] = after_BG
                on.append(on_BTG.flatten(0, 1))
            elif hasattr(act, "select"):
                rows, cols, _ = act.select(m_NG, mask_N)
                none_NG = torch.zeros_like(m_NG, dtype=torch.bool)
                on.append(none_NG.index_put((rows, cols), m_NG[rows, cols] > 0))
            else:
                on.append(act(m_NG, mask_N) > 0)
        return torch.cat(on, 1) & (m_NS > TINY)

    def dense_codes(
        self, u_ND: Tensor, m_NS: Tensor, on_NS: Tensor, W_DG: Tensor, mask_N: Tensor
    ) -> Found:
        """:meth:`found` in plain dense products, for the activations that have no sparse ones."""
        cfg, Fs, n = self.cfg, self.n_slow, len(self.cfg.slow_sizes)
        kept_NS = on_NS.to(m_NS.dtype)
        if cfg.act == "jumprelu" and cfg.hold == 1:  # the thresholds' gradient: through the steps
            parts = zip(self.act.parts, m_NS.detach().split(cfg.slow_sizes, 1), strict=False)
            step_NS = torch.cat([act.step(m_NG) for act, m_NG in parts], 1) * mask_N[:, None]
            kept_NS = kept_NS + step_NS - step_NS.detach()
        centre_NS = m_NS * self.log_gain.exp()
        moved_NS = torch.tanh(u_ND @ self.W_amp.t() + self.b_amp)
        z_NS = centre_NS * (1 + cfg.bound * moved_NS) * kept_NS
        r_ND = u_ND - z_NS @ self.W_dec[:Fs]
        spare_N = sum(cfg.slow_most) * mask_N - on_NS.sum(1)
        z_NF, pres, r_ND = rounds.dense_rounds(
            r_ND, W_DG, self.W_dec, self.biases(), self.act.parts[n:], mask_N, spare_N
        )  # fmt: skip
        z_NF = torch.cat([z_NS, z_NF], 1)
        if cfg.correct:
            z_NF = rounds.dense_corrected(z_NF, r_ND, self.W_dec, self.eta)
            z_NS = self.bounded(z_NF[:, :Fs], centre_NS * kept_NS)
            z_NF = torch.cat([z_NS, z_NF[:, Fs:]], 1)
        return Found(z_NF, [m_NS, *pres], {"slow": SlowPart(m_NS, on_NS)})

    # ---- loss -----------------------------------------------------------------------------

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``prefixes``, ``contrast`` and ``predict``, weighted."""
        cfg, terms = self.cfg, {}
        if cfg.blocks:
            sizes = [n for n in (self.n_slow, *split_by_shares(self.n_fast, cfg.blocks)) if n]
            weights = [1.0] * (len(sizes) - 1)
            error = prefix_error(enc.codes, enc.target, self.W_dec, sizes, weights)
            terms["prefixes"] = error / (enc.n * cfg.d_in)
        if cfg.slow_shares and cfg.contrast > 0:
            m_NG = enc.aux["slow"].m_NS[:, : cfg.slow_sizes[0]]
            terms["contrast"] = cfg.contrast * contrast(
                m_NG, enc.context, cfg.contrast_pairs, cfg.longest_lag, cfg.temperature
            )
        if cfg.slow_shares and cfg.predict > 0:
            slow, u_ND = enc.aux["slow"], enc.target.detach()
            terms["predict"] = cfg.predict * self.unpredicted(slow, u_ND, enc.context)
        return terms

    def unpredicted(self, slow: SlowPart, u_ND: Tensor, context: FilledContext) -> Tensor:
        """Share of the passage's mean that ``sum_S s_i m_i d_i`` does not explain, at a few tokens."""
        if self.cfg.target == "section":
            total_ND, n_N = others_sum(u_ND, context, SECTION)
        else:
            total_ND, n_N = next_sum(u_ND, context, self.cfg.horizon)
        rows = drawn(context.mask_BT.flatten() & (n_N > 0), self.cfg.predict_tokens)
        target_PD = total_ND[rows] / n_N[rows, None]
        m_PS = slow.m_NS[rows] * slow.on_NS[rows] * self.scale_predict
        missed = (m_PS @ self.W_dec[: self.n_slow] - target_PD).square().sum()
        return missed / target_PD.square().sum().clamp_min(1e-8)
